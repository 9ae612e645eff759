"""From Feast's data source to a DuckDB table expression with known columns.

Above `session`. Parquet files, folders, globs and hive-partitioned folders are read by DuckDB
itself; Delta through deltalake's list of live files; remote addresses by DuckDB's own settings.
Whatever is wrong with the data is one `SourceError` that names view, path and column.
"""

from __future__ import annotations

import glob
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import duckdb
import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource
from pyarrow.dataset import dataset

from featurestore import sql
from featurestore.errors import SourceError
from featurestore.offline.session import exhausted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deltalake import DeltaTable
    from feast.data_source import DataSource

    from featurestore.order import Type

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
        return pa.schema(_delta_table(name, location).schema().to_arrow())
    files = local_files(path)
    if not files:
        raise SourceError(name, location, _nothing(path))
    hive = "hive" if is_hive(path, files) else None
    try:
        return dataset([str(file) for file in files], format="parquet", partitioning=hive).schema
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(name, location, str(error).split("\n", 1)[0]) from error


def _nothing(path: Path) -> str:
    return "the folder holds no Parquet file" if path.is_dir() else "there is no such file"


def is_there(repo: Path | str | None, source: FileSource) -> bool:
    """Tell whether a source has any local file; a remote one counts as there."""
    location = FileSource.get_uri_for_file_path(repo_path=repo, uri=source.path)
    return is_remote(location) or Path(location).exists() or bool(local_files(Path(location)))


def scan_of(view: str, location: str, *, delta: bool = False) -> str:
    """Return the table expression of what lies at `location`.

    Raises:
        SourceError: There is no file.
    """
    if is_remote(location):
        return _delta(view, location) if delta else sql.parquet([location], hive="=" in location)
    path = Path(location)
    if delta or (path / "_delta_log").is_dir():
        return _delta(view, location)
    files = local_files(path)
    if not files:
        raise SourceError(view, location, _nothing(path))
    return sql.parquet([str(file) for file in files], hive=is_hive(path, files))


def is_remote(location: str) -> bool:
    """Tell an address such as `s3://bucket/key` from a path."""
    parsed = urlparse(location)
    return bool(parsed.scheme and parsed.netloc)


def local_files(path: Path) -> list[Path]:
    """Return the Parquet files of a file, a folder (at any depth) or a glob, in order of name.

    As elsewhere, names that start with a dot or an underscore are not data.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(
            file
            for file in path.rglob("*.parquet")
            if file.is_file()
            and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        )
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - the pattern may be absolute
    return sorted(file for file in map(Path, names) if file.is_file())


def is_hive(root: Path, files: list[Path]) -> bool:
    """Tell whether the folders below `root` name partitions, as `day=2024-01-01`."""
    first = files[0]
    try:
        below = first.relative_to(root).parts[:-1]
    except ValueError:  # a glob
        below = first.parts[:-1]
    return any("=" in part for part in below)


def _delta(view: str, location: str) -> str:
    table = _delta_table(view, location)
    files = table.file_uris()
    if not files:
        raise SourceError(view, location, "the Delta table holds no file")
    return sql.parquet(files, hive=bool(table.metadata().partition_columns))


def _delta_table(view: str, location: str) -> DeltaTable:
    try:
        from deltalake import DeltaTable  # noqa: PLC0415 - an extra
        from deltalake.exceptions import DeltaError, TableNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise SourceError(view, location, "Delta tables need steadfeast[delta]") from error
    try:
        return DeltaTable(location)
    except (TableNotFoundError, DeltaError) as error:
        raise SourceError(view, location, f"not a readable Delta table: {error}") from error
