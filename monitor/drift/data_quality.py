"""Broken data: what must stop a retraining rather than start one.

Above `monitor.drift.detector`. Nulls, columns, ages, volumes and repeated requests; no distances.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from scipy.stats import binom

from steadfeast.featurestore.tables import EPOCH, identifier
from steadfeast.monitor.drift.data_facts import WHOLE_ROWS, DataFacts
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.drift.reference import PREDICTION
from steadfeast.monitor.profiles import ORDERED, ColumnKind
from steadfeast.monitor.sources import REQUEST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import duckdb

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift.data_facts import Volume
    from steadfeast.monitor.drift.detector import Verdict
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.profiles import ColumnEdges, ColumnProfile, Edges, Profile, Window
    from steadfeast.monitor.sources import Quarantined, Snapshot

SUFFIX = "__event_timestamp"
MOST_REPEATED = 0.01
"""Share of a bucket's requests that may be there more than once: retries, not a second writer."""
VOLUME_FACTOR = 5
"""Times the fewest and the most rows of the window's earlier buckets that are no incident."""
MUCH_QUARANTINED = 0.01
"""Share of a bucket's rows in quarantine, over the reference's own, that is no incident."""
NEARLY_EMPTY = 0.95
"""Share without a value from which on a column is one that nobody fills."""
_COMPARABLE_BUCKETS, _COMPARABLE_ROWS = 6, 100
_BY_CHANCE = 1e-4
"""Chance of a burst of nulls in few rows that is no incident."""


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
    QUARANTINE = "quarantine"
    NEW_COLUMN = "new_column"
    FILLED = "filled"


INFORMATIVE = frozenset({IncidentKind.NEW_COLUMN, IncidentKind.FILLED})
"""What is told but breaks nothing: no reason to hold back a retraining."""

SPOILS = frozenset({IncidentKind.NULL_BURST, IncidentKind.SCHEMA, IncidentKind.QUARANTINE})
"""What leaves nothing of a column to be judged."""


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """What is known of a bucket beside its profile.

    Attributes:
        repeats: Rows that are there before, by what should be unique; see `data_facts`. The
            requests of a served log as `REQUEST`.
        earlier: Rows of the buckets of the window before it.
        volume: How many rows it should have; None where that is not known.
        absent: Columns of the reference that it lacks, among those that are not watched.
        new: Columns that neither the reference nor the bucket before has.
        renamed: Of a column that is gone the new one that holds its values.
        quarantined: What could not be read.
    """

    repeats: Mapping[str, int] = field(default_factory=dict)
    earlier: Sequence[int] = ()
    volume: Volume | None = None
    absent: Sequence[str] = ()
    new: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    quarantined: Sequence[Quarantined] = ()


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
    quoted = [identifier(name) for name in columns]
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


