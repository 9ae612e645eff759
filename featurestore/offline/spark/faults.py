"""Errors that cross from executors to the driver, and Spark's own in one line.

Bottom of `offline.spark`. An executor's error reaches the driver as text between stack traces.
Ours travel as JSON behind a mark, and are themselves again when they arrive.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import (
    ClusterError,
    EntityFrameError,
    ResourceError,
    SourceError,
    UserError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = re.compile(r"steadfeast-fault:(\{.*\})$", re.MULTILINE)


class _FaultError(RuntimeError):
    """An error of ours on its way to the driver."""

    def __init__(self, error: UserError) -> None:
        fields = {"kind": type(error).__name__, "text": str(error), **vars(error)}
        super().__init__("steadfeast-fault:" + json.dumps(fields, default=str))


@contextmanager
def sent() -> Iterator[None]:
    """Send errors of ours inside an executor's task on their way."""
    try:
        yield
    except UserError as error:
        raise _FaultError(error) from error


@contextmanager
def received() -> Iterator[None]:
    """Raise what executors sent as what it was, and anything else of Spark's as one line.

    Raises:
        SourceError: An executor cannot read a source.
        EntityFrameError: The entity frame cannot be used.
        ResourceError: An executor needs more memory or disk than it may use.
        ClusterError: Spark gave up: executors were lost, or lack what they need.
    """
    from py4j.protocol import Py4JError  # noqa: PLC0415 - an extra
    from pyspark.errors import PySparkException  # noqa: PLC0415 - an extra

    try:
        yield
    except (Py4JError, PySparkException) as error:
        raise _known(str(error)) from error


def _known(text: str) -> Exception:
    found = _MARK.search(text)
    if found is not None:
        return _ours(json.loads(found[1]))
    if "ModuleNotFoundError" in text:
        missing = re.search(r"No module named '[^']*'", text)
        name = missing[0] if missing else "a module is missing"
        return ClusterError(
            f"Spark: an executor's Python lacks what this store needs ({name}); install "
            "steadfeast there and name that Python by PYSPARK_PYTHON or spark.pyspark.python"
        )
    if "PYTHON_VERSION_MISMATCH" in text:
        return ClusterError(
            "Spark: driver and executors run different versions of Python; name one Python by "
            "PYSPARK_PYTHON or spark.pyspark.python"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = [line for line in lines if line.startswith(("Caused by:", "Job aborted", "org.apache"))]
    chosen = [line for line in lines if "ailed" in line or "lost" in line] or cause or lines
    return ClusterError(f"Spark gave up: {(chosen or ['no reason given'])[0][:500]}")


def _ours(fields: dict[str, Any]) -> Exception:
    kinds: dict[str, type[UserError]] = {
        kind.__name__: kind for kind in (SourceError, EntityFrameError, ResourceError)
    }
    kind = kinds.get(fields.pop("kind"))
    text = fields.pop("text")
    if kind is None:
        return ClusterError(f"Spark: an executor failed: {text}")
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    vars(error).update(fields)
    return error
