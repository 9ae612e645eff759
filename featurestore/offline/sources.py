"""From Feast's data source to a DuckDB table expression with known columns.

Above `session` and `featurestore.tables.locations`, which finds the files. Whatever is wrong with
the data is one `SourceError` that names view, path and column.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource
from pyarrow.dataset import dataset

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.offline.session import exhausted
from steadfeast.featurestore.tables import (
    delta_table,
    is_hive,
    is_remote,
    local_files,
    nothing,
    scan_of,
    sql,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from feast.data_source import DataSource

    from steadfeast.featurestore.tables import Type

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


_DUCKDB = {
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.int32(): "BIGINT",
    pa.int64(): "BIGINT",
    pa.float32(): "DOUBLE",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP",
}
"""Types of columns that are names of folders."""


def with_keys(source: Source, declared: Mapping[str, pa.DataType]) -> Source:
    """Return `source` with its join keys as the types that are declared for them.

    Serving knows a key by its declared type alone, so whatever joins must compare that, too.

    Args:
        source: The source.
        declared: Column -> Arrow type of the join key.

    Raises:
        SourceError: There is no such column, or no one way to read it as that type.
    """
    columns, replaced = dict(source.columns), []
    for name, kind in declared.items():
        found = source.column(name)
        text, to = _as_key(sql.identifier(name), found.type, kind)
        if not to:
            problem = (
                f"holds {found.type}, which has no one form as a key of type {kind}; declare "
                "another type for the key, or write the column as that type"
            )
            raise SourceError(source.view, source.location, problem, column=name)
        if text:
            replaced.append(f"{text} AS {sql.identifier(name)}")
            columns[name] = duckdb.sqltype(to)
    if not replaced:
        return source
    scan = f"(SELECT * REPLACE ({', '.join(replaced)}) FROM {source.scan})"
    return replace(source, scan=scan, columns=columns)


def _as_key(  # noqa: PLR0911 - one per type
    name: str, found: Type, kind: pa.DataType
) -> tuple[str, str]:
    """Return an expression of `kind` and its DuckDB type; "" for both where there is none.

    The expression alone is "" where the column can be compared as it is.
    """
    have = found.id.removeprefix("u") if found.id != "uuid" else found.id
    if pa.types.is_integer(kind):
        return _as_integer(name, found, have)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if have == "blob":
            return f"decode({name})", "VARCHAR"
        texts = {*_INTEGERS, "decimal", "date", "uuid", "enum", "boolean"}
        text = f"CAST({name} AS VARCHAR)" if have in texts else ""
        return text, "VARCHAR" if text or have == "varchar" else ""
    if pa.types.is_binary(kind):
        text = f"encode({name})" if have == "varchar" else ""
        return text, "BLOB" if text or have == "blob" else ""
    if pa.types.is_timestamp(kind):
        if have in _INTEGERS:  # seconds since the epoch, as Feast reads them
            return f"make_timestamptz({name}::BIGINT * 1000000)", "TIMESTAMP WITH TIME ZONE"
        if have == "timestamp with time zone":
            return "", "TIMESTAMP WITH TIME ZONE"
        micros = f"make_timestamptz({sql.micros(name, found.id)})" if have in TIMES else ""
        return micros, "TIMESTAMP WITH TIME ZONE" if micros else ""
    return "", "BOOLEAN" if pa.types.is_boolean(kind) and have == "boolean" else ""


_INTEGERS = {"tinyint", "smallint", "integer", "bigint", "hugeint"}


def _as_integer(name: str, found: Type, have: str) -> tuple[str, str]:
    if have in _INTEGERS:
        return "", found.id
    if have == "decimal" and dict(found.children)["scale"] == 0:
        return f"{name}::BIGINT", "BIGINT"
    if have in {"float", "double"}:  # whole numbers that pandas made floating beside a null
        whole = f"WHEN {name} = trunc({name}) THEN {name}::BIGINT"
        problem = "error('a key that is declared as a whole number has digits behind the point')"
        return f"CASE WHEN isnan({name}) THEN NULL {whole} ELSE {problem} END", "BIGINT"
    return "", ""


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
    types: Mapping[str, pa.DataType] | None = None,
) -> Source:
    """Find the files of `source`, read their schema and return it as a table expression.

    Args:
        connection: Reads the schema.
        repo: Folder that relative paths start at.
        source: The data source.
        view: Name of the feature view, for messages.
        types: Column of the source -> the type that is declared for it, where one is.

    Raises:
        SourceError: There is nothing there, or it cannot be read.
    """
    name = view or source.name
    if not isinstance(source, FileSource):
        kind = type(source).__name__
        raise SourceError(name, source.name, f"this store reads FileSource, not {kind}")
    location = FileSource.get_uri_for_file_path(repo_path=repo, uri=source.path)
    declared = {column: _DUCKDB[kind] for column, kind in (types or {}).items() if kind in _DUCKDB}
    is_delta = isinstance(source.file_format, DeltaFormat)
    scan = scan_of(name, location, delta=is_delta, types=declared)
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
