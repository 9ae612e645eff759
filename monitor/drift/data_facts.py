"""What the rows of a bucket are like apart from their values: how many, how often the same.

Below `data_quality`, which compares a bucket with these facts of the reference. Reads Parquet
files by DuckDB and gives plain numbers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.tables import EPOCH, identifier, literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import duckdb

    from steadfeast.monitor.sources import Quarantined

WHOLE_ROWS = ""
"""Name of the repeats of whole rows, beside those of keys and of columns."""
WEEK = timedelta(days=7)
WEEKS = 8
"""Weeks back in which the same weekday and hour are looked up."""
FEWEST_ALIKE = 3
"""Buckets of the same weekday and hour that are enough to compare with."""
FEWEST_ROWS = 20
"""Rows that are expected, below which a bucket may as well be empty."""
LEAST_FALL, LEAST_RISE = 3.0, 5.0
"""Times fewer and times more rows that are no incident, however steady the volume was."""
DEVIATIONS = 5.0
"""Standard deviations of the volume's logarithm that are no incident."""
_DAY, _MICROSECOND = timedelta(days=1), timedelta(microseconds=1)
_NORMAL_MAD = 1.4826
_FEWEST_REPEATED_ROWS, _MOSTLY_UNIQUE = 100, 0.01


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Facts of a reference that is a stretch of what is watched.

    Attributes:
        start: Of the first bucket; None without facts.
        rows: Rows of each bucket from there on.
        repeats: Largest share of a bucket's rows that are there before, by `unique_columns`.
        quarantined: Share of the rows that could not be read.
    """

    start: datetime | None = None
    rows: tuple[int, ...] = ()
    repeats: Mapping[str, float] = field(default_factory=dict)
    quarantined: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "start": None if self.start is None else self.start.isoformat()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DataFacts:
        """Return what `to_json` was called on."""
        start = data["start"]
        at = None if start is None else datetime.fromisoformat(start).astimezone(UTC)
        return cls(at, tuple(data["rows"]), dict(data["repeats"]), data["quarantined"])


def unique_columns(
    keys: Sequence[str], identifiers: Sequence[str], time: str
) -> dict[str, tuple[str, ...]]:
    """Return the groups of columns that should name a row, each by its name in `repeats`.

    Args:
        keys: Columns that name entities: of one there should be one row at a time.
        identifiers: Columns of which each value is one row's.
        time: Column of the event time.
    """
    named: dict[str, tuple[str, ...]] = {WHOLE_ROWS: ()}
    if keys:
        named[f"{', '.join(keys)} and time"] = (*keys, time)
    return {**named, **{name: (name,) for name in identifiers}}


def data_facts(
    con: duckdb.DuckDBPyConnection,
    data: Path,
    time: str,
    bucket: timedelta,
    unique: Mapping[str, Sequence[str]],
) -> DataFacts:
    """Return the facts of a reference's rows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        data: Parquet file of the rows.
        time: Column of the event time.
        bucket: Length of a bucket.
        unique: See `unique_columns`; those with a column that the file lacks are left out.
    """
    scan, unique = _scan(con, data, unique)
    counted = ", ".join(_repeated(parts) for parts in unique.values())
    number = f"epoch_us({identifier(time)}) // {bucket // _MICROSECOND}"
    query = f"SELECT {number} AS number, count(*), {counted} FROM {scan} GROUP BY 1 ORDER BY 1"
    found = con.execute(query).fetchall()
    if not found:
        return DataFacts()
    first, last = found[0][0], found[-1][0]
    by_number = {number: rows for number, rows, *_ in found}
    large = [row for row in found if row[1] >= _FEWEST_REPEATED_ROWS] or found
    shares = {name: max(row[2 + i] / row[1] for row in large) for i, name in enumerate(unique)}
    # A single column that repeats anyway, as a customer's number does, names no row.
    names_rows = {
        name: share
        for name, share in shares.items()
        if share < _MOSTLY_UNIQUE or name == WHOLE_ROWS or len(unique[name]) > 1
    }
    return DataFacts(
        EPOCH + first * bucket,
        tuple(by_number.get(number, 0) for number in range(first, last + 1)),
        names_rows,
    )


def quarantined_share(quarantined: Sequence[Quarantined], rows: int) -> float:
    """Return the largest share of rows that one fault, of one column, put aside."""
    sums: dict[tuple[str, str], int] = {}
    for one in quarantined:
        sums[one.fault, one.column] = sums.get((one.fault, one.column), 0) + one.rows
    return max(sums.values(), default=0) / max(rows, 1)


def repeats(
    con: duckdb.DuckDBPyConnection, data: Path, unique: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """Return how many rows of a Parquet file are there before, by name of what should be unique."""
    scan, unique = _scan(con, data, unique)
    counted = ", ".join(_repeated(parts) for parts in unique.values())
    [row] = con.execute(f"SELECT {counted} FROM {scan}").fetchall()
    return dict(zip(unique, map(int, row), strict=True))


def _scan(
    con: duckdb.DuckDBPyConnection, data: Path, unique: Mapping[str, Sequence[str]]
) -> tuple[str, dict[str, Sequence[str]]]:
    """Return a table expression of a file, and the groups of columns that it has."""
    scan = f"read_parquet({literal(str(data))}) AS r"
    there = set(con.sql(f"FROM {scan}").columns)
    return scan, {name: parts for name, parts in unique.items() if there.issuperset(parts)}


def _repeated(parts: Sequence[str]) -> str:
    """Return the expression of how many rows are there before in some columns, or whole.

    A row without a value in the first of them names nothing, and repeats nothing.
    """
    if not parts:
        return "count(*) - count(DISTINCT hash(r))"
    cells = ", ".join(map(identifier, parts))
    named = f"FILTER ({identifier(parts[0])} IS NOT NULL)"
    return f"count(*) {named} - count(DISTINCT hash({cells})) {named}"


@dataclass(frozen=True, slots=True)
class Volume:
    """How many rows a bucket should have.

    Attributes:
        rows: At the median of those that are like it.
        alike: How many those are.
        least: Fewer are an incident.
        most: More are one.
        whose: What they are, in words.
    """

    rows: float
    alike: int
    least: float
    most: float
    whose: str


def expected_volume(
    start: datetime, bucket: timedelta, facts: DataFacts, history: Mapping[datetime, int]
) -> Volume | None:
    """Return how many rows a bucket should have, by buckets of the same weekday and hour.

    How far a bucket may be off is measured on how far those of the reference, or of the history,
    are from the median of their own weekday and hour.

    Args:
        start: Of the bucket.
        bucket: Its length.
        facts: Of the reference.
        history: Rows of earlier buckets by their starts.
    """
    reference = {}
    if facts.start is not None:
        reference = {facts.start + i * bucket: rows for i, rows in enumerate(facts.rows)}
        # The first and the last may be cut by where the reference begins and ends.
        for edge in (min(reference), max(reference)):
            del reference[edge]
    before = {at: rows for at, rows in {**reference, **history}.items() if at < start}
    step = _alike_every(bucket)
    slots: dict[int, list[int]] = {}
    for at, rows in sorted(before.items()):
        slots.setdefault((at - EPOCH) % step // _MICROSECOND, []).append(rows)
    slot = slots.get((start - EPOCH) % step // _MICROSECOND, [])[-WEEKS:]
    if len(slot) < FEWEST_ALIKE:
        return None
    middle = median(slot)
    if middle < FEWEST_ROWS:
        return None
    away = [
        abs(math.log((rows + 0.5) / (median(one) + 0.5)))
        for one in slots.values()
        if len(one) >= FEWEST_ALIKE and median(one) >= FEWEST_ROWS
        for rows in one
    ]
    count = len(slot)
    deviation = _NORMAL_MAD * median(away) * math.sqrt(count / (count - 1))
    # Counting alone varies a volume, and few alike do not know their median well.
    deviation = math.hypot(deviation, 1 / math.sqrt(middle)) * math.sqrt(1 + 1 / count)
    allowed = math.exp(DEVIATIONS * deviation)
    return Volume(
        middle,
        count,
        middle / max(LEAST_FALL, allowed),
        middle * max(LEAST_RISE, allowed),
        _whose(start, bucket),
    )


def _alike_every(bucket: timedelta) -> timedelta:
    """Return how far apart buckets are that are alike: a week, or a bucket that is longer."""
    return WEEK if not WEEK % bucket else bucket


def _whose(start: datetime, bucket: timedelta) -> str:
    if bucket > _DAY:
        return "such a bucket"
    return f"a {start:%A}" if bucket == _DAY else f"a {start:%A} from {start:%H:%M}"
