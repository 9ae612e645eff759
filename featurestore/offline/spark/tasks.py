"""What executors do: read a part of a source, join a bucket, put a slice of the result together.

Above `blocks` and `faults`. Each task is a DuckDB session of its own, within the configured memory,
that spills; the queries and the join are those of one machine. Nothing here imports pyspark.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from steadfeast.featurestore.errors import ClusterError, SourceError
from steadfeast.featurestore.offline.entities import Entities
from steadfeast.featurestore.offline.join import features_of
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.sources import Source, reading
from steadfeast.featurestore.offline.spark.blocks import blocks, cut, packed, row
from steadfeast.featurestore.offline.spark.faults import sent
from steadfeast.featurestore.tables import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from steadfeast.featurestore.offline.binding import Bound

ROWS = "steadfeast_rows"
"""The table that a source's rows are called in every query that executors run."""

_TO, ENTITIES, SOURCE = "steadfeast_to", 0, 1
_ROW, _TIME = "steadfeast_row", "steadfeast_time"
_BATCH = 500_000


@dataclass(frozen=True)
class Settings:
    """How an executor's DuckDB runs: the offline store's settings, and the driver's version."""

    options: dict[str, Any]
    duckdb_version: str

    @contextmanager
    def session(self, *, remote: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a session as on one machine, with the configured limits, for one task."""
        if duckdb.__version__ != self.duckdb_version:
            raise ClusterError(
                f"an executor has DuckDB {duckdb.__version__}, the driver {self.duckdb_version}: "
                "install the same version on both"
            )
        stand_in: Any = SimpleNamespace(
            offline_store=SimpleNamespace(**self.options), repo_path=None
        )
        with session(stand_in, remote=remote) as connection:
            yield connection


@dataclass(frozen=True)
class Part:
    """Rows `first` to `last` (not included) of a Parquet file; None is all that there are."""

    file: str
    first: int = 0
    last: int | None = None


@dataclass(frozen=True)
class Reading:
    """One source as executors read it.

    Attributes:
        view: The feature view, for messages.
        location: Path or address, for messages.
        columns: Column -> DuckDB type, as the driver found them.
        query: Gives the rows that are wanted of `ROWS`, without any place they go to.
        place: Expression of the partition that a row of `query` goes to.
        kind: What its blocks hold.
        hive: Folders name partitions.
    """

    view: str
    location: str
    columns: Mapping[str, str]
    query: str
    place: str
    kind: int = SOURCE
    hive: bool = False


def read_files(
    reading_: Reading, splits: list[list[Part]], settings: Settings
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task that reads the splits whose numbers it is given."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                with sent(), settings.session() as connection:
                    yield from _rows_of(connection, reading_, splits[number])

    return task


def read_batches(
    reading_: Reading, settings: Settings
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task that takes a source's rows from Spark itself."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with sent(), settings.session() as connection:
            for table in _gathered(batches):
                connection.register("given", table)
                kinds = dict(zip(*_columns(connection, "given"), strict=True))
                _view(connection, [("given", kinds)], reading_)
                yield from _sent_on(connection, reading_)
                connection.unregister("given")

    return task


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Give batches in tables of about `_BATCH` rows."""
    some: list[pa.RecordBatch] = []
    for batch in batches:
        some.append(batch)
        if sum(one.num_rows for one in some) >= _BATCH:
            yield pa.Table.from_batches(some)
            some = []
    if some:
        yield pa.Table.from_batches(some)


def _rows_of(
    connection: duckdb.DuckDBPyConnection, reading_: Reading, parts: list[Part]
) -> Iterator[pa.RecordBatch]:
    with reading(reading_.view, reading_.location):
        scans = []
        for part in parts:
            scan = _scan(part, reading_)
            scans.append((scan, dict(zip(*_columns(connection, scan), strict=True))))
        _view(connection, scans, reading_)
    yield from _sent_on(connection, reading_)


def _scan(part: Part, reading_: Reading) -> str:
    files = [part.file]
    types = {n: t for n, t in reading_.columns.items() if f"{n}=" in part.file}
    scan = sql.parquet(files, hive=reading_.hive, hive_types=types)
    if part.last is None:
        return scan
    numbered = scan[:-1] + ", file_row_number=true)"
    return (
        f"(SELECT * EXCLUDE (file_row_number) FROM {numbered} "
        f"WHERE file_row_number >= {part.first} AND file_row_number < {part.last})"
    )


def _columns(connection: duckdb.DuckDBPyConnection, scan: str) -> tuple[list[str], list[str]]:
    relation = connection.sql(f"SELECT * FROM {scan}")
    return list(relation.columns), [str(kind) for kind in relation.types]


def _view(
    connection: duckdb.DuckDBPyConnection,
    scans: list[tuple[str, dict[str, str]]],
    reading_: Reading,
) -> None:
    """Make `ROWS` of scans whose columns may be fewer, or of other types, than the source's."""
    texts = []
    for scan, have in scans:
        chosen = []
        for name, kind in reading_.columns.items():
            quoted = sql.identifier(name)
            if name not in have:
                chosen.append(f"NULL::{kind} AS {quoted}")
            else:
                chosen.append(quoted if have[name] == kind else f"{quoted}::{kind} AS {quoted}")
        texts.append(f"SELECT {', '.join(chosen)} FROM {scan}")
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {ROWS} AS {' UNION ALL '.join(texts)}")


def _sent_on(connection: duckdb.DuckDBPyConnection, reading_: Reading) -> Iterator[pa.RecordBatch]:
    """Give the wanted rows as blocks to their places."""
    query = f"SELECT *, {reading_.place} AS {_TO} FROM ({reading_.query})"
    if reading_.place != "0":
        query += f" ORDER BY {_TO}"
    with reading(reading_.view, reading_.location):
        for batch in connection.sql(query).to_arrow_reader(_BATCH):
            table = pa.Table.from_batches([batch])
            places = table[_TO].to_numpy().astype(np.int64)
            yield from cut(table.drop_columns(_TO), places, reading_.kind, sort=False)


def place_of(expressions: Iterable[tuple[str, str]], first: int, buckets: int) -> str:
    """Return the expression of the partition that rows of a key go to.

    Keys that a join takes for equal go to one partition, whatever type each side has: numbers
    are compared as such, times by their microsecond.

    Args:
        expressions: `(expression, DuckDB type id)` of each part of the key.
        first: The least partition of the view.
        buckets: How many it has.
    """
    parts = [_hashable(text, kind) for text, kind in expressions]
    if not parts or buckets == 1:
        return str(first)
    return f"({first} + hash({', '.join(parts)}) % {buckets})::INTEGER"


def _hashable(text: str, kind: str) -> str:
    if kind in {"varchar", "enum"}:
        return f"{text}::VARCHAR"
    if kind.startswith("timestamp"):
        return sql.micros(text, kind)
    if kind in {"blob", "boolean", "date"}:
        return text
    return f"{text}::DOUBLE"


@dataclass(frozen=True)
class Joining:
    """One view as executors join it.

    Attributes:
        bound: The view over the table `ROWS`, with types as text: see `Shipped`.
        first: Least partition of its buckets.
        buckets: How many it has.
        number: Its place among the views.
    """

    bound: Shipped
    first: int
    buckets: int
    number: int


@dataclass(frozen=True)
class Shipped:
    """A bound view that can be pickled: DuckDB's types cannot."""

    bound: Bound
    types: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, bound: Bound) -> Shipped:
        """Take the types out of a bound view."""
        return cls(_retyped(bound, str), {k: str(v) for k, v in sql.needed(bound.view).items()})

    def unpacked(self) -> Bound:
        """Return the bound view, over the table `ROWS`."""
        return _retyped(self.bound, duckdb.sqltype)


