"""Broken data: what must stop a retraining rather than start one.

Above `monitor.drift.detector`. Nulls, columns, ages, volumes and repeated requests; no distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from steadfeast.monitor.drift.reference import PREDICTION
from steadfeast.monitor.profiles.binning import ORDERED
from steadfeast.monitor.sources.snapshot import EPOCH, REQUEST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import duckdb

    from steadfeast.monitor.config.schema import MonitorConfig
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.profiles.binning import ColumnEdges
    from steadfeast.monitor.profiles.profile import ColumnProfile, Profile, Window
    from steadfeast.monitor.sources.snapshot import Snapshot

SUFFIX = "__event_timestamp"
MOST_REPEATED = 0.01
"""Share of a bucket's requests that may be there more than once: retries, not a second writer."""
VOLUME_FACTOR = 5
"""Times the fewest and the most rows of the window's earlier buckets that are no incident."""
_COMPARABLE_BUCKETS, _COMPARABLE_ROWS = 6, 100


@dataclass(frozen=True, slots=True)
class Figures:
    """Plain figures of one column in one window.

    Attributes:
        feature: Name of the column.
        rows: Rows in which it was there.
        nulls: Nulls.
        null_share: 0 to 1; None without rows.
        nans: NaN; not nulls.
        infinities: Infinite values.
        mistyped: Rows of a type that cannot be compared with the reference.
        unseen: Rows with a category, or a value outside the range, that the reference lacks; of a
            column with more categories than are kept, the rows of all others.
        minimum: Smallest finite value; None without one. So are this and those below of a
            column that is personal: a least value is somebody's.
        maximum: Largest finite value.
        mean: Of the finite values; None without one.
        sd: Standard deviation of the finite values.
    """

    feature: str
    rows: int
    nulls: int
    null_share: float | None
    nans: int
    infinities: int
    mistyped: int
    unseen: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    sd: float | None


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old one feature view's values were when they were served.

    Attributes:
        view: Name of the feature view.
        latest: Latest event timestamp among the values; None if there was no value.
        median_age_seconds: Median age at request time; a request that found nothing counts as
            infinitely old. None when more than half found nothing.
    """

    view: str
    latest: datetime | None
    median_age_seconds: float | None


class IncidentKind(StrEnum):
    """What is broken."""

    NULL_BURST = "null_burst"
    STALE = "stale"
    SCHEMA = "schema"
    MISSING_DATA = "missing_data"
    SURPLUS_DATA = "surplus_data"
    DUPLICATES = "duplicates"


@dataclass(frozen=True, slots=True)
class Incident:
    """One thing that is broken in one window.

    Attributes:
        kind: What.
        subject: The feature, the feature view, the feature service or the table.
        value: What was measured: a share, seconds, rows. None where nothing could be.
        limit: What it was compared with, in the same unit.
        summary: One line for a person.
    """

    kind: IncidentKind
    subject: str
    value: float | None
    limit: float
    summary: str


def figures(profile: Profile) -> list[Figures]:
    """Return the figures of every watched column, in the profile's order."""
    return [
        _figures(name, one, profile.columns[name]) for name, one in profile.edges.columns.items()
    ]


