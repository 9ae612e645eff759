"""A Spark session that fits, and frames of blocks on it.

Above `tasks`. pyspark is imported here, when the first session is asked for.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from steadfeast.featurestore.errors import ClusterError, MissingExtraError
from steadfeast.featurestore.offline.spark.blocks import SCHEMA, SPARK_SCHEMA, blocks
from steadfeast.featurestore.offline.spark.faults import received

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Task = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]

_LEAST = (4, 1)
_BATCH_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"
_DEFAULTS = {
    "spark.app.name": "steadfeast",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.showConsoleProgress": "false",
}


def spark_session(conf: Mapping[str, str] | None) -> Any:
    """Return the active Spark session, or start one with these settings.

    Raises:
        MissingExtraError: pyspark is not installed.
        ClusterError: Its version does not fit, there is no Java, or no session starts.
    """
    try:
        import pyspark  # noqa: PLC0415 - an extra
        from pyspark.errors import (  # noqa: PLC0415
            PySparkException,
        )
        from pyspark.sql import (  # noqa: PLC0415
            SparkSession,
        )
    except ImportError as error:
        raise MissingExtraError("spark") from error
    version = tuple(int(part) for part in pyspark.__version__.split(".")[:2])
    if version < _LEAST:
        least = ".".join(map(str, _LEAST))
        raise ClusterError(
            f"pyspark {pyspark.__version__} does not fit: {least} or later is needed"
        )
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    settings: dict[str, Any] = _DEFAULTS | dict(conf or {})
    if not settings.get("spark.remote"):
        _check_java()
    # PySpark reads the variable alone, and executors that are given none take any python3.
    os.environ.setdefault("PYSPARK_PYTHON", settings.get("spark.pyspark.python", sys.executable))
    try:
        return SparkSession.builder.config(map=settings).getOrCreate()
    except PySparkException as error:
        first = str(error).strip().split("\n", 1)[0]
        raise ClusterError(f"no Spark session starts: {first}") from error
    except Exception as error:
        # py4j's own: what the JVM says stands in the text.
        if type(error).__module__.partition(".")[0] != "py4j":
            raise
        line = next((x for x in str(error).splitlines() if "Exception: " in x), str(error))
        raise ClusterError(f"no Spark session starts: {line.strip()[:300]}") from error


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if home and not os.access(Path(home, "bin", "java"), os.X_OK):
        raise ClusterError(f"Spark needs Java 17 or later: JAVA_HOME is {home}, which has none")
    if not home and shutil.which("java") is None:
        raise ClusterError(
            "Spark needs Java 17 or later: there is no java on the PATH, and JAVA_HOME is not set "
            "(Debian's package is default-jre-headless)"
        )


@contextmanager
def few_bytes(spark: Any) -> Iterator[None]:
    """Let Spark hand blocks to tasks in batches of 64 MiB: it counts rows otherwise."""
    before = spark.conf.get(_BATCH_BYTES)
    spark.conf.set(_BATCH_BYTES, str(64 << 20))
    try:
        yield
    finally:
        spark.conf.set(_BATCH_BYTES, before)


def numbered(spark: Any, tasks: int, task: Task) -> Any:
    """Return the frame of blocks that `task` makes of the numbers 0 to `tasks`, one a task."""
    return spark.range(0, tasks, 1, tasks).mapInArrow(task, SPARK_SCHEMA)


def given(spark: Any, batches: Iterable[pa.RecordBatch]) -> Any:
    """Return the frame of blocks that the driver has."""
    return spark.createDataFrame(pa.Table.from_batches(batches, SCHEMA), SPARK_SCHEMA)


def exchanged(frame: Any, partitions: int, task: Task) -> Any:
    """Bring blocks to where they go, and run `task` on those of each partition, in order."""
    moved = frame.repartitionById(partitions, "to").sortWithinPartitions("to", "kind")
    return moved.mapInArrow(task, SPARK_SCHEMA)


def collected(spark: Any, frame: Any) -> Iterator[pa.Table]:
    """Give what the blocks of a frame hold, a partition at a time, in order."""
    with few_bytes(spark), received():
        for row in frame.toLocalIterator():
            batch = pa.RecordBatch.from_pylist([row.asDict()], schema=SCHEMA)
            yield from (table for _, _, table in blocks([batch]))
