"""What is wrong, with its evidence and what has happened about it.

Above `words`; `page` puts it first. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.monitor.decisions import EpisodeKind, TriggerState
from steadfeast.monitor.ledger import RUN_STATES
from steadfeast.monitor.web.text import (
    RUN_TONES,
    TRIGGER_TONES,
    lasting,
    multiple,
    outcome,
    times_text,
    value_text,
)
from steadfeast.monitor.web.view_models import Action, Evidence, Problem, Step, Tone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steadfeast.monitor.decisions import OpenIncident
    from steadfeast.monitor.drift import Verdict
    from steadfeast.monitor.ledger import AuditCheck, EpisodeRecord, MonitorState, State

ADVICE = {
    "incident": (
        "Find the source that broke and mend it. Retraining of the model stays blocked until a "
        "bucket comes in whole."
    ),
    "invariant": (
        "Serving and training disagree, so trust neither the figures below nor a retraining. "
        "steadfeast store audit shows examples of the cells that differ."
    ),
    "snapshots": (
        "Look at the disk. Restore the files from a copy, or remove them: what was counted of "
        "them stays in the ledger, and the verdicts go on."
    ),
    EpisodeKind.DRIFT: (
        "See below what moved and since when. If the world changed, let the retraining run; if a "
        "source broke, mend it and cancel the run."
    ),
    EpisodeKind.PERFORMANCE: (
        "Compare with the features below: drift beside the drop speaks for retraining, a drop "
        "alone for wrong labels or a changed target."
    ),
    EpisodeKind.SCHEDULE: (
        "Nothing drifted: the schedule asks for a retraining, and something keeps it."
    ),
    EpisodeKind.ALERT: (
        "Look at the alert where it comes from; a retraining was asked for because of it."
    ),
}
"""What to do first, by what is wrong; docs/runbook.md says more."""

KINDS = {
    EpisodeKind.DRIFT: "Drift",
    EpisodeKind.PERFORMANCE: "Performance drop",
    EpisodeKind.SCHEDULE: "Scheduled retraining",
    EpisodeKind.ALERT: "Alert from outside",
}

MOVED = {
    EpisodeKind.DRIFT: ("has moved away from the reference", "have moved away from the reference"),
    EpisodeKind.PERFORMANCE: ("is worse than when the model was trained",) * 2,
}
"""What is said of the features of an episode, one or several."""

ACKNOWLEDGE = (("acknowledge", "Acknowledge"),)
DECIDE = (("approve", "Approve the retraining"), ("reject", "Reject it"))

NAMED = 8
"""Features that one problem names beside its first."""

LABELS = "labels"
"""The source of evidence that is a figure of the live model rather than a feature."""


def problems(state: State) -> Sequence[Problem]:
    """Broken data first, then the open episodes, the newest first."""
    broken = [
        _broken(monitor, together, i)
        for monitor in state.monitors.values()
        for i, together in enumerate(_together(monitor.incidents))
    ]
    broken += [
        _violated(monitor, check, i)
        for monitor in state.monitors.values()
        for i, check in enumerate(monitor.audit.checks if monitor.audit else ())
        if not check.holds
    ]
    broken += [_damaged(monitor) for monitor in state.monitors.values() if monitor.damaged]
    return [*broken, *(_episode(one, state) for one in state.episodes if one.open)]


def _together(incidents: Sequence[OpenIncident]) -> list[list[OpenIncident]]:
    """Put those of one kind and one time together: a broken source takes all its features."""
    found: dict[tuple[str, datetime], list[OpenIncident]] = {}
    for one in incidents:
        found.setdefault((one.incident.kind, one.opened_at), []).append(one)
    return list(found.values())


def _broken(monitor: MonitorState, together: Sequence[OpenIncident], number: int) -> Problem:
    incident, since = together[0].incident, together[0].opened_at
    others = [one.incident.subject for one in together[1:]]
    named = ", ".join(others[:NAMED]) + (f" and {len(others) - NAMED} more" * (len(others) > NAMED))
    blocked = [Step(Tone.BROKEN, f"Retraining is blocked: {monitor.blocked}.")]
    return Problem(
        anchor=f"incident-{monitor.name}-{number}",
        tone=Tone.BROKEN,
        label=f"Data incident: {incident.kind.replace('_', ' ')}",
        monitor=monitor.name,
        title=incident.summary + (f". The same of {named}" if others else ""),
        since=since,
        lasting=_lasting(monitor.watermark, since),
        advice=ADVICE["incident"],
        evidence=(),
        steps=tuple(blocked if monitor.blocked else ()),
    )


def _lasting(watermark: datetime | None, since: datetime) -> str:
    """Say how long it has lasted; nothing while no later data have come."""
    return lasting(watermark - since) if watermark is not None and watermark > since else ""


def _violated(monitor: MonitorState, check: AuditCheck, number: int) -> Problem:
    counted = ", ".join(f"{count:,} {kind}" for kind, count in check.mismatches.items() if count)
    counted += _skewed(check)
    what = f"of {check.cells:,} cells compared: {counted}" if counted else "nothing can be said"
    note = f" ({check.note})" if check.note else ""
    ended = monitor.audit.at if monitor.audit else None
    return Problem(
        anchor=f"invariant-{monitor.name}-{number}",
        tone=Tone.BROKEN,
        label=f"Invariant {check.invariant} {'is void' if check.void else 'does not hold'}",
        monitor=monitor.name,
        title=f"{check.subject}: {what}{note}",
        since=None,
        lasting="",
        advice=ADVICE["invariant"],
        evidence=(),
        steps=(Step(Tone.BROKEN, "The audit ended (wall clock).", ended),),
    )


def _damaged(monitor: MonitorState) -> Problem:
    return Problem(
        anchor=f"snapshots-{monitor.name}",
        tone=Tone.BROKEN,
        label="Damaged snapshots",
        monitor=monitor.name,
        title=f"{len(monitor.damaged)} not as they were frozen",
        since=None,
        lasting="",
        advice=ADVICE["snapshots"],
        evidence=(),
        steps=tuple(Step(Tone.BROKEN, line) for line in monitor.damaged[:NAMED]),
    )


def _skewed(check: AuditCheck) -> str:
    """Name the features that mismatch, the worst first."""
    cells = {name: sum(kinds.values()) for name, kinds in check.features.items()}
    worst = sorted(cells, key=lambda name: (-cells[name], name))
    named = ", ".join(f"{name} ({cells[name]:,})" for name in worst[:NAMED])
    rest = f" and {len(worst) - NAMED} more" if len(worst) > NAMED else ""
    return f"; in {named}{rest}" if worst else ""


def _episode(episode: EpisodeRecord, state: State) -> Problem:
    monitor = state.monitors.get(episode.monitor)
    watermark = monitor.watermark if monitor else None
    return Problem(
        anchor=f"episode-{episode.episode_id}",
        tone=Tone.BAD,
        label=KINDS[episode.kind],
        monitor=episode.monitor,
        title=_title(episode),
        since=episode.opened_at,
        lasting=_lasting(watermark, episode.opened_at),
        advice=ADVICE[episode.kind],
        evidence=tuple(
            Evidence(
                feature=one.feature,
                statistic=one.statistic,
                value=value_text(one.value),
                threshold=value_text(one.threshold),
                then=times_text(one),
                now=_now(one, monitor),
            )
            for one in episode.features
        )[:NAMED],
        steps=tuple(_steps(episode, state)),
    )


def _title(episode: EpisodeRecord) -> str:
    """Say in words what the evidence below says in figures."""
    if episode.kind not in MOVED or not episode.features:
        return episode.summary
    open_ = [one for one in episode.members if one.open]
    others = len(open_) - 1
    what = episode.features[0].feature + (f" and {others} more" if others > 0 else "")
    return f"{what} {MOVED[episode.kind][others > 0]}"


def _steps(episode: EpisodeRecord, state: State) -> Sequence[Step]:
    """Say what happened about an open episode, oldest first."""
    steps = [Step(Tone.BAD, "The episode opened.", episode.opened_at), *_members(episode)]
    mine = [one for one in state.triggers if episode.episode_id in one.episode_ids]
    for trigger in reversed(mine):
        text = f"Retrain trigger {trigger.state}"
        if trigger.attempts > 1:
            text += f" after {trigger.attempts} attempts"
        reason = f": {trigger.reason}" if trigger.reason else "."
        command, action = "", None
        if trigger.state is TriggerState.WAITING:
            command = f"steadfeast monitor approve {trigger.request_id}"
            action = Action(trigger.request_id, DECIDE)
        tone = TRIGGER_TONES[trigger.state]
        steps.append(Step(tone, text + reason, trigger.decided_at, command, action))
        if trigger.run is not None:
            state_name = RUN_STATES.get(trigger.run.state, "unknown")
            ended = outcome(trigger.run)
            text = f"Run {trigger.run.run_id} {state_name}" + (f": {ended}" if ended else "")
            steps.append(Step(RUN_TONES.get(state_name, Tone.UNKNOWN), f"{text}."))
    monitor = state.monitors.get(episode.monitor)
    if not mine:
        steps.append(Step(Tone.UNKNOWN, "No retraining has been asked for."))
    if monitor and monitor.blocked:
        steps.append(Step(Tone.BROKEN, f"Retraining is blocked: {monitor.blocked}."))
    if episode.acknowledged_by:
        steps.append(Step(Tone.GOOD, f"Acknowledged by {episode.acknowledged_by}."))
    else:
        command = f"steadfeast monitor acknowledge {episode.episode_id}"
        action = Action(episode.episode_id, ACKNOWLEDGE)
        text = "Nobody has acknowledged it yet."
        steps.append(Step(Tone.UNKNOWN, text, command=command, action=action))
    return steps


def _members(episode: EpisodeRecord) -> Sequence[Step]:
    """Say which features of an episode have resolved or cannot be judged."""
    resolved = [one for one in episode.members if not one.open]
    steps = [
        Step(Tone.GOOD, f"{one.verdict.feature} resolved.", one.resolved_at)
        for one in resolved[-NAMED:]
    ]
    unjudged = [one for one in episode.members if one.open and one.unjudged]
    return steps + [
        Step(
            Tone.UNKNOWN,
            f"{one.verdict.feature} cannot be judged, so it stays open: {one.unjudged}.",
        )
        for one in unjudged[:NAMED]
    ]


def _now(evidence: Verdict, monitor: MonitorState | None) -> str:
    """Write how many times its limit what opened an episode is by now."""
    if monitor is None:
        return "not watched any more"
    if evidence.source == LABELS:
        drop = monitor.drops.get(LABELS)
        return "no value" if drop is None else multiple(drop)
    verdicts = [one for one in monitor.verdicts if one.feature == evidence.feature]
    return times_text(verdicts[0]) if verdicts else "no verdict"
