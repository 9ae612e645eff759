"""Rows of the ledger's file as the values that everybody else knows.

Above `codec`; `ledger` calls these under its lock, in the transaction that it sees fit.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from steadfeast.featurestore.tables import path_of
from steadfeast.measures import measure_named
from steadfeast.monitor.decisions import PolicyState, TriggerState
from steadfeast.monitor.drift import Figures, Freshness, Segment, Verdict
from steadfeast.monitor.ledger.codec import from_json
from steadfeast.monitor.ledger.state import (
    Counters,
    EpisodeRecord,
    MonitorState,
    OutboxState,
    PastWindow,
    PromotionRecord,
    ReferenceInfo,
    TriggerRecord,
)
from steadfeast.monitor.performance import Performance
from steadfeast.monitor.profiles import Distribution, distributions
from steadfeast.monitor.sources import Bucket
from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Outdated, Reference

HISTORY = 60
LISTED = 100


class Execute(Protocol):
    """A query and the values that are bound to it; all rows at once."""

    def __call__(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute it."""


@dataclass(frozen=True, slots=True)
class Position:
    """What a monitor needs to go on from where it stands.

    Attributes:
        watermark: End of the last evaluated bucket; none before the first.
        reference_key: Changes whenever the reference does; empty without one.
        outdated: The reference that another build stored, until it is built anew.
    """

    watermark: datetime | None = None
    policy: PolicyState = field(default_factory=PolicyState)
    reference: Reference | None = None
    reference_key: str = ""
    outdated: Outdated | None = None


@dataclass(frozen=True, slots=True)
class FrozenBucket:
    """One frozen bucket; its profile is kept over the edges of `reference_key`'s reference."""

    bucket: Bucket
    rows: int
    late_rows: int
    path: Path
    frozen_at: datetime
    reference_key: str
    sha256: str = ""


def buckets(
    rows: Execute, folder: Path, monitor: str, start: datetime, end: datetime, *, but: str = ""
) -> list[FrozenBucket]:
    """Return the frozen buckets inside [start, end), in order; none of the reference key `but`.

    Their files are kept as seen from `folder`, which can be moved.
    """
    found = rows(
        "SELECT start_time, end_time, row_count, late_rows, path, frozen_at, reference_key, sha256 "
        "FROM buckets WHERE monitor = ? AND start_time >= ? AND end_time <= ? "
        "AND reference_key <> ? ORDER BY start_time",
        monitor,
        start,
        end,
        but,
    )
    return [
        FrozenBucket(
            Bucket(begin.astimezone(UTC), stop.astimezone(UTC)),
            count,
            late,
            path_of(path, folder),
            frozen_at.astimezone(UTC),
            key,
            digest,
        )
        for begin, stop, count, late, path, frozen_at, key, digest in found
    ]


def monitor(rows: Execute, name: str, config: MonitorConfig, held: Position) -> MonitorState:
    """Return one monitor after its last evaluated window."""
    windows = rows(
        "SELECT past, verdicts, figures, freshness FROM windows WHERE monitor = ? "
        "ORDER BY end_time DESC LIMIT ?",
        name,
        HISTORY,
    )
    history = tuple(from_json(PastWindow, row[0]) for row in reversed(windows))
    reference = held.reference
    asked = config.performance
    figure = None if asked is None else measure_named(asked.metric)
    state = MonitorState(
        name,
        config.service,
        config.model,
        None if config.source is None else (config.kind, config.subject),
        metric="" if figure is None else figure.name,
        max_drop=0.0 if asked is None else asked.max_drop,
        lower_is_better=figure is not None and figure.lower_is_better,
        watermark=held.watermark,
        reference=None if reference is None else _info(reference),
        history=history,
    )
    if held.watermark is None or not windows:
        return state
    _, verdicts, figures, freshness = windows[0]
    window = history[-1].window
    measured = rows(
        "SELECT w.performance FROM windows AS w JOIN spreads AS s "
        "ON s.monitor = w.monitor AND s.end_time = w.end_time "
        "WHERE w.monitor = ? AND w.performance <> '' AND s.reference_key = ? "
        "ORDER BY w.end_time DESC LIMIT 1",
        name,
        held.reference_key,
    )
    spread = rows(
        "SELECT body FROM spreads WHERE monitor = ? AND end_time = ? AND reference_key = ?",
        name,
        window.end,
        held.reference_key,
    )
    parts = rows("SELECT body FROM segments WHERE monitor = ? AND end_time = ?", name, window.end)
    current = bool(spread)
    return replace(
        state,
        window=window,
        verdicts=from_json(tuple[Verdict, ...], verdicts),
        figures=from_json(tuple[Figures, ...], figures),
        freshness=from_json(tuple[Freshness, ...], freshness),
        incidents=tuple(o for o in held.policy.incidents if o.last_seen == held.watermark),
        blocked=held.policy.blocked(held.watermark - config.window),
        performance=from_json(Performance, measured[0][0]) if measured else None,
        estimated=history[-1].estimated if current else {},
        estimate_errors=_errors(history),
        segments=from_json(tuple[Segment, ...], parts[0][0]) if parts and current else (),
        distributions=_spread(reference, spread[0][0] if current else ""),
        superseded=not current,
    )


