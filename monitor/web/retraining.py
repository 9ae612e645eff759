"""What the page says of retraining: triggers, runs, and how each challenger did.

Above `words`, below `page`. Pure. Promotions that no trigger asked for (by hand, by a rollback, of
the first model) stand among the triggers: whoever asks since when a version is live finds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.monitor.ledger import RUN_STATES
from steadfeast.monitor.web import charts
from steadfeast.monitor.web.charts import Contest
from steadfeast.monitor.web.text import FIGURES, RUN_TONES, TRIGGER_TONES, ending, version
from steadfeast.monitor.web.view_models import RetrainView, Tone
from steadfeast.protos.steadfeast.v1 import pipeline_pb2

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.monitor.ledger import PromotionRecord, State, TriggerRecord
    from steadfeast.monitor.web.charts import Chart
    from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Gate, Run

NO_TRIGGER = "none"
"""What is said of the trigger of a promotion that none asked for."""


def history(state: State, listed: int) -> tuple[RetrainView, ...]:
    """Return the last `listed` triggers and promotions, newest first."""
    views = [_trigger(one, state) for one in state.triggers]
    views += [_promotion(one) for one in state.promotions]
    return tuple(sorted(views, key=lambda one: one.at, reverse=True)[:listed])


def contests(state: State) -> tuple[tuple[str, Chart], ...]:
    """Draw for each monitor what its challengers and champions measured, if any run came so far."""
    drawn = []
    for name in state.monitors:
        runs = [
            (one.decided_at, one.run)
            for one in state.triggers
            if one.monitor == name and one.run is not None
        ]
        runs += [(one.noticed_at, one.run) for one in state.promotions if one.monitor == name]
        measured = [
            (at, run, gate)
            for at, run in sorted(runs, key=lambda one: one[0])
            if (gate := _decisive(run)) is not None
        ]
        if not measured:
            continue
        metric = measured[-1][2].metric
        same = [_contest(at, run, gate) for at, run, gate in measured if gate.metric == metric]
        title = f"{name}: {FIGURES.get(metric, metric or measured[-1][2].name)}"
        drawn.append((title, charts.contests(same, charts.MEDIUM)))
    return tuple(drawn)


def _decisive(run: Run) -> Gate | None:
    """Return the gate that compares with the champion, or that measured the first model."""
    compared = [gate for gate in run.gates if gate.HasField("champion")]
    return next((gate for gate in (*compared, *run.gates) if gate.metric), None)


def _contest(at: datetime, run: Run, gate: Gate) -> Contest:
    return Contest(
        at,
        gate.value,
        gate.champion if gate.HasField("champion") else None,
        run.state == pipeline_pb2.RUN_STATE_PROMOTED,
        RUN_STATES.get(run.state, "unknown"),
    )


def _told(run: Run) -> str:
    """Write how the challenger did: `AUC 0.751 against 0.744`."""
    gate = _decisive(run)
    if gate is None:
        return ""
    text = f"{FIGURES.get(gate.metric, gate.metric)} {charts.number(gate.value)}"
    return f"{text} against {charts.number(gate.champion)}" if gate.HasField("champion") else text


def _ended(run: Run) -> str:
    """Write which version came of a run, and why it ended as it did."""
    return "; ".join(filter(None, [*version(run), ending(run)]))


def _trigger(trigger: TriggerRecord, state: State) -> RetrainView:
    episodes = {one.episode_id: one for one in state.episodes}
    cause = trigger.run.cause.summary if trigger.run is not None else ""
    evidence = [one.summary for each in trigger.episode_ids if (one := episodes.get(each))]
    run_state = RUN_STATES.get(trigger.run.state, "unknown") if trigger.run is not None else ""
    return RetrainView(
        at=trigger.decided_at,
        monitor=trigger.monitor,
        why=cause or "; ".join(evidence) or trigger.request_id,
        trigger=trigger.state,
        trigger_tone=TRIGGER_TONES[trigger.state],
        run=run_state,
        run_tone=RUN_TONES.get(run_state, Tone.UNKNOWN),
        contest=_told(trigger.run) if trigger.run is not None else "",
        outcome=_ended(trigger.run) if trigger.run is not None else trigger.reason,
    )


def _promotion(promotion: PromotionRecord) -> RetrainView:
    run_state = RUN_STATES.get(promotion.run.state, "unknown")
    return RetrainView(
        at=promotion.noticed_at,
        monitor=promotion.monitor,
        why=promotion.run.cause.summary or "promoted by somebody else",
        trigger=NO_TRIGGER,
        trigger_tone=Tone.UNKNOWN,
        run=run_state,
        run_tone=RUN_TONES.get(run_state, Tone.UNKNOWN),
        contest=_told(promotion.run),
        outcome=_ended(promotion.run),
    )
