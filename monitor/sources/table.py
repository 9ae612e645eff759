"""A table as a monitor reads it: files, a Delta table, a table of a DuckDB file.

Above `snapshot`; `sources` makes one of what the configuration names. Only what changed is looked
at again: the times that each file spans are kept, so that a bucket reads the files that can have
rows of it, whatever has become of the others.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from time import time_ns
from typing import TYPE_CHECKING

import duckdb

from steadfeast.featurestore.errors import NotFoundError, SourceError
from steadfeast.featurestore.tables import sql
from steadfeast.featurestore.tables.columns import EVENT_TIMESTAMP
from steadfeast.featurestore.tables.locations import (
    delta_table,
    is_hive,
    is_remote,
    local_files,
    nothing,
)
from steadfeast.monitor.sources.snapshot import AT, EPOCH, REQUEST, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from steadfeast.featurestore.tables.total_order import Type

SETTLED_NS = 1_000_000_000
RESERVED = frozenset({REQUEST, AT, EVENT_TIMESTAMP})
"""Columns of our own: a table's columns of these names are not watched."""

_WATCHED = "watched"
_INFINITE = frozenset({"date", "timestamp", "timestamp with time zone"})
"""Types of times that have infinities."""
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_MICROSECOND = timedelta(microseconds=1)
_UNREADABLE = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.IOException,
)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are kept together: a file, or a whole table.

    Attributes:
        first: Least event time in it.
        last: Greatest.
        changed: When it last did; wall clock, seconds since 1970.
    """

    first: datetime
    last: datetime
    changed: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a table is, and what its columns are.

    Attributes:
        view: The feature view that it is of; empty for a table of its own.
        location: Files: a path, a folder, a glob; or a DuckDB file.
        timestamp: Column of the event time.
        table: Table of the DuckDB file; empty for files.
        created: Column of the time from which a row was known; may be empty.
        keys: Names of the join keys.
        features: Names of the features; None takes every other column.
        columns: The source's name of each name that differs from it there.
        personal: Names whose values are somebody's.
        delta: Whether the files are a Delta table's.
    """

    view: str
    location: str
    timestamp: str
    table: str = ""
    created: str = ""
    keys: tuple[str, ...] = ()
    features: tuple[str, ...] | None = None
    columns: Mapping[str, str] | None = None
    personal: frozenset[str] = frozenset()
    delta: bool = False


@dataclass(frozen=True, slots=True)
class _Piece:
    """A file, or a whole table; `stamp` changes whenever it does."""

    path: Path
    stamp: tuple[int, ...]
    changed: float


