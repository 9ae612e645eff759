"""The metrics of `monitor.exporter.metrics`, read off the last committed state at each scrape.

Above `metrics` and `state`, below `web`, which serves them. Nothing is kept between scrapes:
what is configured no longer is exported no longer, instead of freezing at its last value, and
what has no value has no sample, never a zero.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from heapq import nlargest
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from steadfeast.measures import MEASURES
from steadfeast.monitor.decisions import EpisodeKind, Outcome, TriggerState
from steadfeast.monitor.drift import STATISTICS, IncidentKind, Level
from steadfeast.monitor.exporter import metrics
from steadfeast.monitor.exporter.metrics import METRICS, Described
from steadfeast.monitor.ledger import RUN_STATES
from steadfeast.monitor.sources import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client import Metric

    from steadfeast.monitor.ledger import MonitorState, State


_THRESHOLD = METRICS[metrics.DRIFT_THRESHOLD]
_RATIO = METRICS[metrics.DRIFT_RATIO]
_LEVEL = METRICS[metrics.DRIFT_LEVEL]
_IMPACT = METRICS[metrics.DRIFT_IMPACT]
_OPENED = METRICS[metrics.DRIFT_OPENED]
_SHARE = METRICS[metrics.FEATURE_SHARE]


class _Exposition:
    """The families of one scrape, made when their first sample comes."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def add(self, name: str, labels: Sequence[str], value: float | datetime | None) -> None:
        """Add a sample; what has no value gets none, a time becomes seconds since 1970."""
        self.add_to(METRICS[name], labels, value)

    def add_to(
        self, described: Described, labels: Sequence[str], value: float | datetime | None
    ) -> None:
        """Add a sample of a metric that may be missing from `METRICS`."""
        if isinstance(value, datetime):
            value = value.timestamp()
        family = self._families.setdefault(described.name, described.family())
        if value is not None and isinstance(family, GaugeMetricFamily | CounterMetricFamily):
            family.add_metric(labels, value)

    def add_summary(self, name: str, labels: Sequence[str], count: int, total: float) -> None:
        """Add what is known of a distribution of which only count and sum are kept."""
        family = self._families.setdefault(name, METRICS[name].family())
        if isinstance(family, SummaryMetricFamily):
            family.add_metric(labels, count_value=count, sum_value=total)

    def families(self) -> Iterator[Metric]:
        """Give the families that have a sample."""
        return (family for family in self._families.values() if family.samples)


class StateCollector(Collector):
    """Renders the last committed state at each scrape.

    Args:
        state: Gives the last committed state, without blocking.
    """

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        """Give every family without a sample, so that registering reads no state."""
        return [one.family() for one in METRICS.values()]

    def collect(self) -> Iterator[Metric]:
        """Give every family that has a sample."""
        state, out = self._state(), _Exposition()
        _daemon(state, out)
        for monitor in state.monitors.values():
            _monitor(monitor, state.project, out)
            _drift(monitor, state, out)
            _performance(monitor, out)
            _audit(monitor, out)
            _consequences(monitor.name, state, out)
        yield from out.families()


def registry(state: Callable[[], State]) -> CollectorRegistry:
    """Return a registry with the metrics of `state` and those of this process."""
    made = CollectorRegistry()
    made.register(StateCollector(state))
    ProcessCollector(registry=made)
    return made


def _daemon(state: State, out: _Exposition) -> None:
    out.add(metrics.BUILD_INFO, [version("steadfeast")], 1)
    out.add(metrics.IDLE, [], state.idle)
    out.add(metrics.LATEST_EVENT, [], state.latest_event)
    out.add(metrics.RELOADS, ["accepted"], state.counters.reloads)
    out.add(metrics.RELOADS, ["rejected"], state.counters.reloads_rejected)
    out.add(metrics.OUTBOX_MESSAGES, [], state.outbox.depth)
    out.add(metrics.OUTBOX_OLDEST, [], state.outbox.oldest)
    out.add(metrics.OUTBOX_ATTEMPTS, [], state.outbox.attempts)
    out.add(metrics.OUTBOX_DEAD, [], state.outbox.dead)
    out.add(metrics.ALERTS, [], max((alert.sequence for alert in state.alerts), default=0))
    for job in state.jobs.values():
        out.add_summary(metrics.JOB_SECONDS, [job.name], job.runs, job.seconds)
        out.add(metrics.JOB_LAST_SECONDS, [job.name], job.last_seconds if job.runs else None)
        out.add(metrics.JOB_FAILURES, [job.name], job.failures)
        out.add(metrics.JOB_MISFIRES, [job.name], job.misfires)
        out.add(metrics.JOB_STARTED, [job.name], job.last_start)
        out.add(metrics.JOB_SUCCEEDED, [job.name], job.last_success)