def _retyped(bound: Bound, change: Callable[[Any], Any]) -> Bound:
    from dataclasses import replace  # noqa: PLC0415 - only here

    view = bound.view

    def column(one: sql.Column) -> sql.Column:
        return sql.Column(one.name, change(one.type))

    view = replace(
        view,
        scan=ROWS,
        keys=tuple(map(column, view.keys)),
        timestamp=column(view.timestamp),
        created=column(view.created) if view.created else None,
        features=tuple((column(c), name) for c, name in view.features),
        order=tuple((name, column(c)) for name, c in view.order),
    )
    # Plain: what the driver knows of the source besides, a Spark frame, cannot be sent.
    source = Source(bound.source.view, bound.source.location, ROWS, {})
    return replace(bound, view=view, source=source)


def join_buckets(
    joinings: list[Joining], settings: Settings, slice_rows: int, *, as_known: bool
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task that joins the buckets of its partition, one after the other.

    It takes blocks sorted by `(to, kind)`, and gives each entity row's features to the slice of
    the result that the row is in; the view's number is the blocks' kind.
    """

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with sent():
            for to, parts in _buckets(blocks(batches)):
                joining = next(j for j in joinings if j.first <= to < j.first + j.buckets)
                with settings.session() as connection:
                    yield from _joined(connection, joining, parts, slice_rows, as_known=as_known)

    return task


def _buckets(
    stream: Iterator[tuple[int, int, pa.Table]],
) -> Iterator[tuple[int, Iterator[tuple[int, pa.Table]]]]:
    from itertools import groupby  # noqa: PLC0415 - only here

    for to, group in groupby(stream, key=lambda block: block[0]):
        yield to, ((kind, table) for _, kind, table in group)


def _joined(
    connection: duckdb.DuckDBPyConnection,
    joining: Joining,
    parts: Iterator[tuple[int, pa.Table]],
    slice_rows: int,
    *,
    as_known: bool,
) -> Iterator[pa.RecordBatch]:
    bound = joining.bound.unpacked()
    asked: list[pa.Table] = []
    fill(connection, joining.bound.types, (t for t in _entities_aside(parts, asked)))
    if not asked:
        return
    table = pa.concat_tables(asked).sort_by(_ROW)
    for part in Entities(table, _TIME).slices(4_000_000):
        rows = part.table[_ROW].to_numpy()
        with reading(bound.name, bound.source.location):
            columns = dict(features_of(connection, part, bound, as_known=as_known))
        found = pa.table({_ROW: part.table[_ROW], **columns})
        yield from cut(found, rows // slice_rows, joining.number, sort=False)


def _entities_aside(
    parts: Iterator[tuple[int, pa.Table]], asked: list[pa.Table]
) -> Iterator[pa.Table]:
    for kind, table in parts:
        if kind == ENTITIES:
            asked.append(table)
        else:
            yield table


def fill(
    connection: duckdb.DuckDBPyConnection, types: Mapping[str, str], tables: Iterator[pa.Table]
) -> None:
    """Make `ROWS` a table of the rows given; DuckDB spills what exceeds its memory."""
    columns = ", ".join(f"{sql.identifier(name)} {kind}" for name, kind in types.items())
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {ROWS} ({columns})")
    for table in tables:
        connection.register("block", table)
        connection.execute(f"INSERT INTO {ROWS} SELECT * FROM block")
        connection.unregister("block")


def query_buckets(
    view: str, types: Mapping[str, str], query: str, settings: Settings
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task that runs a query over the rows of each bucket of its partition."""

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with sent():
            for to, parts in _buckets(blocks(batches)):
                with settings.session() as connection, reading(view, ROWS):
                    fill(connection, types, (table for _, table in parts))
                    for batch in connection.sql(query).to_arrow_reader(_BATCH):
                        yield row(to, SOURCE, pa.Table.from_batches([batch]))

    return task


def assemble(
    names: list[list[str]], slice_rows: int
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the task that puts slices of the result together, rows in the order asked.

    Args:
        names: Names of each view's features, in order of the views' numbers.
        slice_rows: Entity rows in a slice.
    """

    def task(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with sent():
            for to, parts in _buckets(blocks(batches)):
                yield row(to, ENTITIES, _slice(list(parts), names, to * slice_rows))

    return task


def _slice(parts: list[tuple[int, pa.Table]], names: list[list[str]], start: int) -> pa.Table:
    """Return one slice: kind -1 holds entity columns with `_ROW`, kind n view n's features."""
    given = pa.concat_tables([t for kind, t in parts if kind == -1]).sort_by(_ROW)
    result = given.drop_columns(_ROW)
    for number, own in enumerate(names):
        if not own:
            continue
        found = pa.concat_tables([t for kind, t in parts if kind == number])
        if found.num_rows != given.num_rows:
            raise SourceError("", "", "a slice of the result lacks rows: report this as a bug")
        order: NDArray[np.int64] = np.empty(found.num_rows, dtype=np.int64)
        order[found[_ROW].to_numpy() - start] = np.arange(found.num_rows)
        rows = found.drop_columns(_ROW).take(pa.array(order))
        for name in own:
            result = result.append_column(name, rows[name])
    return result


def given_rows(table: pa.Table, first: int) -> pa.Table:
    """Return entity rows with their number in the whole frame."""
    numbers = pa.array(np.arange(first, first + table.num_rows, dtype=np.int64))
    return table.append_column(_ROW, numbers)


def asked_rows(keys: Mapping[str, pa.ChunkedArray], times: pa.ChunkedArray) -> pa.Table:
    """Return what a join needs of entity rows: number, time, and the columns of the keys."""
    return given_rows(pa.table({**keys, _TIME: times}), 0)


__all__ = ["Part", "Reading", "Settings", "packed"]