def freshness(con: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> list[Freshness]:
    """Measure every feature view of a snapshot from its `<view>__event_timestamp` column."""
    with pq.ParquetFile(snapshot.path) as file:
        columns = [name for name in file.schema_arrow.names if name.endswith(SUFFIX)]
    if not snapshot.rows or not columns:
        return []
    quoted = ['"' + name.replace('"', '""') + '"' for name in columns]
    # A request that found nothing has an infinite age, so the median says so when most did.
    asked = ", ".join(
        f"epoch_us(max({name})), "
        f"quantile_cont(coalesce(epoch_us(request_time) - epoch_us({name}), 'inf'::DOUBLE), 0.5)"
        for name in quoted
    )
    query = f"SELECT {asked} FROM read_parquet($path)"
    [row] = con.execute(query, {"path": str(snapshot.path)}).fetchall()
    return [
        Freshness(
            name.removesuffix(SUFFIX),
            None if latest is None else EPOCH + timedelta(microseconds=latest),
            age / 1e6 if math.isfinite(age) else None,
        )
        for name, latest, age in zip(columns, row[::2], row[1::2], strict=True)
    ]


def repeats(con: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> int:
    """Return how many rows of a snapshot have the request id of a row before them.

    A snapshot is sorted by it, so that neighbours tell, in bounded memory. Rows of a table answer
    no request.
    """
    if REQUEST not in pq.read_schema(snapshot.path).names:
        return 0
    query = (
        "SELECT count(*) FILTER (request_id = before) FROM ("
        "SELECT request_id, lag(request_id) OVER () AS before FROM read_parquet($path))"
    )
    ((many,),) = con.execute(query, {"path": str(snapshot.path)}).fetchall()
    return int(many)


def incidents(
    reference: Reference | None,
    current: Profile,
    freshness: Sequence[Freshness],
    config: MonitorConfig,
    window: Window,
    *,
    repeated: int = 0,
    earlier: Sequence[int] = (),
) -> list[Incident]:
    """Say what is broken in `current`; an empty list is good news.

    Meant for the newest bucket rather than the whole window: a day without values is an
    incident that day, not once it has filled a week.

    Args:
        reference: What is normal; without one only freshness can be judged.
        current: The bucket, over the reference's edges.
        freshness: Of the same bucket.
        config: The monitor.
        window: The bucket.
        repeated: Rows of it whose request is there more than once.
        earlier: Rows of the buckets before it, to compare its own with.
    """
    found: list[Incident] = []
    if current.rows:
        found += _volume(current.rows, earlier, config) + _repeated(current.rows, repeated, config)
    if reference is not None:
        if not current.rows:
            return _missing(reference, config, window)
        for name in reference.features:
            if reference.edges.columns[name].source:  # said of the column itself
                continue
            # An application may log no predictions, and a new model none yet.
            if name == PREDICTION and config.service:
                continue
            found += _schema(reference, current, name)
            found += _null_burst(reference, current, name, config)
    if current.rows:
        found += _stale(freshness, config)
    return found


def _figures(name: str, edges: ColumnEdges, column: ColumnProfile) -> Figures:
    counts, ordered = column.counts, edges.kind in ORDERED
    ends = counts[[0, -1]] if len(counts) > 1 and ordered else counts[-1:]
    measured = ordered and column.finite > 0 and not edges.personal
    return Figures(
        feature=name,
        rows=column.rows,
        nulls=column.nulls,
        null_share=column.null_share,
        nans=column.nans,
        infinities=column.infinities,
        mistyped=column.mistyped,
        unseen=int(ends.sum()),
        minimum=None if edges.personal else column.minimum,
        maximum=None if edges.personal else column.maximum,
        mean=column.mean if measured else None,
        sd=column.sd if measured else None,
    )


def _missing(reference: Reference, config: MonitorConfig, window: Window) -> list[Incident]:
    """No rows are an incident where the reference had some in every bucket."""
    if not reference.quietest:
        return []
    what, normal = ("requests", "training set") if config.service else ("rows", "reference")
    text = (
        f"no {what} from {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M}; "
        f"the {normal} has {reference.quietest} rows or more in every such stretch"
    )
    return [Incident(IncidentKind.MISSING_DATA, config.subject, 0.0, 1.0, text)]


def _volume(rows: int, earlier: Sequence[int], config: MonitorConfig) -> list[Incident]:
    """Rows in quite another number than the quietest and the busiest of the buckets before."""
    fewest = min(earlier, default=0)
    if len(earlier) < _COMPARABLE_BUCKETS or fewest < _COMPARABLE_ROWS:
        return []
    least, most = fewest / VOLUME_FACTOR, float(max(earlier) * VOLUME_FACTOR)
    if rows < least:
        text = f"{rows} rows; the quietest of the {len(earlier)} buckets before has {fewest}"
        return [Incident(IncidentKind.MISSING_DATA, config.subject, float(rows), least, text)]
    if rows > most:
        text = f"{rows} rows; the busiest of the {len(earlier)} buckets before has {max(earlier)}"
        return [Incident(IncidentKind.SURPLUS_DATA, config.subject, float(rows), most, text)]
    return []


def _repeated(rows: int, repeated: int, config: MonitorConfig) -> list[Incident]:
    share = repeated / rows
    if share <= MOST_REPEATED:
        return []
    text = f"{repeated} of {rows} rows repeat the request of another row"
    return [Incident(IncidentKind.DUPLICATES, config.subject, share, MOST_REPEATED, text)]


def _schema(reference: Reference, current: Profile, name: str) -> list[Incident]:
    column, kind = current.columns[name], reference.edges.columns[name].kind
    absent = current.rows - column.rows
    if absent:
        text = f"{name} is not there in {absent} of {current.rows} rows"
        return [Incident(IncidentKind.SCHEMA, name, float(absent), 0.0, text)]
    if column.mistyped:
        types = " and ".join(current.types[name])
        text = f"{name} is {types}, which cannot be read as {kind}"
        return [Incident(IncidentKind.SCHEMA, name, float(column.mistyped), 0.0, text)]
    return []


def _null_burst(
    reference: Reference, current: Profile, name: str, config: MonitorConfig
) -> list[Incident]:
    old, new = reference.profile.columns[name].null_share, current.columns[name].null_share
    if old is None or new is None or current.columns[name].rows < config.min_rows:
        return []
    limit = old + config.max_null_increase
    if new <= limit:
        return []
    where = "training set" if config.service else "reference"
    text = f"{new:.0%} of {name} are null; {old:.0%} are in the {where}"
    return [Incident(IncidentKind.NULL_BURST, name, new, limit, text)]


def _stale(freshness: Sequence[Freshness], config: MonitorConfig) -> list[Incident]:
    found = []
    for one in freshness:
        limit = config.max_age.get(one.view)
        if limit is None:
            continue
        age = one.median_age_seconds
        if age is not None and age <= limit.total_seconds():
            continue
        text = (
            f"more than half of the requests found no value in {one.view}"
            if age is None
            else f"{one.view} was {timedelta(seconds=round(age))} old at the median, "
            f"{limit} at most is expected"
        )
        found.append(Incident(IncidentKind.STALE, one.view, age, limit.total_seconds(), text))
    return found
