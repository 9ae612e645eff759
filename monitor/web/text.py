"""Values in words, and how they are coloured: what the page, the report and a backtest share.

Above `charts` and `views`; pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.monitor.decisions import TriggerState
from steadfeast.monitor.drift import Level
from steadfeast.monitor.web import charts
from steadfeast.monitor.web.view_models import Tone

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from steadfeast.monitor.drift import Verdict
    from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run

WORDS = {
    Level.OK: "within limit",
    Level.DRIFT: "over limit",
    Level.INSUFFICIENT_DATA: "too little data",
    Level.INCIDENT: "broken",
}
"""A level in words."""

FIGURES = {
    "roc_auc": "AUC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "log_loss": "Log loss",
    "brier_score": "Brier score",
    "calibration_error": "Calibration error",
    "root_mean_squared_error": "RMSE",
    "mean_absolute_error": "MAE",
    "mean_absolute_percentage_error": "MAPE",
    "mean_pinball_loss": "Pinball loss",
    "r2": "R\N{SUPERSCRIPT TWO}",
}
"""The figures of `steadfeast.measures`, in words."""

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


def moment(at: datetime) -> str:
    """Write a time, as `3 Mar 2013 06:00 UTC`."""
    return f"{charts.day(at)} {at:%H:%M} UTC"


def lasting(length: timedelta) -> str:
    """Write a length of time in its largest unit: `12 days`, `5 hours`, `40 minutes`."""
    seconds = max(0, round(length.total_seconds()))
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size or (unit == "minute" and seconds >= size):
            return count(seconds // size, unit)
    return count(seconds, "second")


def count(number: int, noun: str) -> str:
    """Write how many, with the noun in its number."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(value: float | None) -> str:
    """Write a share as a percentage."""
    return "no rows" if value is None else f"{value:.1%}"


def percent(share: float) -> str:
    """Write a share so that a little is not written as nothing."""
    least = 0.0005
    return "<0.1%" if 0 < share < least else f"{share:.1%}"


def stretch(start: datetime, end: datetime) -> str:
    """Write a stretch of time by its days."""
    return f"{charts.day(start)} to {charts.day(end)}"


def value_text(value: float | None) -> str:
    """Write a value with three significant digits."""
    return "none" if value is None else charts.number(value)


def times_text(verdict: Verdict) -> str:
    """Write how many times its limit a feature is."""
    if verdict.value is None or verdict.threshold is None:
        return "no value"
    return multiple(verdict.ratio)


def multiple(ratio: float) -> str:
    """Write a multiple of a limit."""
    whole = 10  # from here on the fraction says nothing
    return (
        f"{ratio:,.0f}\N{MULTIPLICATION SIGN}"
        if ratio >= whole
        else f"{ratio:.2f}\N{MULTIPLICATION SIGN}"
    )


def outcome(run: Run) -> str:
    """Say what a run gave: its version and figures, and why it ended as it did."""
    figures = [f"{name} {charts.number(run.metrics[name])}" for name in sorted(run.metrics)]
    return "; ".join(filter(None, [", ".join([*version(run), *figures]), ending(run)]))


def version(run: Run) -> list[str]:
    """Name the version that a run made, if it made one."""
    return [f"version {run.model_version}"] if run.model_version else []


def ending(run: Run) -> str:
    """Say why a run ended as it did; empty when there is nothing to say."""
    # A refusal's reason names the gates that were missed.
    missed = [gate.detail or gate.name for gate in run.gates if not gate.passed]
    unsaid = [text for text in missed if text not in run.reason]
    return "; ".join([*filter(None, [run.reason]), *unsaid])
