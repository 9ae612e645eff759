"""What the page says, decided here and laid out by `templates/page.html.jinja`.

Above `charts`, `views` and `state`, below `web`. Pure: a `State` and the time in, a `Page` of
finished words and drawn charts out. The order is that of a person called at three in the
morning: what is wrong, since when, how bad, what has already happened; then how everything
stands.

Times are the data's own (event time) unless a field says otherwise, so that a replay reads
like the year that it replays.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from monitor import charts
from monitor.detect import Level
from monitor.episodes import Kind, TriggerState
from monitor.metrics import RUN_STATES
from monitor.views import (
    Action,
    BarView,
    Evidence,
    Fact,
    FeatureView,
    MonitorView,
    Page,
    Problem,
    RetrainView,
    Step,
    Tone,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from monitor.charts import Chart
    from monitor.detect import Verdict
    from monitor.distribution import Distribution
    from monitor.episodes import OpenIncident
    from monitor.quality import Figures
    from monitor.state import AuditCheck, EpisodeRecord, MonitorState, State, TriggerRecord
    from protos.steadfeast.v1.pipeline_pb2 import Run

WORDS = {
    Level.OK: "within limit",
    Level.DRIFT: "over limit",
    Level.INSUFFICIENT_DATA: "too little data",
    Level.INCIDENT: "broken",
}
"""A level in words."""

FIGURES = {"auc": "AUC", "accuracy": "Accuracy", "log_loss": "Log loss"}
"""The figures of `monitor.performance`, in words."""

ADVICE = {
    "incident": (
        "Find the source that broke and mend it. Retraining of the model stays blocked until a "
        "bucket comes in whole."
    ),
    "invariant": (
        "Serving and training disagree, so trust neither the figures below nor a retraining. "
        "steadfeast store audit shows examples of the cells that differ."
    ),
    Kind.DRIFT: (
        "See below what moved and since when. If the world changed, let the retraining run; if a "
        "source broke, mend it and cancel the run."
    ),
    Kind.PERFORMANCE: (
        "Compare with the features below: drift beside the drop speaks for retraining, a drop "
        "alone for wrong labels or a changed target."
    ),
    Kind.SCHEDULE: "Nothing drifted: the schedule asks for a retraining, and something keeps it.",
    Kind.ALERT: "Look at the alert where it comes from; a retraining was asked for because of it.",
}
"""What to do first, by what is wrong; docs/runbook.md says more."""

KINDS = {
    Kind.DRIFT: "Drift",
    Kind.PERFORMANCE: "Performance drop",
    Kind.SCHEDULE: "Scheduled retraining",
    Kind.ALERT: "Alert from outside",
}

ACKNOWLEDGE = (("acknowledge", "Acknowledge"),)
DECIDE = (("approve", "Approve the retraining"), ("reject", "Reject it"))

FULL_BAR = 2.0
"""The ratio that fills a bar: the limit stands in its middle."""

SUPERSEDED = (
    "The model was retrained after the last window was judged. What stands below is about the "
    "former reference; the next bucket is judged against the new one."
)

LABELS = "labels"
"""The source of evidence that is a figure of the live model rather than a feature."""

LISTED = 20
"""Rows of each history; the rest is in the ledger."""


TONES = {
    Level.OK: Tone.GOOD,
    Level.DRIFT: Tone.BAD,
    Level.INSUFFICIENT_DATA: Tone.UNKNOWN,
    Level.INCIDENT: Tone.BROKEN,
}
RUN_TONES = {
    "promoted": Tone.GOOD,
    "succeeded": Tone.GOOD,
    "refused": Tone.UNKNOWN,
    "failed": Tone.BAD,
    "cancelled": Tone.UNKNOWN,
    "queued": Tone.BUSY,
    "running": Tone.BUSY,
}
TRIGGER_TONES = {
    TriggerState.WAITING: Tone.BUSY,
    TriggerState.PENDING: Tone.BUSY,
    TriggerState.DELIVERED: Tone.GOOD,
    TriggerState.SUPPRESSED: Tone.UNKNOWN,
    TriggerState.DEAD: Tone.BAD,
}


def page(state: State, unhealthy: str, now: datetime) -> Page:
    """Decide what the page says.

    Args:
        state: The last committed state.
        unhealthy: Why the daemon is not healthy; empty when it is.
        now: Wall clock, UTC.
    """
    monitors = tuple(_monitor(monitor) for monitor in state.monitors.values())
    problems = tuple(_problems(state))
    tone, title, detail = _headline(state, problems, unhealthy)
    return Page(
        tone=tone,
        title=title,
        detail=detail,
        event_time=state.latest_event,
        made_at=now,
        problems=problems,
        monitors=monitors,
        retrains=tuple(_retrain(trigger, state) for trigger in state.triggers[:LISTED]),
        closed=tuple(one for one in state.episodes if not one.open)[:LISTED],
        state=state,
    )


def moment(at: datetime) -> str:
    """Write a time, as `3 Mar 2013 06:00 UTC`."""
    return f"{charts.day(at)} {at:%H:%M} UTC"


def lasting(length: timedelta) -> str:
    """Write a length of time in its largest unit: `12 days`, `5 hours`, `40 minutes`."""
    seconds = max(0, round(length.total_seconds()))
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size or (unit == "minute" and seconds >= size):
            return _count(seconds // size, unit)
    return _count(seconds, "second")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _share(value: float | None) -> str:
    return "no rows" if value is None else f"{value:.1%}"


def _headline(state: State, problems: Sequence[Problem], unhealthy: str) -> tuple[Tone, str, str]:
    if unhealthy:
        text = "What stands below may be old."
        return Tone.BROKEN, f"The daemon is not healthy: {unhealthy}", text
    if problems:
        worst = Tone.BROKEN if any(one.tone is Tone.BROKEN for one in problems) else Tone.BAD
        return worst, f"{_count(len(problems), 'problem')} open", ""
    monitors = state.monitors.values()
    verdicts = [verdict for one in monitors if not one.superseded for verdict in one.verdicts]
    if not verdicts:
        text = "No bucket of event time has been evaluated yet."
        if any(one.superseded for one in monitors):
            text = "A model was retrained, and its first bucket is not closed yet."
        return Tone.UNKNOWN, "Nothing to judge yet", text
    if all(verdict.level is Level.INSUFFICIENT_DATA for verdict in verdicts):
        text = "No feature has enough data for a verdict; that is not the same as no drift."
        return Tone.UNKNOWN, "Too little data to judge", text
    over = sum(verdict.level is Level.DRIFT for verdict in verdicts)
    if over:
        text = f"{_count(over, 'feature')} over the limit in the last window, with no open episode."
        return Tone.GOOD, "No problem is open", text
    return Tone.GOOD, "No problem is open", f"{_count(len(verdicts), 'feature')} judged."


def _problems(state: State) -> Sequence[Problem]:
    """Broken data first, then the open episodes, the newest first."""
    broken = [
        _broken(monitor, incident, i)
        for monitor in state.monitors.values()
        for i, incident in enumerate(monitor.incidents)
    ]
    broken += [
        _violated(monitor, check, i)
        for monitor in state.monitors.values()
        for i, check in enumerate(monitor.audit.checks if monitor.audit else ())
        if not check.holds
    ]
    return [*broken, *(_episode(one, state) for one in state.episodes if one.open)]


def _broken(monitor: MonitorState, open_: OpenIncident, number: int) -> Problem:
    incident, since = open_.incident, open_.opened_at
    blocked = [Step(Tone.BROKEN, f"Retraining is blocked: {monitor.blocked}.")]
    return Problem(
        anchor=f"incident-{monitor.name}-{number}",
        tone=Tone.BROKEN,
        label=f"Data incident: {incident.kind.replace('_', ' ')}",
        monitor=monitor.name,
        title=incident.summary,
        since=since,
        lasting=lasting(monitor.watermark - since) if monitor.watermark else "",
        advice=ADVICE["incident"],
        evidence=(),
        steps=tuple(blocked if monitor.blocked else ()),
    )


def _violated(monitor: MonitorState, check: AuditCheck, number: int) -> Problem:
    counted = ", ".join(f"{count:,} {kind}" for kind, count in check.mismatches.items() if count)
    what = f"of {check.cells:,} cells compared: {counted}" if counted else "nothing can be said"
    note = f" ({check.note})" if check.note else ""
    ended = monitor.audit.at if monitor.audit else None
    return Problem(
        anchor=f"invariant-{monitor.name}-{number}",
        tone=Tone.BROKEN,
        label=f"Invariant {check.invariant} does not hold",
        monitor=monitor.name,
        title=f"{check.subject}: {what}{note}",
        since=None,
        lasting="",
        advice=ADVICE["invariant"],
        evidence=(),
        steps=(Step(Tone.BROKEN, "The audit ended (wall clock).", ended),),
    )


def _episode(episode: EpisodeRecord, state: State) -> Problem:
    monitor = state.monitors.get(episode.monitor)
    watermark = monitor.watermark if monitor else None
    return Problem(
        anchor=f"episode-{episode.episode_id}",
        tone=Tone.BAD,
        label=KINDS[episode.kind],
        monitor=episode.monitor,
        title=episode.summary,
        since=episode.opened_at,
        lasting=lasting(watermark - episode.opened_at) if watermark else "",
        advice=ADVICE[episode.kind],
        evidence=tuple(
            Evidence(
                feature=one.feature,
                statistic=one.statistic,
                value=_value(one.value),
                threshold=_value(one.threshold),
                then=_times(one),
                now=_now(one, monitor),
            )
            for one in episode.features
        ),
        steps=tuple(_steps(episode, state)),
    )


def _steps(episode: EpisodeRecord, state: State) -> Sequence[Step]:
    """Say what happened about an open episode, oldest first."""
    steps = [Step(Tone.BAD, "The episode opened.", episode.opened_at)]
    mine = [one for one in state.triggers if one.episode_id == episode.episode_id]
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
            outcome = _outcome(trigger.run)
            text = f"Run {trigger.run.run_id} {state_name}" + (f": {outcome}" if outcome else "")
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


def _monitor(monitor: MonitorState) -> MonitorView:
    worst = max(
        (verdict.level for verdict in monitor.verdicts),
        key=[Level.OK, Level.INSUFFICIENT_DATA, Level.DRIFT, Level.INCIDENT].index,
        default=Level.INSUFFICIENT_DATA,
    )
    tone = TONES[Level.INSUFFICIENT_DATA] if monitor.superseded else TONES[worst]
    tone = Tone.BROKEN if monitor.incidents else tone
    over = sum(verdict.level is Level.DRIFT for verdict in monitor.verdicts)
    judged = sum(verdict.level is not Level.INSUFFICIENT_DATA for verdict in monitor.verdicts)
    figures = {one.feature: one for one in monitor.figures}
    verdict = f"{over} of {judged} features over the limit" if judged else "nothing judged yet"
    if monitor.superseded:
        verdict = "nothing judged yet for the live model"
    spreads = {one.feature: one for one in monitor.distributions}
    if monitor.incidents:
        verdict = f"{_count(len(monitor.incidents), 'data incident')}, {verdict}"
    return MonitorView(
        name=monitor.name,
        tone=tone,
        verdict=verdict,
        note=SUPERSEDED if monitor.superseded else _waits(monitor),
        blocked=monitor.blocked,
        facts=tuple(_facts(monitor)),
        performance=tuple(_performance(monitor)),
        features=tuple(
            _feature(one, monitor, figures.get(one.feature), spreads.get(one.feature))
            for one in monitor.verdicts
        ),
        freshness=tuple(
            Fact(view.view, _age(view.median_age_seconds), view.latest)
            for view in monitor.freshness
        ),
    )


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "more than half of the requests found no value"
    return f"median age {lasting(timedelta(seconds=seconds))} when served"


def _waits(monitor: MonitorState) -> str:
    if not monitor.waits_for:
        return ""
    return f"Nothing is judged: there is no reference to compare with: {monitor.waits_for}."


def _facts(monitor: MonitorState) -> Sequence[Fact]:
    facts = [Fact("Feature service", monitor.service), Fact("Model", monitor.model)]
    reference, window = monitor.reference, monitor.window
    if reference is not None:
        version = reference.model_version or "unknown"
        facts[-1] = Fact("Model", f"{monitor.model}, version {version}")
        facts.append(Fact("Contract", reference.contract[:12]))
        facts.append(
            Fact(
                "Reference",
                f"{_stretch(reference.window.start, reference.window.end)}, "
                f"{_count(reference.window.rows, 'row')}",
            )
        )
    else:
        facts.append(Fact("Reference", "none yet: nothing can be compared"))
    if window is not None:
        facts.append(
            Fact(
                "Current window",
                f"{_stretch(window.start, window.end)}, {_count(window.rows, 'row')}",
            )
        )
    if monitor.watermark is not None:
        facts.append(Fact("Evaluated until", moment(monitor.watermark), monitor.watermark))
    if monitor.performance is not None:
        facts.append(Fact("Labelled rows", f"{monitor.performance.labelled:,}"))
    if monitor.audit is not None:
        held = sum(check.holds for check in monitor.audit.checks)
        text = f"{held} of {len(monitor.audit.checks)} checks hold, {moment(monitor.audit.at)}"
        facts.append(Fact("Invariants (wall clock)", text))
    return facts


def _stretch(start: datetime, end: datetime) -> str:
    return f"{charts.day(start)} to {charts.day(end)}"


def _performance(monitor: MonitorState) -> Sequence[tuple[str, Chart]]:
    """Draw each figure that any window has, against what the model had when it was trained."""
    expected: Mapping[str, float] = monitor.reference.performance if monitor.reference else {}
    drawn = []
    for name, title in FIGURES.items():
        history = [(past.window.end, past.performance.get(name)) for past in monitor.history]
        if any(value is not None for _, value in history):
            chart = charts.figures(history, expected=expected.get(name), box=charts.MEDIUM)
            drawn.append((title, chart))
    return drawn


def _feature(
    verdict: Verdict,
    monitor: MonitorState,
    figures: Figures | None,
    spread: Distribution | None,
) -> FeatureView:
    history = [(past.window.end, past.ratios.get(verdict.feature)) for past in monitor.history]
    facts = [
        Fact("Statistic", verdict.statistic),
        Fact("Value", _value(verdict.value)),
        Fact("Threshold", _value(verdict.threshold)),
    ]
    if figures is not None:
        facts += [
            Fact("Rows", f"{figures.rows:,}"),
            Fact("Nulls", _share(figures.null_share)),
            Fact("NaN", f"{figures.nans:,}"),
            Fact("Not in the reference", f"{figures.unseen:,}"),
        ]
        for term, value in (
            ("Smallest", figures.minimum),
            ("Mean", figures.mean),
            ("Standard deviation", figures.sd),
            ("Largest", figures.maximum),
        ):
            if value is not None:
                facts.append(Fact(term, charts.number(value)))
    return FeatureView(
        name=verdict.feature,
        tone=Tone.UNKNOWN if monitor.superseded else TONES[verdict.level],
        word="former model" if monitor.superseded else WORDS[verdict.level],
        ratio=_times(verdict),
        bar=round(100 * min(verdict.ratio / FULL_BAR, 1.0), 1),
        nulls=_share(figures.null_share) if figures else "",
        spark=charts.ratios(history, charts.SPARK),
        chart=charts.ratios(history),
        reason=verdict.reason,
        facts=tuple(facts),
        bars=_bars(spread) if spread else (),
    )


def _bars(spread: Distribution) -> tuple[BarView, ...]:
    """Scale the bars so that the longest of both sides fills its place."""
    shares = [share for bar in spread.bars for share in (bar.reference, bar.current or 0.0)]
    longest = max(shares, default=0.0) or 1.0
    return tuple(
        BarView(
            label=bar.label,
            reference=_percent(bar.reference),
            current="none" if bar.current is None else _percent(bar.current),
            reference_width=round(100 * bar.reference / longest, 1),
            current_width=round(100 * (bar.current or 0.0) / longest, 1),
        )
        for bar in spread.bars
    )


def _percent(share: float) -> str:
    """Write a share so that a little is not written as nothing."""
    least = 0.0005
    return "<0.1%" if 0 < share < least else f"{share:.1%}"


def _value(value: float | None) -> str:
    return "none" if value is None else charts.number(value)


def _times(verdict: Verdict) -> str:
    """Write how many times its limit a feature is."""
    if verdict.value is None or verdict.threshold is None:
        return "no value"
    return _multiple(verdict.ratio)


def _multiple(ratio: float) -> str:
    whole = 10  # from here on the fraction says nothing
    return (
        f"{ratio:,.0f}\N{MULTIPLICATION SIGN}"
        if ratio >= whole
        else f"{ratio:.2f}\N{MULTIPLICATION SIGN}"
    )


def _now(evidence: Verdict, monitor: MonitorState | None) -> str:
    """Write how many times its limit what opened an episode is by now."""
    if monitor is None:
        return "not watched any more"
    if evidence.source == LABELS:
        live = monitor.performance.metrics if monitor.performance else {}
        held_out = monitor.reference.performance if monitor.reference else {}
        metric = evidence.feature
        if metric not in live or metric not in held_out or evidence.threshold is None:
            return "no value"
        drop = held_out[metric] - live[metric]
        worse = -drop if metric == "log_loss" else drop
        return _multiple(max(worse, 0.0) / evidence.threshold)
    verdicts = [one for one in monitor.verdicts if one.feature == evidence.feature]
    return _times(verdicts[0]) if verdicts else "no verdict"


def _retrain(trigger: TriggerRecord, state: State) -> RetrainView:
    episodes = {one.episode_id: one for one in state.episodes}
    cause = trigger.run.cause.summary if trigger.run is not None else ""
    episode = episodes.get(trigger.episode_id)
    run_state = RUN_STATES.get(trigger.run.state, "unknown") if trigger.run is not None else ""
    return RetrainView(
        at=trigger.decided_at,
        monitor=trigger.monitor,
        why=cause or (episode.summary if episode else trigger.episode_id),
        trigger=trigger.state,
        trigger_tone=TRIGGER_TONES[trigger.state],
        run=run_state,
        run_tone=RUN_TONES.get(run_state, Tone.UNKNOWN),
        outcome=_outcome(trigger.run) if trigger.run is not None else trigger.reason,
    )


def _outcome(run: Run) -> str:
    """Say what a run gave: its version and figures, and why it ended as it did."""
    parts = [f"version {run.model_version}"] if run.model_version else []
    parts += [f"{name} {charts.number(run.metrics[name])}" for name in sorted(run.metrics)]
    missed = [gate.detail or gate.name for gate in run.gates if not gate.passed]
    return "; ".join([*filter(None, [", ".join(parts), run.reason]), *missed])
