"""From verdicts to decisions: episodes, triage, and whether a retraining fires.

Above `draft`, below `ledger`, which commits what is decided here. Pure: state and evaluation
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

from dataclasses import replace
from typing import TYPE_CHECKING

from steadfeast.monitor.config.cron import first, latest
from steadfeast.monitor.decisions.builder import Draft, episode_id, forbidden
from steadfeast.monitor.decisions.model import (
    OUTSIDE,
    Alert,
    AlertKind,
    Cause,
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
)
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.performance.metrics import measure_named

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from steadfeast.monitor.config.schema import MonitorConfig
    from steadfeast.monitor.drift.data_quality import Incident

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
    draft = Draft(evaluation.monitor, state)
    _triage(draft, evaluation)
    for kind, verdicts in _evidence(evaluation, config).items():
        _decide_kind(draft, kind, verdicts, evaluation, config)
    for episode in state.episodes.values():
        if episode.kind in OUTSIDE:
            draft.ask(episode, at, config, evaluation.history)
    return draft.decision()


def scheduled(
    state: PolicyState, config: MonitorConfig, now: datetime
) -> tuple[PolicyState, Cause | None]:
    """Return the cause that the schedule is at `now`, with the state that has taken it.

    Every time is taken once, whatever the clock does. Of several that came while nobody looked,
    only the last is a cause. A schedule that is new begins now.
    """
    line = config.schedule
    if line is None:
        return (state if state.scheduled is None else replace(state, scheduled=None)), None
    if state.scheduled is None or state.scheduled[0] != line:
        return replace(state, scheduled=(line, now)), None
    after = state.scheduled[1]
    at = latest(line, after, now)
    if at is None:
        return state, None
    summary = f"{line} of {at:%Y-%m-%dT%H:%MZ}"
    missed = first(line, after)
    if missed is not None and missed < at:
        summary += f", and not for those missed from {missed:%Y-%m-%dT%H:%MZ} on"
    cause = Cause(Kind.SCHEDULE, (line, at.isoformat()), summary)
    return replace(state, scheduled=(line, at)), cause


def take(state: PolicyState, cause: Cause, standing: Evaluation, config: MonitorConfig) -> Decision:
    """Return what follows from a cause that is not seen in the data, as of the last window.

    It goes the way of every other: triage, cooldown, budget and approval may keep it waiting, and
    it is asked for again at each window, until it ends: a scheduled time with the next one, an
    alert when it is resolved, both when the model is promoted meanwhile.

    Args:
        state: Of the monitor, which has decided on a window.
        cause: One that was not taken before; the ledger knows.
        standing: The last window, without what was measured in it.
        config: Of the monitor.
    """
    draft, at = Draft(standing.monitor, state), standing.window.end
    opened = Episode(
        episode_id=episode_id(standing.monitor, cause.kind, *cause.identity),
        kind=cause.kind,
        window=standing.window,
        reference_window=standing.reference_window,
        features=(),
        contract=standing.contract,
        told=cause.summary,
    )
    if opened.key in state.episodes:
        draft.close(state.episodes[opened.key], at, "the next scheduled time has come")
    draft.open(opened)
    draft.ask(opened, at, config, standing.history)
    return draft.decision()


def resolve(state: PolicyState, monitor: str, episode: str, reason: str) -> Decision:
    """Close the episode of an alert that has ended; nothing if it is not open."""
    draft = Draft(monitor, state)
    if episode in state.episodes:
        found = state.episodes[episode]
        draft.close(found, state.watermark or found.window.end, reason)
    return draft.decision()


def approve(
    state: PolicyState, monitor: str, request: str, config: MonitorConfig, history: ModelHistory
) -> Decision:
    """Fire a trigger that waits for a person, as of the last window.

    Raises:
        NotDecidableError: It waits no longer, or triage, cooldown or budget forbid it now.
    """
    draft = Draft(monitor, state)
    episode, at = _waiting(state, request)
    outcome, reason = forbidden(draft, at, config, history)
    if outcome is not None:
        raise NotDecidableError(request, f"may not fire now: {outcome}: {reason}")
    draft.outcome(episode, request, Outcome.FIRED, at, "")
    return draft.decision()


def reject(state: PolicyState, monitor: str, request: str, reason: str) -> Decision:
    """Refuse a trigger that waits for a person; its episode never fires.

    Raises:
        NotDecidableError: It waits no longer.
    """
    draft = Draft(monitor, state)
    episode, at = _waiting(state, request)
    draft.outcome(episode, request, Outcome.REJECTED, at, reason)
    return draft.decision()


def move_reference(state: PolicyState, monitor: str, reason: str) -> Decision:
    """Forget what was measured against the old reference and close its episodes."""
    draft = Draft(monitor, state)
    for episode in state.episodes.values():
        draft.close(episode, state.watermark or episode.window.end, reason)
    draft.state = replace(draft.state, recent={})
    return draft.decision()


def _decide_kind(
    draft: Draft,
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
    elif lasting:
        draft.ask(episode, at, config, evaluation.history)


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


def _triage(draft: Draft, evaluation: Evaluation) -> None:
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
    draft: Draft, at: datetime, incidents: list[Incident], *, resolved: bool
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
        episode_id=episode_id(
            evaluation.monitor, kind, opened_at.isoformat(), evaluation.model_version
        ),
        kind=kind,
        window=evaluation.window,
        reference_window=evaluation.reference_window,
        features=features,
        contract=evaluation.contract,
    )


def _waiting(state: PolicyState, request: str) -> tuple[Episode, datetime]:
    for episode in state.episodes.values():
        if episode.request_id == request and state.watermark is not None:
            if episode.outcome is Outcome.WAITING:
                return episode, state.watermark
            raise NotDecidableError(request, f"does not wait for a person: {episode.outcome}")
    raise NotDecidableError(request, "waits no longer: its episode closed")