def _monitor(monitor: MonitorState, project: str, out: _Exposition) -> None:
    label = [monitor.name]
    reference = monitor.reference
    live = (reference.model_version, reference.contract) if reference else ("", "")
    watched = [project, monitor.name, monitor.service, monitor.model]
    out.add(metrics.MONITOR_INFO, [*watched, *live], 1)
    out.add(metrics.MONITOR_WATERMARK, label, monitor.watermark)
    out.add(metrics.MONITOR_LATEST_EVENT, label, monitor.latest_event)
    out.add(metrics.MONITOR_BLOCKED, label, bool(monitor.blocked))
    out.add(metrics.MONITOR_SUPERSEDED, label, monitor.superseded)
    for kind in IncidentKind:
        since = [one.opened_at for one in monitor.incidents if one.incident.kind == kind]
        out.add(metrics.MONITOR_INCIDENTS, [monitor.name, kind], len(since))
        out.add(metrics.MONITOR_INCIDENT_OPENED, [monitor.name, kind], min(since, default=None))
    if monitor.last is not None:
        out.add(metrics.MONITOR_JUDGED, label, monitor.last.judged)
        for fault in Fault:
            aside = [max(one.rows, 1) for one in monitor.last.quarantined if one.fault is fault]
            out.add(metrics.MONITOR_QUARANTINED, [monitor.name, fault], sum(aside))
    left_out = [one.name for one in monitor.columns if not one.features]
    for name in left_out[: metrics.MOST_FEATURES]:
        out.add(metrics.FEATURE_UNWATCHED, [monitor.name, name], 1)
    if monitor.window is not None:
        out.add(metrics.WINDOW_START, label, monitor.window.start)
        out.add(metrics.WINDOW_END, label, monitor.window.end)
        out.add(metrics.WINDOW_ROWS, label, monitor.window.rows)
    if reference is not None:
        out.add(metrics.REFERENCE_START, label, reference.window.start)
        out.add(metrics.REFERENCE_END, label, reference.window.end)
        out.add(metrics.REFERENCE_ROWS, label, reference.window.rows)
    for view in monitor.freshness:
        out.add(metrics.VIEW_LATEST, [monitor.name, view.view], view.latest)
        out.add(metrics.VIEW_AGE, [monitor.name, view.view], view.median_age_seconds)
        limit = monitor.max_age.get(view.view)
        if limit is not None:
            seconds, age = limit.total_seconds(), view.median_age_seconds
            out.add(metrics.VIEW_AGE_LIMIT, [monitor.name, view.view], seconds)
            out.add(metrics.VIEW_STALE, [monitor.name, view.view], age is None or age > seconds)


def _audit(monitor: MonitorState, out: _Exposition) -> None:
    if monitor.audit_interval is not None:
        out.add(metrics.AUDIT_INTERVAL, [monitor.name], monitor.audit_interval.total_seconds())
    if monitor.audit is None:
        return
    out.add(metrics.AUDIT_AT, [monitor.name], monitor.audit.at)
    for check in monitor.audit.checks:
        labels = [monitor.name, check.invariant, check.subject]
        out.add(metrics.AUDIT_HOLDS, labels, check.holds)
        out.add(metrics.AUDIT_VOID, labels, check.void)
        out.add(metrics.AUDIT_CELLS, labels, check.cells)
        kinds = metrics.AUDIT_KINDS.get(check.invariant, ())
        for kind in dict.fromkeys((*kinds, *check.mismatches)):
            out.add(metrics.AUDIT_MISMATCHES, [*labels, kind], check.mismatches.get(kind, 0))
    skews = [
        (cells, (monitor.name, check.invariant, check.subject, feature, kind))
        for check in monitor.audit.checks
        for feature, kinds in check.features.items()
        for kind, cells in kinds.items()
    ]
    for cells, skewed in sorted(skews, key=lambda one: (-one[0], one[1]))[: metrics.MOST_SKEWED]:
        out.add(metrics.AUDIT_SKEW, skewed, cells)


