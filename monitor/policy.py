"""From verdicts to decisions: episodes, triage, and whether a retraining fires.

Above `episodes`, below `ledger`, which commits what is decided here. Pure: state and evaluation
in, decision out; no clock, no I/O, no randomness, so that a replay decides the same. Every time
is event time: the end of the window that is judged.

A monitor judges one window per bucket, and windows longer than a bucket overlap. So "k of the
last n windows" asks that a distance lasts over k buckets of new rows; it does not claim k
independent observations. False alarms are held down by the thresholds, which calibration takes
from windows of the same length. A window too small to judge takes its place among the n, counts
as not over, and leaves the count of quiet windows as it was: no data is never "no drift".

An episode has one trigger for its whole life. While something forbids it (an incident, another
run, the cooldown, the budget) it is asked again at each window in which the episode would open
anew, and fires when nothing forbids it any more. Once it fired, whatever the pipeline makes of
it, the episode never fires again: a refused challenger would be refused again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from monitor.detect import Level, Verdict
from monitor.episodes import (
    FINAL,
    Alert,
    AlertKind,
    Closed,
    Decision,
    Episode,
    Evaluation,
    Kind,
    ModelHistory,
    NotDecidableError,
    OpenIncident,
    Outcome,
    PolicyState,
    Severity,
    Trigger,
)
from monitor.measures import measure_named

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from monitor.config import MonitorConfig
    from monitor.quality import Incident

NAMESPACE = UUID("5d1c3a52-6f0e-5b6e-9d0a-0b8f6f0f2a77")
"""Namespace of every id derived here; changing it would fire open episodes again."""

QUIET = 0.8
"""Share of the threshold below which a window counts towards closing an episode."""


def decide(state: PolicyState, evaluation: Evaluation, config: MonitorConfig) -> Decision:
    """Return what follows from one evaluated window.

    A window that does not end after the last one decided changes nothing, so that a clock that
    jumps back, or a bucket that is evaluated again, cannot decide twice.
    """
    at = evaluation.window.end
    if state.watermark is not None and at <= state.watermark:
        return Decision(state)
    draft = _Draft(evaluation.monitor, state)
    _triage(draft, evaluation)
    for kind, verdicts in _evidence(evaluation, config).items():
        _decide_kind(draft, kind, verdicts, evaluation, config)
    return draft.decision()


def approve(
    state: PolicyState, monitor: str, request: str, config: MonitorConfig, history: ModelHistory
) -> Decision:
    """Fire a trigger that waits for a person, as of the last window.

    Raises:
        NotDecidableError: It waits no longer, or triage, cooldown or budget forbid it now.
    """
    draft = _Draft(monitor, state)
    episode, at = _waiting(state, request)
    outcome, reason = _forbidden(draft, at, config, history)
    if outcome is not None:
        raise NotDecidableError(request, f"may not fire now: {outcome}: {reason}")
    draft.outcome(episode, request, Outcome.FIRED, at, "")
    return draft.decision()


def reject(state: PolicyState, monitor: str, request: str, reason: str) -> Decision:
    """Refuse a trigger that waits for a person; its episode never fires.

    Raises:
        NotDecidableError: It waits no longer.
    """
    draft = _Draft(monitor, state)
    episode, at = _waiting(state, request)
    draft.outcome(episode, request, Outcome.REJECTED, at, reason)
    return draft.decision()


def move_reference(state: PolicyState, monitor: str, reason: str) -> Decision:
    """Forget what was measured against the old reference and close its episodes."""
    draft = _Draft(monitor, state)
    for episode in state.episodes.values():
        draft.close(episode, state.watermark or episode.window.end, reason)
    draft.state = replace(draft.state, recent={})
    return draft.decision()


def episode_id(monitor: str, kind: Kind, opened_at: datetime, model_version: str) -> str:
    """Return the id of the episode, the same whenever the same history is judged again."""
    return _uuid("episode", monitor, kind.value, opened_at.isoformat(), model_version)


def request_id(model: str, contract: str, policy: str, episode: str) -> str:
    """Return the id that makes a trigger's effect happen once."""
    return _uuid("trigger", model, contract, policy, episode)


def _uuid(*parts: str) -> str:
    return str(uuid5(NAMESPACE, json.dumps(parts, separators=(",", ":"))))


