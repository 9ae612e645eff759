"""What a Feast source is to a cluster: files that executors read, or a frame of Spark's.

Above `tasks`. Local files, folders, hive folders and Delta tables are read by the executors'
DuckDB, from the same path as the driver's; Spark's tables, queries and paths, and addresses, by
Spark.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.offline.sources import Source, open_source
from steadfeast.featurestore.offline.spark.tasks import ROWS, Part
from steadfeast.featurestore.tables import delta_table, is_hive, is_remote, local_files

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb
    from feast.data_source import DataSource

_SPLIT_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class ClusterSource(Source):
    """A source that executors can read, called `ROWS` in queries.

    Attributes:
        frame: Spark's frame of it, or None where executors read files.
        files: Those files.
        hive: Their folders name partitions.
    """

    frame: Any = None
    files: tuple[str, ...] = ()
    hive: bool = False


def finder(spark: Any) -> Callable[..., ClusterSource]:
    """Return what opens sources for a cluster, in the place of `open_source`."""

    def find(
        connection: duckdb.DuckDBPyConnection,
        repo: Path | str | None,
        source: DataSource,
        view: str = "",
        types: Any = None,
    ) -> ClusterSource:
        name = view or source.name
        if not isinstance(source, FileSource):
            return _framed(connection, spark, source, name)
        location = str(FileSource.get_uri_for_file_path(repo_path=repo, uri=source.path))
        if is_remote(location):
            frame = _loaded(
                name,
                location,
                lambda: spark.read.option("mergeSchema", "true").parquet(_hadoop(location)),
            )
            return _of_frame(connection, frame, name, location)
        found = open_source(connection, repo, source, view, types)
        path = Path(location)
        if isinstance(source.file_format, DeltaFormat) or (path / "_delta_log").is_dir():
            table = delta_table(name, location)
            files, hive = table.file_uris(), bool(table.metadata().partition_columns)
        else:
            local = local_files(path)
            files, hive = [str(file.absolute()) for file in local], is_hive(path, local)
        return ClusterSource(name, location, ROWS, found.columns, None, tuple(files), hive)

    return find


def _framed(connection: Any, spark: Any, source: Any, name: str) -> ClusterSource:
    if type(source).__name__ != "SparkSource":
        kind = type(source).__name__
        problem = f"this store reads FileSource and SparkSource, not {kind}"
        raise SourceError(name, source.name, problem)
    location = str(source.table or source.path or "a query")

    def load() -> Any:
        if source.table:
            return spark.table(source.table)
        if source.query:
            return spark.sql(source.query)
        return source._load_dataframe_from_path(spark)  # noqa: SLF001 - Feast's own reader

    return _of_frame(connection, _loaded(name, location, load), name, location)


def _loaded(name: str, location: str, load: Callable[[], Any]) -> Any:
    from pyspark.errors import PySparkException  # noqa: PLC0415 - an extra

    try:
        frame = load()
        frame.schema  # noqa: B018 - Spark says here what is wrong
    except PySparkException as error:
        line = str(error).strip().split("\n", 1)[0]
        raise SourceError(name, location, f"Spark cannot read it: {line}") from error
    return frame


def _of_frame(connection: Any, frame: Any, name: str, location: str) -> ClusterSource:
    empty = frame.limit(0).toArrow()
    connection.register("steadfeast_empty", empty)
    relation = connection.sql("SELECT * FROM steadfeast_empty")
    columns = dict(zip(relation.columns, relation.types, strict=True))
    connection.unregister("steadfeast_empty")
    return ClusterSource(name, location, ROWS, columns, frame)


def _hadoop(location: str) -> str:
    return "s3a" + location[2:] if location.startswith("s3://") else location


def splits(source: ClusterSource) -> list[list[Part]]:
    """Return the parts of a source's files, about 128 MiB together in each split."""
    found: list[list[Part]] = []
    together: list[Part] = []
    size = 0
    for file in source.files:
        path = Path(file)
        try:
            weight = path.stat().st_size
        except OSError as error:
            raise SourceError(source.view, file, str(error)) from error
        if weight > 2 * _SPLIT_BYTES:
            found += [[part] for part in _pieces(file, weight)]
            continue
        if together and size + weight > _SPLIT_BYTES:
            found.append(together)
            together, size = [], 0
        together.append(Part(file))
        size += weight
    return [*found, together] if together else found


def _pieces(file: str, weight: int) -> list[Part]:
    """Cut a large file at its row groups."""
    metadata = pq.read_metadata(file)
    pieces, first, row, share = [], 0, 0, metadata.num_rows * _SPLIT_BYTES // weight + 1
    for group in range(metadata.num_row_groups):
        row += metadata.row_group(group).num_rows
        if row - first >= share:
            pieces.append(Part(file, first, row))
            first = row
    return [*pieces, Part(file, first, row)] if row > first else pieces
