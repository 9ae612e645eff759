"""A table as a monitor reads it: files, a Delta table, a table of a DuckDB file.

Above `snapshot`, `spans` and `delimited`; `sources` makes one of what the configuration names.
Only what changed is looked at again: the times that each file spans are kept, so that a bucket
reads the files that can have rows of it, whatever has become of the others.

What cannot be read is put aside and told of, file by file, column by column and, in CSV, cell by
cell; the rest is read. Only where nothing is left, or the table is not there, is it an error.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from time import time_ns
from types import MappingProxyType
from typing import TYPE_CHECKING

import duckdb

from steadfeast.featurestore.errors import NotFoundError, SourceError
from steadfeast.featurestore.tables import (
    EPOCH,
    EVENT_TIMESTAMP,
    delta_table,
    is_hive,
    is_remote,
    local_files,
    nothing,
    sql,
)
from steadfeast.monitor.sources import delimited
from steadfeast.monitor.sources.quarantine import Fault, Quarantined, shortened
from steadfeast.monitor.sources.snapshot import AT, REQUEST, RowQuery
from steadfeast.monitor.sources.spans import Span, believed, inside, joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from steadfeast.featurestore.tables import Type

SETTLED_NS = 1_000_000_000
RESERVED = frozenset({REQUEST, AT, EVENT_TIMESTAMP})
"""Columns of our own: a table's columns of these names are not watched."""

_WATCHED = "watched"
_TIMES = ("timestamp", "date")
_INFINITE = frozenset({"date", "timestamp", "timestamp with time zone"})
"""Types of times that have infinities."""
_MICROSECOND, _DAY_MICROS = timedelta(microseconds=1), 86_400_000_000
_EARLIEST, _LATEST = (
    (datetime(year, 1, 1, tzinfo=UTC) - EPOCH) // _MICROSECOND for year in (2, 9999)
)
"""Microseconds of what Python's dates hold, with room to add a bucket."""
_EXACT = {
    "hugeint": "TRY_CAST({} AS DECIMAL(38, 0))",
    "uhugeint": "TRY_CAST({} AS DECIMAL(38, 0))",
    "uuid": "{}::VARCHAR",
    "json": "{}::VARCHAR",
    "interval": "epoch({})",
    "time with time zone": "{}::TIME",
}
"""DuckDB types that Parquet has not, or not exactly, and what is frozen in their place."""
_TRANSIENT = (duckdb.OutOfMemoryException, duckdb.InterruptException)


class AwayError(SourceError):
    """What is watched is not there now, or held by its writer: its buckets wait for it."""


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
class Reading:
    """What a source has of a bucket.

    Attributes:
        rows: The query; None where there are no rows.
        quarantined: What was put aside.
    """

    rows: RowQuery | None
    quarantined: tuple[Quarantined, ...] = ()


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


@dataclass(frozen=True, slots=True)
class _Times:
    """What is known of a piece without its rows at hand.

    Attributes:
        spans: Its rows by time.
        faults: Rows without a usable time, or why the piece cannot be read.
        error: The same as an exception; None where it can.
    """

    spans: tuple[Span, ...] = ()
    faults: tuple[Quarantined, ...] = ()
    error: SourceError | None = None