def repeated_requests(con: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> int:
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
    facts: BucketFacts | None = None,
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
        facts: What else is known of it.
    """
    facts = facts or BucketFacts()
    usual = DataFacts() if reference is None else reference.facts
    found = _quarantine(current.rows, facts.quarantined, usual, config)
    if not current.rows:
        return found + _missing(reference, config, window, facts)
    found += _volume(current.rows, facts, config)
    found += _repeated(current.rows, facts.repeats, usual, config)
    if reference is not None:
        found += _columns(reference, current, config, facts)
    return found + _stale(freshness, config)


def spared(
    verdicts: Sequence[Verdict], broken: Sequence[Incident], edges: Edges
) -> tuple[Verdict, ...]:
    """Return verdicts without those on columns whose data are broken: they are no drift."""
    of = {one.subject: one for one in broken if one.kind in SPOILS}
    return tuple(
        verdict
        if (found := of.get(_column(verdict.feature, edges))) is None
        else replace(verdict, level=Level.INCIDENT, value=None, reason=found.summary)
        for verdict in verdicts
    )


def _column(feature: str, edges: Edges) -> str:
    """Return the column that a feature is computed of, or is."""
    one = edges.columns.get(feature)
    return feature if one is None else one.source or feature


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


def _missing(
    reference: Reference | None, config: MonitorConfig, window: Window, facts: BucketFacts
) -> list[Incident]:
    """No rows are an incident where there always were some, or on this weekday at this hour."""
    if reference is None:
        return []
    what, normal = ("requests", "training set") if config.service else ("rows", "reference")
    text = f"no {what} from {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M}; "
    if reference.quietest:
        text += f"the {normal} has {reference.quietest} rows or more in every such stretch"
    elif facts.volume is not None:
        text += _usually(facts.volume)
    else:
        return []
    return [Incident(IncidentKind.MISSING_DATA, config.subject, 0.0, 1.0, text)]


def _usually(volume: Volume) -> str:
    return f"{volume.whose} has {volume.rows:,.0f} at the median of {volume.alike} before"


def _volume(rows: int, facts: BucketFacts, config: MonitorConfig) -> list[Incident]:
    """Rows in quite another number than on the same weekday at the same hour.

    Where too few of these are known, than in any bucket of the window before.
    """
    volume, earlier = facts.volume, facts.earlier
    if volume is not None:
        least, most = volume.least, volume.most
        few = many = f"{rows:,} rows; {_usually(volume)}"
    elif len(earlier) < _COMPARABLE_BUCKETS or min(earlier) < _COMPARABLE_ROWS:
        return []
    else:
        least, most = min(earlier) / VOLUME_FACTOR, float(max(earlier) * VOLUME_FACTOR)
        before = f"of the {len(earlier)} buckets before has"
        few = f"{rows} rows; the quietest {before} {min(earlier)}"
        many = f"{rows} rows; the busiest {before} {max(earlier)}"
    if rows < least:
        return [Incident(IncidentKind.MISSING_DATA, config.subject, float(rows), least, few)]
    if rows > most:
        return [Incident(IncidentKind.SURPLUS_DATA, config.subject, float(rows), most, many)]
    return []


def _repeated(
    rows: int, repeats: Mapping[str, int], usual: DataFacts, config: MonitorConfig
) -> list[Incident]:
    """Rows that are there more than once, where few were; the plainest way to say so is enough."""
    for name, many in repeats.items():
        before = usual.repeats.get(name, 0.0)
        # Where some always repeat, all that come twice are nearer to "all repeat" than to that.
        limit = before + (MOST_REPEATED if before < MOST_REPEATED else (1 - before) / 4)
        if many / rows > limit:
            named = {WHOLE_ROWS: "are the same as", REQUEST: "repeat the request of"}
            what = f"{named.get(name, f'repeat {name} of')} another row"
            text = f"{many} of {rows} rows {what}"
            return [Incident(IncidentKind.DUPLICATES, config.subject, many / rows, limit, text)]
    return []


def _quarantine(
    rows: int, quarantined: Sequence[Quarantined], usual: DataFacts, config: MonitorConfig
) -> list[Incident]:
    """Rows that cannot be read, if they are many; a file or a column that cannot always is."""
    limit = usual.quarantined + MUCH_QUARANTINED
    much = [
        (one.rows / max(one.of, rows, 1) if one.rows else 1.0, one)
        for one in quarantined
        if not one.rows or one.rows > limit * max(one.of, rows)
    ]
    if not much:
        return []
    share, worst = max(much, key=lambda pair: pair[0])
    more = f" and {len(much) - 1} more" if len(much) > 1 else ""
    subject = worst.column or config.subject
    return [Incident(IncidentKind.QUARANTINE, subject, share, limit, worst.summary + more)]


def _columns(
    reference: Reference, current: Profile, config: MonitorConfig, facts: BucketFacts
) -> list[Incident]:
    unreadable = {one.column for one in facts.quarantined if one.column and not one.rows}
    found: list[Incident] = []
    for name in facts.absent:
        text = f"{name} is not there in {current.rows} of {current.rows} rows"
        found.append(Incident(IncidentKind.SCHEMA, name, float(current.rows), 0.0, text))
    for name in reference.features:
        if reference.edges.columns[name].source:  # said of the column itself
            continue
        # An application may log no predictions, and a new model none yet.
        if (name == PREDICTION and config.service) or name in unreadable:
            continue
        found += _schema(reference, current, name, facts.renamed)
        found += _null_burst(reference, current, name, config)
        found += _filled(reference, current, name, config)
    renamed = set(facts.renamed.values())
    for name in facts.new:
        if name not in renamed:
            text = f"{name} is a new column; nothing is known of it until the reference moves"
            found.append(Incident(IncidentKind.NEW_COLUMN, name, None, 0.0, text))
    return found


def _schema(
    reference: Reference, current: Profile, name: str, renamed: Mapping[str, str]
) -> list[Incident]:
    column, kind = current.columns[name], reference.edges.columns[name].kind
    absent = current.rows - column.rows
    if absent:
        text = f"{name} is not there in {absent} of {current.rows} rows"
        if name in renamed:
            text += f"; the new column {renamed[name]} holds values like its"
        return [Incident(IncidentKind.SCHEMA, name, float(absent), 0.0, text)]
    types = " and ".join(current.types.get(name, ()))
    if column.mistyped:
        text = f"{name} is {types}, which cannot be read as {kind}"
        return [Incident(IncidentKind.SCHEMA, name, float(column.mistyped), 0.0, text)]
    was = reference.profile.types.get(name, ())
    families = {_family(one) for one in was}, {_family(one) for one in current.types.get(name, ())}
    if kind is ColumnKind.OPAQUE and not families[1] <= families[0] | {"null"} and was != ("null",):
        text = f"{name} is {types}, was {' and '.join(was)}"
        return [Incident(IncidentKind.SCHEMA, name, float(column.rows), 0.0, text)]
    return []


def _family(arrow: str) -> str:
    """Return what an Arrow type is alike to, by its name: widths and units do not matter."""
    head = re.split(r"[<\[(]", arrow, maxsplit=1)[0].removeprefix("large_")
    if re.fullmatch(r"u?int\d+|float|double|halffloat|decimal\d+", head):
        return "number"
    head = {"fixed_size_list": "list", "fixed_size_binary": "binary"}.get(head, head)
    return re.sub(r"\d+", "", head)


def _null_burst(
    reference: Reference, current: Profile, name: str, config: MonitorConfig
) -> list[Incident]:
    """Many more rows without a number than there were: null, NaN and infinite are alike here."""
    old, new = reference.profile.columns[name], current.columns[name]
    if not old.rows or not new.rows:
        return []
    limit = old.without_value / old.rows + config.max_null_increase
    share = new.without_value / new.rows
    if share <= limit:
        return []
    if new.rows < config.min_rows and binom.sf(new.without_value - 1, new.rows, limit) > _BY_CHANCE:
        return []
    where = "training set" if config.service else "reference"
    kinds = {"null": new.nulls, "NaN": new.nans, "infinite": new.infinities}
    what = " or ".join(word for word, many in kinds.items() if many)
    text = (
        f"{share:.0%} of {name} are {what}; {old.without_value / old.rows:.0%} are in the {where}"
    )
    return [Incident(IncidentKind.NULL_BURST, name, share, limit, text)]


def _filled(
    reference: Reference, current: Profile, name: str, config: MonitorConfig
) -> list[Incident]:
    """A column that nobody filled has values now."""
    old, new = reference.profile.columns[name], current.columns[name]
    if not old.rows or not new.rows or old.without_value < NEARLY_EMPTY * old.rows:
        return []
    was, share = 1 - old.without_value / old.rows, 1 - new.without_value / new.rows
    limit = was + config.max_null_increase
    if share <= limit:
        return []
    text = f"{share:.0%} of {name} have a value; {was:.0%} have one in the reference"
    return [Incident(IncidentKind.FILLED, name, share, limit, text)]


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
