"""The same looks at a part of the rows: where a drift sits, and for whom the model fails.

Above `monitor.drift.detector` and `monitor.performance`. A column of the request or a feature
splits the rows by its values. The largest values of the reference are kept, `MOST` at most, and all
others are one segment, named so: what is shown and exported is bounded by the configuration. A
profile is a monoid, so a segment's window is the sum of its buckets, as the whole is.

Each segment is compared with the reference's own rows of that segment. Limits are those of the
whole, with what fewer rows add: a segment says where a drift sits, and opens no episode.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.drift.detector import detect
from steadfeast.monitor.drift.reference import read_columns
from steadfeast.monitor.performance import judge
from steadfeast.monitor.profiles import Profile, decoded, profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import duckdb

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift.detector import Verdict
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.profiles import Window

MOST = 12
OTHERS = "(others)"
HELD_ROWS = 500_000
FURTHEST = 5
"""Verdicts that are kept of a segment."""

Key = tuple[str, str]
"""A column and one of its values."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of the current window.

    Attributes:
        column: What is split by.
        value: As text; `OTHERS` for the values beyond the largest.
        rows: Of the window.
        furthest: Features and predictions furthest from the reference's own rows of the segment.
        metrics: Of the predictions in it whose labels are in; empty with too few.
        intervals: See `Performance`.
    """

    column: str
    value: str
    rows: int
    furthest: tuple[Verdict, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def segmented(
    con: duckdb.DuckDBPyConnection, reference: Reference, data: Path, config: MonitorConfig
) -> Reference:
    """Return the reference with a profile of each segment of its rows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        reference: Built from `data`.
        data: Rows of the training set.
        config: The monitor.

    Raises:
        NotFoundError: The training set lacks a column that is split by.
    """
    watched = [name for name in reference.features if name in reference.columns]
    found: dict[str, dict[str, Profile]] = {}
    for column in config.segments:
        if column not in reference.columns:
            raise NotFoundError("column of the training set", column, reference.columns)
        counted: Counter[str] = Counter()
        for batch in read_columns(con, data, (column,), in_order=False):
            texts = pc.value_counts(_texts(batch, column))
            pairs = zip(texts.field(0).to_pylist(), texts.field(1).to_pylist(), strict=True)
            counted.update(dict(pairs))
        # Ties by name: neither the order of rows nor the hash decides who is kept.
        order = sorted(counted, key=lambda value: (-counted[value], value))
        kept = order if len(order) <= MOST else order[: MOST - 1]
        blank = Profile.empty(reference.edges)
        columns = tuple(dict.fromkeys((*watched, column)))
        found[column] = dict.fromkeys([*kept, OTHERS] if len(order) > MOST else kept, blank)
        split = replace(reference, segments={column: found[column]})
        counted_in = profiles(read_columns(con, data, columns, in_order=False), split)
        found[column] = {value: one for (_, value), one in counted_in.items()}
    return replace(reference, segments=found)


def profiles(batches: Iterable[pa.RecordBatch], reference: Reference) -> dict[Key, Profile]:
    """Count the rows of each of the reference's segments in one pass over `batches`."""
    blank = Profile.empty(reference.edges)
    found = {
        (column, value): blank for column, parts in reference.segments.items() for value in parts
    }
    held: defaultdict[Key, list[pa.RecordBatch]] = defaultdict(list)

    def count() -> None:
        for key, rows in held.items():
            found[key] = found.get(key, blank) + profile(rows, reference.edges)
        held.clear()

    waiting = 0
    for batch in batches:
        for column, parts in reference.segments.items():
            for value, rows in _split(batch, column, parts):
                held[column, value].append(rows)
        waiting += batch.num_rows
        if waiting > HELD_ROWS:  # counted together, for each call of `profile` has its price
            count()
            waiting = 0
    count()
    return found


def judge_segments(
    reference: Reference,
    current: Mapping[Key, Profile],
    predictions: pa.Table,
    window: Window,
    config: MonitorConfig,
) -> tuple[Segment, ...]:
    """Judge every segment of a window: column by column, the largest first.

    Args:
        reference: With segments.
        current: Of the window, as `profiles` counts them.
        predictions: Of `monitor.performance`, with the columns that are split by.
        window: The current window.
        config: The monitor.
    """
    found = []
    known: defaultdict[str, dict[str, pa.RecordBatch]] = defaultdict(dict)
    for batch in predictions.combine_chunks().to_batches():
        for column, parts in reference.segments.items():
            known[column] |= dict(_split(batch, column, parts))
    for (column, value), now in current.items():
        before = reference.segments[column].get(value)
        furthest: tuple[Verdict, ...] = ()
        if before is not None and before.rows >= config.min_rows and now.rows:
            part = replace(reference, profile=before)
            verdicts = [one for one in detect(part, now, window, config) if one.value is not None]
            furthest = tuple(verdicts[:FURTHEST])
        rows = known[column].get(value)
        live = None if rows is None else judge(pa.Table.from_batches([rows]), window, config)
        found.append(
            Segment(
                column,
                value,
                now.rows,
                furthest,
                {} if live is None else live.metrics,
                {} if live is None else live.intervals,
            )
        )
    order = list(reference.segments)
    return tuple(sorted(found, key=lambda one: (order.index(one.column), -one.rows, one.value)))


def _split(
    batch: pa.RecordBatch, column: str, values: Iterable[str]
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Give the rows of each value that has any; values that are not listed are `OTHERS`."""
    texts, listed = _texts(batch, column), list(values)
    place = pc.index_in(texts, value_set=pa.array(listed, pa.string()))
    for number in pc.unique(place).to_pylist():
        mine = pc.is_null(place) if number is None else pc.equal(place, number)
        rows = batch.filter(pc.fill_null(mine, False))
        value = OTHERS if number is None else listed[number]
        yield value, rows


def _texts(batch: pa.RecordBatch, column: str) -> pa.Array:
    """Return a column's values as text, null as `(null)`; so is a column that is not there."""
    if column not in batch.schema.names:
        return pa.array(["(null)"] * batch.num_rows, pa.string())
    return pc.fill_null(decoded(batch.column(column)).cast(pa.string()), "(null)")
