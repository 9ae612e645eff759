"""From Feast's data source to a DuckDB table expression with known columns.

Above `session` and `featurestore.tables.locations`, which finds the files. Whatever is wrong with
the data is one `SourceError` that names view, path and column.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource
from pyarrow.dataset import dataset

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.offline.session import exhausted
from steadfeast.featurestore.tables import sql
from steadfeast.featurestore.tables.locations import (
    delta_table,
    is_hive,
    is_remote,
    local_files,
    nothing,
    scan_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast.data_source import DataSource

    from steadfeast.featurestore.tables.total_order import Type

TIMES = {
    "date",
    "timestamp",
    "timestamp_s",
    "timestamp_ms",
    "timestamp_ns",
    "timestamptz_ns",
    "timestamp with time zone",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A readable data source.

    Attributes:
        view: The feature view it belongs to, for messages.
        location: The path or address, for messages.
        scan: Table expression.
        columns: Column types by name.
    """

    view: str
    location: str
    scan: str
    columns: Mapping[str, Type]

    def column(self, name: str) -> sql.Column:
        """Return one column.

        Raises:
            SourceError: There is none of that name.
        """
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise SourceError(
                self.view, self.location, f"there is no such column; there are {known}", column=name
            )
        return sql.Column(name, self.columns[name])

    def time(self, name: str) -> sql.Column:
        """Return one column that holds times.

        Raises:
            SourceError: There is none of that name, or it holds something else.
        """
        column = self.column(name)
        if column.type.id not in TIMES:
            raise SourceError(
                self.view, self.location, f"holds {column.type}, not times", column=name
            )
        return column


@contextmanager
def reading(view: str, location: str) -> Iterator[None]:
    """Turn DuckDB's errors about data into ours. Errors in a query's text are bugs and stay.

    Raises:
        SourceError: The data inside cannot be read.
    """
    try:
        yield
    except duckdb.Error as error:
        if isinstance(error, _BUGS) or exhausted(error):
            raise
        raise SourceError(view, location, str(error).split("\n", 1)[0]) from error


_BUGS = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.InternalException,
    duckdb.ParserException,
)


def open_source(
    connection: duckdb.DuckDBPyConnection,
    repo: Path | str | None,
    source: DataSource,
    view: str = "",
) -> Source:
    """Find the files of `source`, read their schema and return it as a table expression.

    Raises:
        SourceError: There is nothing there, or it cannot be read.
    """
    name = view or source.name
    if not isinstance(source, FileSource):
        kind = type(source).__name__
        raise SourceError(name, source.name, f"this store reads FileSource, not {kind}")
    location = FileSource.get_uri_for_file_path(repo_path=repo, uri=source.path)
    scan = scan_of(name, location, delta=isinstance(source.file_format, DeltaFormat))
    try:
        relation = connection.sql(f"SELECT * FROM {scan}")
    except duckdb.Error as error:
        raise SourceError(name, location, str(error).split("\n", 1)[0]) from error
    return Source(name, location, scan, dict(zip(relation.columns, relation.types, strict=True)))


def arrow_schema(repo: Path | str | None, source: DataSource, view: str = "") -> pa.Schema:
    """Return the Arrow schema of a source's files, partition columns last.

    Raises:
        SourceError: There is nothing there, it is remote, or it cannot be read.
    """
    if not isinstance(source, FileSource):
        raise SourceError(view or source.name, source.name, "is not a FileSource")
    name, location = view or source.name, FileSource.get_uri_for_file_path(repo, source.path)
    if is_remote(location):
        raise SourceError(name, location, "the schema of remote files is read when they are joined")
    path = Path(location)
    if isinstance(source.file_format, DeltaFormat) or (path / "_delta_log").is_dir():
        return pa.schema(delta_table(name, location).schema().to_arrow())
    files = local_files(path)
    if not files:
        raise SourceError(name, location, nothing(path))
    hive = "hive" if is_hive(path, files) else None
    try:
        return dataset([str(file) for file in files], format="parquet", partitioning=hive).schema
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(name, location, str(error).split("\n", 1)[0]) from error


def is_there(repo: Path | str | None, source: FileSource) -> bool:
    """Tell whether a source has any local file; a remote one counts as there."""
    location = FileSource.get_uri_for_file_path(repo_path=repo, uri=source.path)
    return is_remote(location) or Path(location).exists() or bool(local_files(Path(location)))
