"""From verdicts to decisions: triage, episodes, and whether a retraining fires.

Above `episodes`, below `ledger`, which commits what is decided here. Pure: state and evaluation
in, decision out; no clock, no I/O, no randomness, so that a replay decides the same. Every time
is event time: the end of the window that is judged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from steadfeast.monitor.config import first, latest
from steadfeast.monitor.decisions.builder import REFRESH, DecisionBuilder, episode_id
from steadfeast.monitor.decisions.episodes import Episodes
from steadfeast.monitor.decisions.model import (
    Alert,
    AlertKind,
    Cause,
    Decision,
    Episode,
    EpisodeKind,
    Evaluation,
    ModelHistory,
    NotDecidableError,
    OpenIncident,
    Outcome,
    PolicyState,
    Request,
    Severity,
)
from steadfeast.monitor.decisions.refresh import due
from steadfeast.monitor.decisions.retraining import Judgement, forbidden

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Incident


def decide(state: PolicyState, evaluation: Evaluation, config: MonitorConfig) -> Decision:
    """Return what follows from one evaluated window.

    A window that does not end after the last one decided changes nothing, so that a clock that
    jumps back, or a bucket that is evaluated again, cannot decide twice.
    """
    at = evaluation.window.end
    if state.watermark is not None and at <= state.watermark:
        return Decision(state)
    draft = DecisionBuilder(evaluation.monitor, state)
    _triage(draft, evaluation)
    Episodes(draft, evaluation, config).decide()
    draft.notify(at)
    _refresh(draft, evaluation, config)
    draft.ask(evaluation, config)
    return draft.decision(at)


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
    cause = Cause(EpisodeKind.SCHEDULE, (line, at.isoformat()), summary)
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
    draft, at = DecisionBuilder(standing.monitor, state), standing.window.end
    if cause.kind is EpisodeKind.SCHEDULE:
        for episode in state.episodes.values():
            if episode.kind is EpisodeKind.SCHEDULE:
                draft.close(episode, at, "the next scheduled time has come")
    draft.open(_from_outside(cause, standing))
    draft.ask(standing, config)
    return draft.decision(at)


def resolve(state: PolicyState, monitor: str, episode: str, reason: str) -> Decision:
    """Close the episode of an alert that has ended; nothing if it is not open."""
    if episode not in state.episodes:
        return Decision(state)
    draft, found = DecisionBuilder(monitor, state), state.episodes[episode]
    at = state.watermark or found.window.end
    draft.close(found, at, reason)
    return draft.decision(at)


def approve(
    state: PolicyState, monitor: str, request: str, config: MonitorConfig, history: ModelHistory
) -> Decision:
    """Fire a trigger that waits for a person, as of the last window.

    Raises:
        NotDecidableError: It waits no longer, or triage, cooldown or budget forbid it now.
    """
    draft = DecisionBuilder(monitor, state)
    waiting, at = _waiting(state, request)
    evidence = _evidence(draft, waiting)
    outcome, reason = forbidden(draft.situation(at, config, history), config, evidence)
    if outcome is not None:
        raise NotDecidableError(request, f"may not fire now: {outcome}: {reason}")
    draft.settle(request, Judgement(Outcome.FIRED, "", evidence), at)
    return draft.decision(at)


def reject(state: PolicyState, monitor: str, request: str, reason: str) -> Decision:
    """Refuse a trigger that waits for a person: none of its evidence asks again as it is.

    Raises:
        NotDecidableError: It waits no longer.
    """
    draft = DecisionBuilder(monitor, state)
    waiting, at = _waiting(state, request)
    draft.settle(request, Judgement(Outcome.REJECTED, reason, _evidence(draft, waiting)), at)
    return draft.decision(at)


def move_reference(state: PolicyState, monitor: str, reason: str) -> Decision:
    """Forget what was measured against the old reference and close its episodes."""
    draft = DecisionBuilder(monitor, state)
    ends = [one.window.end for one in state.episodes.values()]
    at = state.watermark or max(ends, default=None)
    if at is None:
        return Decision(replace(state, recent={}))
    for episode in state.episodes.values():
        draft.close(episode, at, reason)
    draft.state = replace(draft.state, recent={})
    return draft.decision(at)


def _refresh(draft: DecisionBuilder, evaluation: Evaluation, config: MonitorConfig) -> None:
    """Open a cause when the model is due for a refit, once for what it was fitted on."""
    if config.pipeline is None or config.kind != "served":
        return  # only the reference of a served model says what the model was fitted on
    at, known, runs = evaluation.window.end, evaluation.reference_window, evaluation.history.runs
    why = due(at, known, runs, config)

    def caused(opened: datetime) -> Cause:
        # With the time, so that one that was closed and is due again is another.
        identity = REFRESH, known.end.isoformat(), str(len(runs)), opened.isoformat()
        return Cause(EpisodeKind.SCHEDULE, identity, f"{REFRESH}: {why}")

    is_open = False
    for episode in draft.state.episodes.values():
        if episode.kind is not EpisodeKind.SCHEDULE or not episode.cause.startswith(REFRESH):
            continue
        cause = caused(episode.window.end)
        same = episode.episode_id == episode_id(draft.monitor, cause.kind, *cause.identity)
        if why and same:
            is_open = True
        else:
            draft.close(episode, at, "another run has answered it")
    if why and not is_open:
        draft.open(_from_outside(caused(at), evaluation))


def _from_outside(cause: Cause, standing: Evaluation) -> Episode:
    """Return the episode of a cause that is not seen in the data."""
    return Episode(
        episode_id=episode_id(standing.monitor, cause.kind, *cause.identity),
        kind=cause.kind,
        window=standing.window,
        reference_window=standing.reference_window,
        members=(),
        contract=standing.contract,
        cause=cause.summary,
    )


def _triage(draft: DecisionBuilder, evaluation: Evaluation) -> None:
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
    draft: DecisionBuilder, at: datetime, incidents: list[Incident], *, resolved: bool
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


def _waiting(state: PolicyState, request: str) -> tuple[Request, datetime]:
    waiting = state.request
    if waiting is not None and waiting.request_id == request and state.watermark is not None:
        if waiting.outcome is Outcome.WAITING:
            return waiting, state.watermark
        raise NotDecidableError(request, f"does not wait for a person: {waiting.outcome}")
    for episode in state.episodes.values():
        if episode.answer is not None and episode.answer.request_id == request:
            raise NotDecidableError(
                request, f"does not wait for a person: {episode.answer.outcome}"
            )
    raise NotDecidableError(request, "waits no longer: its episode closed")


def _evidence(draft: DecisionBuilder, request: Request) -> tuple[Episode, ...]:
    """Return the open episodes that a request was decided on."""
    open_ = draft.state.episodes
    return tuple(open_[one] for one in request.episode_ids if one in open_)