@dataclass(slots=True)
class _Draft:
    """A decision while it is made."""

    monitor: str
    state: PolicyState
    opened: list[Episode] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)
    triggers: list[Trigger] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)

    def decision(self) -> Decision:
        return Decision(
            self.state,
            tuple(self.opened),
            tuple(self.closed),
            tuple(self.triggers),
            tuple(self.alerts),
        )

    def fired(self) -> str:
        """Return the request that this very decision fires; empty if none."""
        return next((t.request_id for t in self.triggers if t.outcome is Outcome.FIRED), "")

    def keep(self, episode: Episode) -> None:
        self.state = replace(self.state, episodes={**self.state.episodes, episode.kind: episode})

    def open(self, episode: Episode) -> None:
        self.opened.append(episode)
        self.keep(episode)
        self._tell(episode, Severity.WARNING, episode.window.end, episode.summary)

    def close(self, episode: Episode, at: datetime, reason: str) -> None:
        """End an episode; a trigger of it that never fired will not."""
        if episode.outcome is not None and episode.outcome not in FINAL:
            self.outcome(
                episode, episode.request_id, Outcome.EXPIRED, at, f"its episode closed: {reason}"
            )
        self.closed.append(Closed(episode.episode_id, at, reason))
        self._tell(
            episode, Severity.INFO, at, f"closed: {episode.summary}: {reason}", resolved=True
        )
        self.state = replace(
            self.state,
            episodes={k: e for k, e in self.state.episodes.items() if k != episode.kind},
            # What was over before it closed must not help to open the next one.
            recent={k: seen for k, seen in self.state.recent.items() if k != episode.kind},
        )

    def outcome(
        self, episode: Episode, request: str, outcome: Outcome, at: datetime, reason: str
    ) -> None:
        """Write what became of an episode's trigger, once per change."""
        if outcome is episode.outcome:
            return
        episode = replace(episode, outcome=outcome, request_id=request)
        self.keep(episode)
        self.triggers.append(Trigger(request, episode, outcome, at, reason))
        if outcome is Outcome.EXPIRED:
            return  # the alert that tells of the episode's end says it
        self._tell(
            episode,
            Severity.WARNING if outcome is Outcome.WAITING else Severity.INFO,
            at,
            f"retraining {outcome}{': ' + reason if reason else ''} ({episode.summary})",
            AlertKind.TRIGGER,
        )

    def _tell(
        self,
        episode: Episode,
        severity: Severity,
        at: datetime,
        summary: str,
        kind: AlertKind = AlertKind.EPISODE,
        *,
        resolved: bool = False,
    ) -> None:
        self.alerts.append(
            Alert(
                kind,
                severity,
                self.monitor,
                at,
                summary,
                episode.episode_id,
                episode.features,
                resolved,
            )
        )


def _decide_kind(
    draft: _Draft,
    kind: Kind,
    verdicts: tuple[Verdict, ...],
    evaluation: Evaluation,
    config: MonitorConfig,
) -> None:
    at = evaluation.window.end
    over = tuple(_key(verdict) for verdict in verdicts if verdict.level is Level.DRIFT)
    recent = (*draft.state.recent.get(kind, ()), over)[-config.episode.n :]
    draft.state = replace(draft.state, recent={**draft.state.recent, kind: recent})
    lasting = _lasting(verdicts, recent, config)
    episode = draft.state.episodes.get(kind)
    if episode is None:
        if not lasting:
            return
        episode = _episode(kind, lasting, evaluation)
        draft.open(episode)
    else:
        episode = replace(episode, quiet=_quiet(episode.quiet, verdicts))
        draft.keep(episode)
    if episode.quiet >= config.episode.close:
        reason = f"{episode.quiet} windows in a row below {QUIET} of every threshold"
        draft.close(episode, at, reason)
    elif lasting and episode.outcome not in FINAL and config.pipeline is not None:
        request = request_id(config.model, episode.contract, evaluation.monitor, episode.episode_id)
        outcome, reason = _forbidden(draft, at, config, evaluation.history)
        if outcome is None and config.approval == "manual":
            outcome, reason = Outcome.WAITING, "waits for a person"
        draft.outcome(episode, request, outcome or Outcome.FIRED, at, reason)


def _key(verdict: Verdict) -> str:
    return f"{verdict.source}/{verdict.feature}"


def _evidence(evaluation: Evaluation, config: MonitorConfig) -> dict[Kind, tuple[Verdict, ...]]:
    """Return the verdicts that each kind of episode is judged by."""
    drop = _drop(evaluation, config)
    return {Kind.DRIFT: evaluation.verdicts, Kind.PERFORMANCE: () if drop is None else (drop,)}


def _drop(evaluation: Evaluation, config: MonitorConfig) -> Verdict | None:
    """Return how far the live metric fell below the hold-out's, judged against `max_drop`."""
    if config.performance is None or evaluation.performance is None:
        return None
    measure, limit = measure_named(config.performance.metric), config.performance.max_drop
    metric = measure.name
    expected = evaluation.expected.get(metric)
    live = evaluation.performance.metrics.get(metric)
    if expected is None or live is None:
        return None
    drop = measure.drop(expected, live)
    return Verdict(
        source="labels",
        feature=metric,
        statistic="drop",
        value=drop,
        threshold=limit,
        level=Level.DRIFT if drop > limit else Level.OK,
        reason=f"{metric} {live:.3f} live, {expected:.3f} on the hold-out",
        window=evaluation.performance.window,
    )