def _drift(monitor: MonitorState, state: State, out: _Exposition) -> None:
    """Add what is known of each feature, of those that matter most; count what is left out."""
    ranked = _ranked(monitor, state)
    shown, spread = set(ranked[: metrics.MOST_FEATURES]), set(ranked[: metrics.MOST_SPREADS])
    heaviest = nlargest(metrics.MOST_IMPACTS, monitor.verdicts, key=lambda one: one.impact or 0.0)
    weighty = {one.feature for one in heaviest}
    left_out = 0
    for exported, samples in (
        (shown, _figures(monitor)),
        (shown, _verdicts(monitor)),
        (shown, _opened(monitor, state)),
        (weighty, _impacts(monitor)),
        (spread, _shares(monitor)),
    ):
        for feature, described, labels, value in samples:
            if feature in exported:
                out.add_to(described, [monitor.name, *labels], value)
            elif value is not None:
                left_out += 1
    out.add(metrics.SERIES_SUPPRESSED, [monitor.name], left_out)


def _ranked(monitor: MonitorState, state: State) -> list[str]:
    """Return the features, those that matter most first.

    Those of open drift stay in sight until it closes, however little they are off by then; of
    the others, what has moved least is left out first.
    """
    open_on = (name for name, *_ in _opened(monitor, state))
    known = dict.fromkeys(
        (*(one.feature for one in monitor.verdicts), *(one.feature for one in monitor.figures))
    )
    return list(dict.fromkeys((*(one for one in open_on if one in known), *known)))


_Sample = tuple[str, Described, list[str], float | None]
"""A feature, a metric, its labels after the monitor's, and its value."""


def _verdicts(monitor: MonitorState) -> Iterator[_Sample]:
    for verdict in monitor.verdicts:
        name, labels = verdict.feature, [verdict.source, verdict.feature]
        if monitor.superseded:  # what was measured is not about the live model
            yield name, _LEVEL, labels, metrics.LEVELS.index(Level.INSUFFICIENT_DATA)
            continue
        ours = STATISTICS.get(verdict.statistic)
        distance = metrics.distance(verdict.statistic, ours.unit if ours else "")
        yield name, distance, labels, verdict.value
        yield name, _THRESHOLD, [*labels, verdict.statistic], verdict.threshold
        judged = verdict.value is not None and verdict.threshold is not None
        yield name, _RATIO, labels, verdict.ratio if judged else None
        yield name, _LEVEL, labels, metrics.LEVELS.index(verdict.level)


def _opened(monitor: MonitorState, state: State) -> Iterator[_Sample]:
    for episode in state.episodes:
        if (
            episode.monitor != monitor.name
            or not episode.open
            or episode.kind is not EpisodeKind.DRIFT
        ):
            continue
        for member in episode.members:
            if member.open:
                verdict = member.verdict
                labels = [verdict.source, verdict.feature]
                yield verdict.feature, _OPENED, labels, member.since.timestamp()


def _impacts(monitor: MonitorState) -> Iterator[_Sample]:
    for one in () if monitor.superseded else monitor.verdicts:
        yield one.feature, _IMPACT, [one.source, one.feature], one.impact


def _figures(monitor: MonitorState) -> Iterator[_Sample]:
    for figures in monitor.figures:
        name, labels = figures.feature, [figures.feature]
        yield name, METRICS[metrics.FEATURE_ROWS], labels, figures.rows
        if figures.rows:
            for metric, count in (
                (metrics.FEATURE_NULLS, figures.nulls),
                (metrics.FEATURE_NANS, figures.nans),
                (metrics.FEATURE_INFINITIES, figures.infinities),
                (metrics.FEATURE_MISTYPED, figures.mistyped),
                (metrics.FEATURE_UNSEEN, figures.unseen),
            ):
                yield name, METRICS[metric], labels, count / figures.rows


def _shares(monitor: MonitorState) -> Iterator[_Sample]:
    for one in monitor.distributions:
        for number, bar in enumerate(one.bars):
            name = f"{number:02} {bar.label}"  # they sort
            yield one.feature, _SHARE, [one.feature, "reference", name], bar.reference
            yield one.feature, _SHARE, [one.feature, "current", name], bar.current