def episodes(rows: Execute, listed: int = LISTED) -> list[EpisodeRecord]:
    """Return every open episode, then the last `listed` that closed; newest first in each."""
    found = []
    for where, limit in (("NOT closed", 1_000_000), ("closed", listed)):
        found += rows(
            f"SELECT body FROM episodes WHERE {where} ORDER BY opened_at DESC, episode_id LIMIT ?",
            limit,
        )
    return [from_json(EpisodeRecord, body) for (body,) in found]


def triggers(
    rows: Execute,
    request: str = "",
    *,
    limit: int = LISTED,
    monitor: str = "",
    states: Sequence[TriggerState] = (),
) -> list[TriggerRecord]:
    """Return one trigger, or the last ones, newest first; empty arguments leave none out."""
    found = rows(
        "SELECT t.request_id, t.monitor, t.model, t.state, t.reason, t.episode_ids, "
        "t.decided_at, coalesce(o.attempts, 0), t.run "
        "FROM triggers AS t LEFT JOIN outbox AS o USING (request_id) "
        "WHERE ? IN ('', t.request_id) AND ? IN ('', t.monitor) "
        "AND (len(?::VARCHAR[]) = 0 OR list_contains(?::VARCHAR[], t.state)) "
        "ORDER BY t.position DESC LIMIT ?",
        request,
        monitor,
        [state.value for state in states],
        [state.value for state in states],
        limit,
    )
    return [
        TriggerRecord(
            id_,
            name,
            model,
            TriggerState(state),
            reason,
            tuple(episodes),
            decided_at.astimezone(UTC),
            attempts,
            None if run is None else Run.FromString(run),
        )
        for id_, name, model, state, reason, episodes, decided_at, attempts, run in found
    ]


def promotions(rows: Execute) -> list[PromotionRecord]:
    """Return the last promotions that no trigger asked for, newest first."""
    found = rows(
        "SELECT monitor, noticed_at, run FROM promotions ORDER BY noticed_at DESC, rowid DESC "
        "LIMIT ?",
        LISTED,
    )
    return [
        PromotionRecord(name, noticed_at.astimezone(UTC), Run.FromString(run))
        for name, noticed_at, run in found
    ]


def outbox(rows: Execute) -> OutboxState:
    """Return what is still to deliver."""
    ((depth, oldest, attempts, dead),) = rows(
        "SELECT count(*) FILTER (state = 'pending'), "
        "min(committed_at) FILTER (state = 'pending'), coalesce(sum(attempts), 0), "
        "count(*) FILTER (state = 'dead') FROM outbox"
    )
    return OutboxState(depth, utc(oldest), int(attempts), dead)


def counters(rows: Execute) -> Counters:
    """Return the counts over the life of the ledger."""
    totals: defaultdict[str, dict[Any, int]] = defaultdict(dict)
    for name, monitor, label, amount in rows("FROM counters"):
        totals[name][(monitor, label) if name == "decisions" else monitor] = amount
    return Counters(totals["snapshots"], totals["rows"], totals["late_rows"], totals["decisions"])


def utc(value: datetime | None) -> datetime | None:
    """Return a time of the file in UTC proper."""
    return None if value is None else value.astimezone(UTC)


def _errors(history: Sequence[PastWindow]) -> dict[str, float]:
    """Return the newest estimate that labels have caught up with, less what they say."""
    estimates = {past.window.end: past.estimated for past in history}
    for past in reversed(history):
        thought = estimates.get(past.measured_until) if past.measured_until else None
        if thought and past.performance:
            known = past.performance
            return {name: thought[name] - known[name] for name in known if name in thought}
    return {}


def _spread(reference: Reference | None, compared: str) -> tuple[Distribution, ...]:
    """Return what the last window was compared in, or the reference alone, before the first."""
    if compared:
        return from_json(tuple[Distribution, ...], compared)
    return () if reference is None else distributions(reference.profile, None)


def _info(reference: Reference) -> ReferenceInfo:
    return ReferenceInfo(
        reference.uri,
        reference.contract,
        reference.model_version,
        reference.window,
        dict(reference.performance),
        dict(reference.importance),
        reference.edges.watched(reference.profile.types),
    )