class Table:
    """Files, a Delta table, or a table of a DuckDB file; safe to share between threads.

    Args:
        shape: What it is.
        only: Columns to keep of its features; empty keeps all.
    """

    def __init__(self, shape: Shape, only: Sequence[str] = ()) -> None:
        self._shape, self._only = shape, frozenset(only)
        self.keys, self.personal = shape.keys, shape.personal
        self._csv = not shape.table and shape.location.lower().endswith(_CSV)
        self._lock = Lock()
        self._spans: dict[_Piece, tuple[int, int] | None] = {}

    def check(self, columns: Sequence[str]) -> None:
        """Refuse a table that cannot be watched, or lacks one of `columns`.

        Raises:
            SourceError: It is missing, has no rows, or no such event time.
            NotFoundError: It has no such column.
        """
        dated = self._dated()
        if not dated:
            raise self._error("there are no rows with an event time")
        newest = max(dated, key=lambda one: one[1].last)[0]
        with duckdb.connect() as con, self._open(con):
            keys, features = self._named(self._types(con, self._scan([newest])))
        known = [name for name, _ in (*keys, *features)]
        for name in columns:
            if name not in known:
                raise NotFoundError(f"column of {self._shape.location}", name, known)

    def latest(self) -> datetime | None:
        """See `Source`."""
        return max((part.last for _, part in self._dated()), default=None)

    def first(self) -> datetime | None:
        """See `Source`."""
        return min((part.first for _, part in self._dated()), default=None)

    def parts(self, start: datetime, end: datetime) -> list[Part]:
        """See `Source`."""
        return [part for _, part in self._dated() if part.first < end and part.last >= start]

    @contextmanager
    def reading(
        self, con: duckdb.DuckDBPyConnection, start: datetime, end: datetime
    ) -> Iterator[Rows | None]:
        """See `Source`."""
        dated = self._dated()
        inside = [one for one, part in dated if part.first < end and part.last >= start]
        if not inside:
            yield None
            return
        with self._open(con):
            yield Rows(self._query(con, inside, start, end))

    # What there is

    def _dated(self) -> list[tuple[_Piece, Part]]:
        """Return each piece with the times that it spans; reads only what has changed."""
        pieces = self._pieces()
        with self._lock:
            new = [piece for piece in pieces if piece not in self._spans]
            kept = {piece: self._spans[piece] for piece in pieces if piece in self._spans}
            if new:
                with duckdb.connect() as con, self._open(con):
                    con.execute("SET enable_progress_bar = false")  # it draws into the log
                    kept |= {piece: self._span(con, piece) for piece in new}
            # What changes within the clock's grain of the last change may not show in its time.
            settled = time_ns() - SETTLED_NS
            self._spans = {
                piece: span for piece, span in kept.items() if piece.changed * 1e9 < settled
            }
        return [
            (piece, Part(instant(span[0]), instant(span[1]), piece.changed))
            for piece, span in kept.items()
            if span is not None
        ]

    def _pieces(self) -> list[_Piece]:
        shape, path = self._shape, Path(self._shape.location)
        if is_remote(shape.location):
            raise self._error("remote files cannot be watched")
        try:
            if shape.table:
                return [_piece(path, path.with_name(path.name + ".wal"))]
            if shape.delta or (path / "_delta_log").is_dir():
                log = max((path / "_delta_log").iterdir(), key=lambda file: file.stat().st_ctime_ns)
                uris = delta_table(shape.view, shape.location).file_uris()
                return [_piece(Path(uri), log) for uri in uris]
            files = local_files(path)
            if not files:
                raise self._error(nothing(path))
            return [_piece(file) for file in files]
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error

    def _span(self, con: duckdb.DuckDBPyConnection, piece: _Piece) -> tuple[int, int] | None:
        """Return the first and last microsecond of a piece's rows; None without any."""
        scan = self._scan([piece])
        time = self._time(self._types(con, scan), self._shape.timestamp)
        name = sql.identifier(time.name)
        micros = sql.micros(name, time.type.id)
        finite = f" WHERE isfinite({name})" if time.type.id in _INFINITE else ""
        query = f"SELECT min({micros}), max({micros}) FROM {scan}{finite}"
        ((first, last),) = con.execute(query).fetchall()
        return None if first is None else (first, last)

    # How it is read

    def _scan(self, pieces: Sequence[_Piece]) -> str:
        shape = self._shape
        if shape.table:
            return ".".join(map(sql.identifier, (_WATCHED, *shape.table.split("."))))
        paths = [piece.path for piece in pieces]
        if self._csv:
            files = ", ".join(sql.literal(str(path)) for path in paths)
            return f"read_csv([{files}], union_by_name = true)"
        root = Path(shape.location)
        return sql.parquet([str(path) for path in paths], hive=is_hive(root, paths))

    def _query(
        self,
        con: duckdb.DuckDBPyConnection,
        pieces: Sequence[_Piece],
        start: datetime,
        end: datetime,
    ) -> str:
        shape, scan = self._shape, self._scan(pieces)
        types = self._types(con, scan)
        time = self._time(types, shape.timestamp)
        created = self._time(types, shape.created) if shape.created else None
        keys, features = self._named(types)
        view = sql.View(
            scan=scan,
            keys=tuple(column for _, column in keys),
            timestamp=time,
            created=created,
            features=tuple(
                (column, name) for name, column in features if not self._only or name in self._only
            ),
            order=tuple(sorted(features, key=lambda one: one[0])) if shape.view else (),
        )
        names = [name for name, _ in keys]
        since, until = _micros(start), _micros(end) - 1
        return sql.history(view, since, until, time=AT, keys=names, once=bool(shape.view))

    def _named(
        self, types: Mapping[str, Type]
    ) -> tuple[list[tuple[str, sql.Column]], list[tuple[str, sql.Column]]]:
        """Return the source's column of each key and of each feature that is there, by name."""
        keys = []
        for name in self._shape.keys:
            column = self._column(types, name)
            if column is None:
                raise self._error("there is no such column", column=name)
            keys.append((name, column))
        asked = self._shape.features
        if asked is None:
            times = {self._shape.timestamp, self._shape.created}
            asked = tuple(name for name in types if name not in times | {*self._shape.keys})
        found = [(name, self._column(types, name)) for name in asked if name not in RESERVED]
        return keys, [(name, column) for name, column in found if column is not None]

    def _types(self, con: duckdb.DuckDBPyConnection, scan: str) -> dict[str, Type]:
        relation = con.sql(f"SELECT * FROM {scan}")
        return dict(zip(relation.columns, relation.types, strict=True))

    def _column(self, types: Mapping[str, Type], name: str) -> sql.Column | None:
        """Return the column that holds `name`; what a file lacks is left out of its rows."""
        there = (self._shape.columns or {}).get(name, name)
        there = there if there in types else name
        return sql.Column(there, types[there]) if there in types else None

    def _time(self, types: Mapping[str, Type], name: str) -> sql.Column:
        column = self._column(types, name)
        if column is None:
            raise self._error(f"there is no such column; there are {', '.join(types)}", column=name)
        if not column.type.id.startswith(("timestamp", "date")):
            raise self._error(f"holds {column.type}, not times", column=name)
        return column

    @contextmanager
    def _open(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach a DuckDB file, and say what is wrong with the table as one error."""
        shape = self._shape
        try:
            if shape.table:
                con.execute(f"ATTACH {sql.literal(shape.location)} AS {_WATCHED} (READ_ONLY)")
            try:
                yield
            finally:
                if shape.table:
                    con.execute(f"DETACH {_WATCHED}")
        except _UNREADABLE as error:
            # A file that cannot be written is not the source's.
            folder = shape.location.partition("*")[0].rpartition("/")[0]
            if isinstance(error, duckdb.IOException) and folder not in str(error):
                raise
            raise self._error(str(error).split("\n", 1)[0]) from error

    def _error(self, problem: str, *, column: str = "") -> SourceError:
        where = f"{self._shape.location}, table {self._shape.table}"
        location = where if self._shape.table else self._shape.location
        return SourceError(self._shape.view, location, problem, column=column)


def _piece(path: Path, *beside: Path) -> _Piece:
    """Return a file as it is now; what lies beside it changes it too."""
    stats = [path.stat(), *(one.stat() for one in beside if one.exists())]
    stamp = tuple(number for one in stats for number in (one.st_ctime_ns, one.st_size, one.st_ino))
    return _Piece(path, stamp, max(one.st_ctime for one in stats))


def _micros(at: datetime) -> int:
    return (at - EPOCH) // _MICROSECOND


def instant(micros: int) -> datetime:
    """Return the instant that is so many microseconds after 1970."""
    return (EPOCH + micros * _MICROSECOND).astimezone(UTC)