def _performance(monitor: MonitorState, out: _Exposition) -> None:
    label = [monitor.name]
    held_out = monitor.reference.performance if monitor.reference else {}
    live = monitor.performance.metrics if monitor.performance else {}
    for prefix, values in (
        (metrics.PERFORMANCE, live),
        (metrics.PERFORMANCE_REFERENCE, held_out),
        (metrics.PERFORMANCE_ESTIMATED, monitor.estimated),
    ):
        for name, value in values.items():
            ours = MEASURES.get(name)
            if ours is not None or name == monitor.metric:  # a run may tell what we do not know
                described = metrics.figure(prefix, name, ours.unit if ours else "ratio")
                out.add_to(described, label, value)
    for name, error in monitor.estimate_errors.items():
        out.add(metrics.PERFORMANCE_ERROR, [monitor.name, name], error)
    for basis, drop in monitor.drops.items():
        out.add(metrics.PERFORMANCE_DROP, [monitor.name, basis], drop)
    if monitor.performance is not None:
        out.add(metrics.PERFORMANCE_ROWS, label, monitor.performance.labelled)
        out.add(metrics.PERFORMANCE_END, label, monitor.performance.window.end)
        for name, ends in monitor.performance.intervals.items():
            for side, end in zip(("low", "high"), ends, strict=True):
                out.add(metrics.PERFORMANCE_BOUND, [monitor.name, name, side], end)
    for part in monitor.segments:
        labels = [monitor.name, part.column, part.value]
        out.add(metrics.SEGMENT_ROWS, labels, part.rows)
        furthest = part.furthest[0].ratio if part.furthest else None
        out.add(metrics.SEGMENT_RATIO, labels, furthest)
        measured = part.metrics.get(monitor.metric)
        out.add(metrics.SEGMENT_PERFORMANCE, [*labels, monitor.metric], measured)


def _consequences(monitor: str, state: State, out: _Exposition) -> None:
    """Add what came of it: snapshots, episodes, decisions, triggers and runs of one monitor."""
    out.add(metrics.SNAPSHOTS, [monitor], state.counters.snapshots.get(monitor, 0))
    out.add(metrics.SNAPSHOT_ROWS, [monitor], state.counters.rows.get(monitor, 0))
    out.add(metrics.SNAPSHOT_LATE_ROWS, [monitor], state.counters.late_rows.get(monitor, 0))
    out.add(metrics.SNAPSHOTS_DAMAGED, [monitor], len(state.monitors[monitor].damaged))
    episodes = [one for one in state.episodes if one.monitor == monitor and one.open]
    for kind in EpisodeKind:
        mine = [one for one in episodes if one.kind == kind]
        out.add(metrics.EPISODES_OPEN, [monitor, kind], len(mine))
        if mine:
            seen = all(one.acknowledged_by for one in mine)
            out.add(metrics.EPISODE_OPENED, [monitor, kind], min(one.opened_at for one in mine))
            out.add(metrics.EPISODE_ACKNOWLEDGED, [monitor, kind], seen)
    decided = {str(outcome): 0 for outcome in Outcome}
    decided |= {how: n for (name, how), n in state.counters.decisions.items() if name == monitor}
    for outcome, count in decided.items():
        out.add(metrics.DECISIONS, [monitor, outcome], count)
    triggers = [one for one in state.triggers if one.monitor == monitor]
    by_state = Counter(one.state for one in triggers)
    for trigger in TriggerState:
        out.add(metrics.TRIGGERS, [monitor, trigger], by_state[trigger])
    runs = [one.run for one in triggers if one.run is not None]
    for number, name in RUN_STATES.items():
        mine_in = [run for run in runs if run.state == number]
        out.add(metrics.RUNS, [monitor, name], len(mine_in))
        changed = [
            run.updated_at.ToMicroseconds() / 1e6 for run in mine_in if run.HasField("updated_at")
        ]
        out.add(metrics.RUN_CHANGED, [monitor, name], max(changed, default=None))
    tried = next((run for run in runs if run.gates), None)  # triggers come newest first
    for gate in tried.gates if tried is not None else ():
        labels = [monitor, gate.name]
        out.add(metrics.GATE_PASSED, labels, gate.passed)
        out.add(metrics.GATE_VALUE, labels, gate.value)
        out.add(metrics.GATE_LIMIT, labels, gate.limit)
        out.add(metrics.GATE_CHAMPION, labels, gate.champion if gate.HasField("champion") else None)