def _triage(draft: _Draft, evaluation: Evaluation) -> None:
    """Take over what is broken and what has passed, with one alert for each of the two."""
    state, at = draft.state, evaluation.window.end
    before = {(o.incident.kind, o.incident.subject): o for o in state.incidents}
    now = {(i.kind, i.subject): i for i in evaluation.incidents}
    kept: list[OpenIncident] = []
    for key, incident in now.items():
        same = before.get(key)
        # One that was seen in the bucket before is the same; after a pause it is a new one.
        known = same is not None and same.last_seen == state.watermark
        kept.append(OpenIncident(incident, same.opened_at if known and same else at, at))
    gone = [open_ for key, open_ in before.items() if key not in now]
    _tell_incidents(draft, at, [o.incident for o in kept if o.opened_at == at], resolved=False)
    passed = [o.incident for o in gone if o.last_seen == state.watermark]
    _tell_incidents(draft, at, passed, resolved=True)
    # A passed one is kept until its bucket has left the window, because until then it blocks.
    kept += [open_ for open_ in gone if open_.last_seen > evaluation.window.start]
    draft.state = replace(state, incidents=tuple(kept), watermark=at)


def _tell_incidents(
    draft: _Draft, at: datetime, incidents: list[Incident], *, resolved: bool
) -> None:
    if not incidents:
        return
    more = f" and {len(incidents) - 1} more" if len(incidents) > 1 else ""
    draft.alerts.append(
        Alert(
            AlertKind.DATA_INCIDENT,
            Severity.INFO if resolved else Severity.CRITICAL,
            draft.monitor,
            at,
            f"{'passed: ' if resolved else ''}{incidents[0].summary}{more}",
            resolved=resolved,
        )
    )


def _lasting(
    verdicts: Iterable[Verdict], recent: tuple[tuple[str, ...], ...], config: MonitorConfig
) -> tuple[Verdict, ...]:
    """Return what is over now and was in k of the last n windows, worst ratio first."""
    found = [
        verdict
        for verdict in verdicts
        if verdict.level is Level.DRIFT
        and sum(_key(verdict) in over for over in recent) >= config.episode.k
    ]
    return tuple(sorted(found, key=lambda verdict: -verdict.ratio))


def _quiet(before: int, verdicts: tuple[Verdict, ...]) -> int:
    """Return the count of quiet windows after this one."""
    ratios = [verdict.ratio for verdict in verdicts if verdict.level in {Level.OK, Level.DRIFT}]
    if not ratios:
        return before
    return before + 1 if max(ratios) < QUIET else 0


def _episode(kind: Kind, features: tuple[Verdict, ...], evaluation: Evaluation) -> Episode:
    opened_at = evaluation.window.end
    return Episode(
        episode_id=episode_id(evaluation.monitor, kind, opened_at, evaluation.model_version),
        kind=kind,
        window=evaluation.window,
        reference_window=evaluation.reference_window,
        features=features,
        contract=evaluation.contract,
    )


def _forbidden(
    draft: _Draft, at: datetime, config: MonitorConfig, history: ModelHistory
) -> tuple[Outcome | None, str]:
    """Return what forbids the model's retraining at `at` and why, triage first, or None."""
    broken = draft.state.blocked(at - config.window) or history.blocked
    if broken:
        return Outcome.BLOCKED, broken
    running = history.running or draft.fired()
    if running:
        return Outcome.RUNNING, f"trigger {running} for the model is under way"
    if history.fired and at < max(history.fired) + config.cooldown:
        until = max(history.fired) + config.cooldown
        return Outcome.COOLDOWN, f"cooldown until {until:%Y-%m-%dT%H:%M:%SZ}"
    spent = sum(time > at - config.budget.per for time in history.fired)
    if spent >= config.budget.runs:
        return Outcome.BUDGET, f"{spent} triggers within {config.budget.per.days} days"
    return None, ""


def _waiting(state: PolicyState, request: str) -> tuple[Episode, datetime]:
    for episode in state.episodes.values():
        if episode.request_id == request and state.watermark is not None:
            if episode.outcome is Outcome.WAITING:
                return episode, state.watermark
            raise NotDecidableError(request, f"does not wait for a person: {episode.outcome}")
    raise NotDecidableError(request, "waits no longer: its episode closed")
