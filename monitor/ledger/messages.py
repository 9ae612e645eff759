"""What the monitor knows, as protobuf.

Above `state`; `ledger` keeps and `server` sends what is made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from steadfeast.monitor.decisions import AlertKind, EpisodeKind, Severity, TriggerState
from steadfeast.protos.steadfeast.v1 import monitor_pb2, pipeline_pb2
from steadfeast.protos.steadfeast.v1.pipeline_pb2 import RunState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from steadfeast.monitor.decisions import Alert, Trigger
    from steadfeast.monitor.drift import Verdict
    from steadfeast.monitor.ledger.state import (
        AuditEntry,
        EpisodeRecord,
        MonitorState,
        PromotionRecord,
        TriggerRecord,
    )
    from steadfeast.monitor.profiles import Window

CAUSES = {
    EpisodeKind.DRIFT: pipeline_pb2.CAUSE_KIND_DRIFT,
    EpisodeKind.PERFORMANCE: pipeline_pb2.CAUSE_KIND_PERFORMANCE,
    EpisodeKind.SCHEDULE: pipeline_pb2.CAUSE_KIND_SCHEDULE,
    EpisodeKind.ALERT: pipeline_pb2.CAUSE_KIND_ALERT,
}
ALERTS = {
    AlertKind.EPISODE: monitor_pb2.ALERT_KIND_EPISODE,
    AlertKind.TRIGGER: monitor_pb2.ALERT_KIND_TRIGGER,
    AlertKind.RUN: monitor_pb2.ALERT_KIND_RUN,
    AlertKind.DATA_INCIDENT: monitor_pb2.ALERT_KIND_DATA_INCIDENT,
}
SEVERITIES = {
    Severity.INFO: monitor_pb2.SEVERITY_INFO,
    Severity.WARNING: monitor_pb2.SEVERITY_WARNING,
    Severity.CRITICAL: monitor_pb2.SEVERITY_CRITICAL,
}
TRIGGERS = {
    TriggerState.WAITING: monitor_pb2.TRIGGER_STATE_WAITING,
    TriggerState.PENDING: monitor_pb2.TRIGGER_STATE_PENDING,
    TriggerState.DELIVERED: monitor_pb2.TRIGGER_STATE_DELIVERED,
    TriggerState.SUPPRESSED: monitor_pb2.TRIGGER_STATE_SUPPRESSED,
    TriggerState.DEAD: monitor_pb2.TRIGGER_STATE_DEAD,
}
LEVELS = {
    "ok": monitor_pb2.LEVEL_OK,
    "drift": monitor_pb2.LEVEL_DRIFT,
    "insufficient_data": monitor_pb2.LEVEL_INSUFFICIENT_DATA,
    "incident": monitor_pb2.LEVEL_INCIDENT,
}
RUN_STATES = {
    number: name.removeprefix("RUN_STATE_").lower()
    for name, number in RunState.items()
    if number != RunState.RUN_STATE_UNSPECIFIED
}
"""The protocol's number of a run's state to its label."""
ENDED = frozenset(
    {
        pipeline_pb2.RUN_STATE_PROMOTED,
        pipeline_pb2.RUN_STATE_REFUSED,
        pipeline_pb2.RUN_STATE_FAILED,
        pipeline_pb2.RUN_STATE_CANCELLED,
        pipeline_pb2.RUN_STATE_SUCCEEDED,
    }
)
"""States of a run after which nothing more comes."""


def was_promoted(run: pipeline_pb2.Run) -> bool:
    """Return whether a run that ended promoted its challenger, as far as its pipeline says."""
    return run.state in {pipeline_pb2.RUN_STATE_PROMOTED, pipeline_pb2.RUN_STATE_SUCCEEDED}


def state_name(state: pipeline_pb2.RunState.ValueType) -> str:
    """Return the state in one lower-case word, for a person."""
    return pipeline_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower()


def timestamp(at: datetime | None) -> Timestamp | None:
    """Return `at`, exact to the microsecond; None stays None, an unset field."""
    if at is None:
        return None
    message = Timestamp()
    message.FromDatetime(at)
    return message


def window(value: Window) -> pipeline_pb2.Window:
    """Return a window with its rows."""
    return pipeline_pb2.Window(
        start=timestamp(value.start), end=timestamp(value.end), rows=value.rows
    )


def drift(verdict: Verdict) -> pipeline_pb2.FeatureDrift:
    """Return the figures of a verdict; one without a value has 0 for it."""
    return pipeline_pb2.FeatureDrift(
        source=verdict.source,
        feature=verdict.feature,
        statistic=verdict.statistic,
        value=verdict.value or 0.0,
        threshold=verdict.threshold or 0.0,
        impact=verdict.impact or 0.0,
    )


def drifts(verdicts: Iterable[Verdict]) -> list[pipeline_pb2.FeatureDrift]:
    """Return several, in their order."""
    return [drift(verdict) for verdict in verdicts]


def request(monitor: str, model: str, trigger: Trigger) -> pipeline_pb2.TriggerRetrainRequest:
    """Return the request that a fired trigger sends."""
    first, *others = trigger.episodes
    verdicts = [verdict for one in trigger.episodes for verdict in one.features]
    return pipeline_pb2.TriggerRetrainRequest(
        request_id=trigger.request_id,
        model=model,
        contract=first.contract,
        cause=pipeline_pb2.Cause(
            kind=CAUSES[first.kind],
            policy=monitor,
            episode_id=first.episode_id,
            current=window(first.window),
            reference=window(first.reference_window),
            features=drifts(sorted(verdicts, key=lambda one: -abs(one.ratio))),
            summary=first.summary + (f"; and {len(others)} more" if others else ""),
            episode_ids=[one.episode_id for one in trigger.episodes],
        ),
        as_of=timestamp(trigger.at),
    )


def alert(value: Alert) -> monitor_pb2.Alert:
    """Return a committed alert."""
    return monitor_pb2.Alert(
        sequence=value.sequence,
        kind=ALERTS[value.kind],
        severity=SEVERITIES[value.severity],
        monitor=value.monitor,
        episode_ids=list(value.episodes),
        at=timestamp(value.at),
        summary=value.summary,
        features=drifts(value.features),
        resolved=value.resolved,
    )


def episode(value: EpisodeRecord) -> monitor_pb2.Episode:
    """Return an episode."""
    return monitor_pb2.Episode(
        episode_id=value.episode_id,
        monitor=value.monitor,
        kind=CAUSES[value.kind],
        state=(monitor_pb2.EPISODE_STATE_OPEN if value.open else monitor_pb2.EPISODE_STATE_CLOSED),
        opened_at=timestamp(value.opened_at),
        closed_at=timestamp(value.closed_at),
        acknowledged_by=value.acknowledged_by,
        features=drifts(value.features),
        members=[
            monitor_pb2.EpisodeMember(
                drift=drift(one.verdict),
                since=timestamp(one.since),
                resolved_at=timestamp(one.resolved_at),
                unjudged=one.unjudged,
            )
            for one in value.members
        ],
        summary=value.summary,
    )


def trigger(value: TriggerRecord) -> monitor_pb2.Trigger:
    """Return a trigger with its run."""
    return monitor_pb2.Trigger(
        request_id=value.request_id,
        model=value.model,
        state=TRIGGERS[value.state],
        reason=value.reason,
        episode_ids=value.episode_ids,
        decided_at=timestamp(value.decided_at),
        attempts=value.attempts,
        run=value.run,
    )


def promotion(value: PromotionRecord) -> monitor_pb2.Promotion:
    """Return a promotion that no trigger asked for."""
    return monitor_pb2.Promotion(
        monitor=value.monitor, noticed_at=timestamp(value.noticed_at), run=value.run
    )


def audit(value: AuditEntry) -> monitor_pb2.AuditEntry:
    """Return an entry of the audit log."""
    return monitor_pb2.AuditEntry(
        sequence=value.sequence,
        at=timestamp(value.at),
        actor=value.actor,
        act=value.act,
        subject=value.subject,
        remark=value.remark,
    )


def status(value: MonitorState) -> monitor_pb2.MonitorStatus:
    """Return where a monitor stands."""
    reference = value.reference
    return monitor_pb2.MonitorStatus(
        monitor=value.name,
        model=value.model,
        watermark=timestamp(value.watermark),
        verdicts=[
            monitor_pb2.Verdict(
                drift=drift(verdict),
                level=LEVELS[verdict.level],
                reason=verdict.reason,
                current=window(verdict.window),
            )
            for verdict in value.verdicts
        ],
        contract="" if reference is None else reference.contract,
        model_version="" if reference is None else reference.model_version,
        reference_uri="" if reference is None else reference.uri,
        performance=None if value.performance is None else value.performance.metrics,
        incidents=[
            monitor_pb2.DataIncident(
                kind=one.incident.kind,
                subject=one.incident.subject,
                summary=one.incident.summary,
                opened_at=timestamp(one.opened_at),
            )
            for one in value.incidents
        ],
        blocked=value.blocked,
        superseded=value.superseded,
        waits_for=value.waits_for,
        open_until=timestamp(value.open_until),
        late_rows=value.late_rows,
        damaged=value.damaged,
        withheld=value.last.withheld if value.last else "",
        quarantined=[
            monitor_pb2.Quarantined(
                fault=one.fault,
                rows=one.rows,
                file=one.file,
                column=one.column,
                example=one.example,
                summary=one.summary,
            )
            for one in (value.last.quarantined if value.last else ())
        ],
        columns=[
            monitor_pb2.WatchedColumn(
                name=one.name, role=one.role, watched_by=one.watched_by, features=one.features
            )
            for one in value.columns
        ],
        figures=[_figure(value, name) for name in _figure_names(value)],
        segments=[
            monitor_pb2.Segment(
                column=one.column,
                value=one.value,
                rows=one.rows,
                furthest=drifts(one.furthest),
                live=one.metrics.get(value.metric),
            )
            for one in value.segments
        ],
    )


def _figure_names(value: MonitorState) -> list[str]:
    """Return the figures that anything is known of, the one that decides first."""
    live = {} if value.performance is None else value.performance.metrics
    expected = {} if value.reference is None else value.reference.performance
    known = sorted({*live, *value.estimated, *expected})
    return sorted(known, key=lambda name: name != value.metric)


def _figure(value: MonitorState, name: str) -> monitor_pb2.Figure:
    live, intervals = (
        ({}, {})
        if value.performance is None
        else (
            value.performance.metrics,
            value.performance.intervals,
        )
    )
    low, high = intervals.get(name, (None, None))
    expected = {} if value.reference is None else value.reference.performance
    return monitor_pb2.Figure(
        name=name,
        live=live.get(name),
        low=low,
        high=high,
        expected=expected.get(name),
        estimated=value.estimated.get(name),
        estimate_error=value.estimate_errors.get(name),
    )