class Table:
    """Files, a Delta table, or a table of a DuckDB file; safe to share between threads.

    Args:
        shape: What it is.
        only: Columns to keep of its features; empty keeps all.
    """

    def __init__(self, shape: Shape, only: Sequence[str] = ()) -> None:
        self._shape, self._only = shape, frozenset(only)
        self.keys, self.personal = shape.keys, shape.personal
        self._csv = not shape.table and delimited.is_delimited(shape.location)
        self._lock = Lock()
        self._times: dict[_Piece, _Times] = {}

    def check(self, columns: Sequence[str]) -> None:
        """Refuse a table that cannot be watched, or lacks one of `columns`.

        Raises:
            SourceError: It is missing, has no rows, or no such event time.
            NotFoundError: It has no such column.
        """
        known = self._known()
        dated = [(times.spans[-1].last, piece) for piece, times in known.items() if times.spans]
        if not dated:
            raise self._error("there are no rows with an event time")
        newest = max(dated, key=lambda one: one[0])[1]
        with _connection() as con, self._open(con):
            keys, features = self._named(self._types(con, self._scan([newest])))
        names = [name for name, _ in (*keys, *features)]
        for name in self._shape.keys:
            if name not in names:
                raise self._error("there is no such column", column=name)
        for name in columns:
            if name not in names:
                raise NotFoundError(f"column of {self._shape.location}", name, names)

    def latest(self) -> datetime | None:
        """See `Source`; rows whose time cannot be believed do not count."""
        groups = self._believed(self._known())
        return groups[-1].last if groups else None

    def first(self) -> datetime | None:
        """See `Source`."""
        groups = self._believed(self._known())
        return groups[0].first if groups else None

    def parts(self, start: datetime, end: datetime) -> list[Part]:
        """See `Source`."""
        return [
            Part(span.first, span.last, piece.changed)
            for piece, times in self._known().items()
            for span in times.spans
            if span.first < end and span.last >= start
        ]

    @contextmanager
    def reading(
        self,
        con: duckdb.DuckDBPyConnection,
        start: datetime,
        end: datetime,
        *,
        types: Mapping[str, str] = MappingProxyType({}),
        carefully: bool = False,
    ) -> Iterator[Reading]:
        """See `Source`."""
        known = self._known()
        pieces = [
            piece
            for piece, times in known.items()
            if any(span.first < end and span.last >= start for span in times.spans)
        ]
        aside = self._aside(known, pieces, start, end)
        if not pieces:
            yield Reading(None, tuple(aside))
            return
        con.execute("SET TimeZone = 'UTC'")
        with self._open(con):
            left_out: set[str] = set()
            if self._csv:
                scan, bad = self._delimited(con, pieces, start, end, types, carefully=carefully)
                aside += bad
            elif carefully:
                pieces, left_out, bad = self._readable(con, pieces, start, end)
                aside += bad
                scan = self._scan(pieces) if pieces else ""
            else:
                scan = self._scan(pieces)
            rows = RowQuery(self._query(con, scan, start, end, left_out)) if scan else None
            yield Reading(rows, tuple(dict.fromkeys(map(self._shown, aside))))

    # What there is

    def _known(self) -> dict[_Piece, _Times]:
        """Return each piece with the times that it has; reads only what has changed.

        Raises:
            SourceError: The table is not there, or none of its pieces can be read.
        """
        pieces = self._pieces()
        with self._lock:
            known = {piece: self._times[piece] for piece in pieces if piece in self._times}
            new = [piece for piece in pieces if piece not in known]
            if new:
                with _connection() as con:
                    known |= {piece: self._looked_at(con, piece) for piece in new}
            # What changes within the clock's grain of the last change may not show in its time.
            settled = time_ns() - SETTLED_NS
            self._times = {
                piece: times for piece, times in known.items() if piece.changed * 1e9 < settled
            }
        errors = [times.error for times in known.values() if times.error is not None]
        if errors and len(errors) == len(known):
            raise errors[0]
        return {piece: known[piece] for piece in pieces}

    def _looked_at(self, con: duckdb.DuckDBPyConnection, piece: _Piece) -> _Times:
        try:
            with self._open(con):
                return self._span(con, piece)
        except SourceError as error:
            if self._csv:
                with suppress(SourceError), self._open(con):
                    return self._span_of_text(con, piece)
            reason = str(error).removeprefix(f"{self._shape.location}: ")
            fault = Quarantined(
                Fault.UNREADABLE_FILE, 0, self._place(piece), example=shortened(reason)
            )
            return _Times((), (fault,), error)

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
                raise self._error(nothing(path), away=True)
            return [_piece(file) for file in files]
        except OSError as error:
            raise self._error(error.strerror or str(error), away=True) from error

    def _span_of_text(self, con: duckdb.DuckDBPyConnection, piece: _Piece) -> _Times:
        """Return the same of a CSV file whose types cannot be guessed."""
        name = self._shape.timestamp
        file = delimited.TextFile(con, piece.path, self._place(piece), name)
        undated = file.undated()
        times = self._span(con, piece, f"({file.typed({})})")
        bad = sum(one.rows for one in undated)
        faults = [
            replace(one, rows=one.rows - bad) if one.fault is Fault.NO_EVENT_TIME else one
            for one in times.faults
        ]
        faults = [one for one in faults if one.rows]
        return _Times(times.spans, (*file.malformed(), *undated, *faults))

    def _span(self, con: duckdb.DuckDBPyConnection, piece: _Piece, scan: str = "") -> _Times:
        """Return the times of a piece's rows, in groups, and the rows that have none."""
        scan = scan or self._scan([piece])
        time = self._time(self._types(con, scan), self._shape.timestamp)
        name = sql.identifier(time.name)
        micros = sql.micros(name, time.type.id)
        finite = f"isfinite({name})" if time.type.id in _INFINITE else "true"
        usable = f"us IS NOT NULL AND us BETWEEN {_EARLIEST} AND {_LATEST}"
        query = (
            f"SELECT CASE WHEN {usable} THEN us // {_DAY_MICROS} END AS day, "
            f"count(*), min(us), max(us), min(shown), count(shown) "
            f"FROM (SELECT CASE WHEN {finite} THEN {micros} END AS us, {name}::VARCHAR AS shown "
            f"FROM {scan}) GROUP BY day ORDER BY day"
        )
        spans, faults = [], []
        found = con.execute(query).fetchall()
        of = sum(rows for _, rows, *_ in found)
        for day, rows, first, last, shown, dated in found:
            if day is not None:
                spans.append(Span(instant(first), instant(last), rows))
                continue
            if dated:
                faults.append(self._fault(Fault.TIME_OUT_OF_RANGE, dated, of, piece, shown))
            if rows > dated:
                faults.append(self._fault(Fault.NO_EVENT_TIME, rows - dated, of, piece))
        return _Times(tuple(joined(spans)), tuple(faults))

    def _fault(
        self, fault: Fault, rows: int, of: int, piece: _Piece, example: str = ""
    ) -> Quarantined:
        place, name = self._place(piece), self._shape.timestamp
        return Quarantined(fault, rows, place, of, name, shortened(example))

    def _shown(self, one: Quarantined) -> Quarantined:
        """Return what is put aside with a digest in place of somebody's value."""
        personal = {(self._shape.columns or {}).get(name, name) for name in self.personal}
        if one.column not in personal | self.personal or not one.example:
            return one
        digest = hashlib.sha256(one.example.encode()).hexdigest()[:12]
        return replace(one, example=f"sha256 {digest}")

    def _place(self, piece: _Piece) -> str:
        """Return a file's path below the folder that is watched, or the table's name."""
        if self._shape.table:
            return f"table {self._shape.table}"
        try:
            return str(piece.path.relative_to(Path(self._shape.location)))
        except ValueError:
            return piece.path.name

    def _believed(self, known: Mapping[_Piece, _Times]) -> list[Span]:
        return believed(span for times in known.values() for span in times.spans)

    def _aside(
        self,
        known: Mapping[_Piece, _Times],
        pieces: Sequence[_Piece],
        start: datetime,
        end: datetime,
    ) -> list[Quarantined]:
        """Return what is put aside of the pieces of a bucket, and of those that may be its."""
        groups = self._believed(known)
        found: list[Quarantined] = []
        for piece in pieces:
            times = known[piece]
            found += times.faults
            of = sum(span.rows for span in times.spans)
            for span in times.spans:
                if not inside(span, groups):
                    example = f"{span.first:%Y-%m-%dT%H:%M:%SZ}"
                    fault = Fault.TIME_OUT_OF_RANGE
                    found.append(self._fault(fault, span.rows, of, piece, example))
        found += _unplaced(known, start, end)
        return found

    # How it is read

    def _scan(self, pieces: Sequence[_Piece]) -> str:
        shape = self._shape
        if shape.table:
            return ".".join(map(sql.identifier, (_WATCHED, *shape.table.split("."))))
        paths = [piece.path for piece in pieces]
        if self._csv:
            return delimited.guessed(paths)
        root = Path(shape.location)
        return sql.parquet([str(path) for path in paths], hive=is_hive(root, paths))

    def _delimited(
        self,
        con: duckdb.DuckDBPyConnection,
        pieces: Sequence[_Piece],
        start: datetime,
        end: datetime,
        types: Mapping[str, str],
        *,
        carefully: bool,
    ) -> tuple[str, list[Quarantined]]:
        """Return CSV files as a table whose columns have `types`, and the cells that do not fit."""
        places = {piece.path: self._place(piece) for piece in pieces}
        return delimited.typed(
            con,
            places,
            self._shape.timestamp,
            (_micros(start), _micros(end)),
            types,
            carefully=carefully,
        )

    def _readable(
        self,
        con: duckdb.DuckDBPyConnection,
        pieces: Sequence[_Piece],
        start: datetime,
        end: datetime,
    ) -> tuple[list[_Piece], set[str], list[Quarantined]]:
        """Return the pieces and columns whose rows of a bucket can be read, and what cannot."""
        good, left_out, aside = [], set(), []
        for piece in pieces:
            scan = self._scan([piece])
            try:
                types = self._types(con, scan)
                time = self._time(types, self._shape.timestamp)
            except (duckdb.Error, SourceError) as error:
                reason = shortened(str(error))
                place = self._place(piece)
                aside.append(Quarantined(Fault.UNREADABLE_FILE, 0, place, example=reason))
                continue
            where = sql.within(time, _micros(start), _micros(end) - 1)
            broken = _broken_columns(con, scan, where, list(types))
            if time.name in broken:
                reason = shortened(broken[time.name])
                place = self._place(piece)
                aside.append(Quarantined(Fault.UNREADABLE_FILE, 0, place, example=reason))
                continue
            good.append(piece)
            left_out |= set(broken)
            aside += [
                Quarantined(
                    Fault.UNREADABLE_COLUMN,
                    0,
                    self._place(piece),
                    column=name,
                    example=shortened(why),
                )
                for name, why in broken.items()
            ]
        return good, left_out, aside

    def _query(
        self,
        con: duckdb.DuckDBPyConnection,
        scan: str,
        start: datetime,
        end: datetime,
        left_out: set[str],
    ) -> str:
        shape = self._shape
        types = self._types(con, scan)
        time = self._time(types, shape.timestamp)
        created = self._time(types, shape.created) if shape.created else None
        keys, features = self._named(types)
        features = [one for one in features if one[1].name not in left_out]
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
        query = sql.history(view, since, until, time=AT, keys=names, once=bool(shape.view))
        inexact = {
            name: _EXACT[kind]
            for name, column in features
            if (kind := str(column.type).lower()) in _EXACT
        }
        kept = {
            name: kind for name, kind in inexact.items() if not self._only or name in self._only
        }
        if not kept:
            return query
        casts = ", ".join(
            f"{kind.format(sql.identifier(name))} AS {sql.identifier(name)}"
            for name, kind in kept.items()
        )
        return f"SELECT * REPLACE ({casts}) FROM ({query})"

    def _named(
        self, types: Mapping[str, Type]
    ) -> tuple[list[tuple[str, sql.Column]], list[tuple[str, sql.Column]]]:
        """Return the source's column of each key and of each feature that is there, by name."""
        keys = []
        for name in self._shape.keys:
            column = self._column(types, name)
            if column is not None:
                keys.append((name, column))
            elif self._shape.view:  # a point-in-time join needs all of them
                raise self._error("there is no such column", column=name)
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
        if not column.type.id.startswith(_TIMES):
            raise self._error(f"holds {column.type}, not times", column=name)
        return column

    @contextmanager
    def _open(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Attach a DuckDB file, and say what is wrong with the table as one error."""
        shape = self._shape
        try:
            if shape.table:
                try:
                    con.execute(f"ATTACH {sql.literal(shape.location)} AS {_WATCHED} (READ_ONLY)")
                except duckdb.Error as error:
                    raise self._error(str(error).split("\n", 1)[0], away=True) from error
            try:
                yield
            finally:
                if shape.table:
                    con.execute(f"DETACH {_WATCHED}")
        except _TRANSIENT:
            raise
        except duckdb.Error as error:
            # A file that cannot be written is not the source's.
            folder = shape.location.partition("*")[0].rpartition("/")[0]
            if isinstance(error, duckdb.IOException) and folder not in str(error):
                raise
            raise self._error(str(error).split("\n", 1)[0]) from error

    def _error(self, problem: str, *, column: str = "", away: bool = False) -> SourceError:
        where = f"{self._shape.location}, table {self._shape.table}"
        location = where if self._shape.table else self._shape.location
        kind = AwayError if away else SourceError
        return kind(self._shape.view, location, problem, column=column)


def _broken_columns(
    con: duckdb.DuckDBPyConnection, scan: str, where: str, names: Sequence[str]
) -> dict[str, str]:
    """Return the columns whose values cannot be read where a condition holds, and why."""
    counted = ", ".join(f"count({sql.identifier(name)})" for name in names)
    try:
        con.execute(f"SELECT {counted} FROM {scan} WHERE {where}").fetchall()
    except _TRANSIENT:
        raise
    except duckdb.Error as error:
        if len(names) == 1:
            return {names[0]: str(error)}
        half = len(names) // 2
        return {
            **_broken_columns(con, scan, where, names[:half]),
            **_broken_columns(con, scan, where, names[half:]),
        }
    return {}


def _unplaced(
    known: Mapping[_Piece, _Times], start: datetime, end: datetime
) -> Iterator[Quarantined]:
    """Yield the unreadable files that may hold rows of [start, end).

    Files are often named in the order of their times. Then one that cannot be read lies between
    those before and after it; else it may have rows of any time.
    """
    listed = list(known.values())
    lasts = [times.spans[-1].last if times.spans else None for times in listed]
    firsts = [times.spans[0].first if times.spans else None for times in listed]
    for place, times in enumerate(listed):
        if times.error is None:
            continue
        low = max((one for one in lasts[:place] if one is not None), default=None)
        high = min((one for one in firsts[place + 1 :] if one is not None), default=None)
        if low is not None and high is not None and low > high:
            low = high = None
        low = start if low is None else max(low, start)
        high = end if high is None else min(high, end)
        # More than the seam between the last row of one file and the first of the next.
        if (high - low) * 2 > end - start:
            yield from times.faults


def _piece(path: Path, *beside: Path) -> _Piece:
    """Return a file as it is now; what lies beside it changes it too."""
    stats = [path.stat(), *(one.stat() for one in beside if one.exists())]
    stamp = tuple(number for one in stats for number in (one.st_ctime_ns, one.st_size, one.st_ino))
    return _Piece(path, stamp, max(one.st_ctime for one in stats))


def _connection() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET enable_progress_bar = false")  # it draws into the log
    return con


def _micros(at: datetime) -> int:
    return (at - EPOCH) // _MICROSECOND


def instant(micros: int) -> datetime:
    """Return the instant that is so many microseconds after 1970."""
    return (EPOCH + micros * _MICROSECOND).astimezone(UTC)
