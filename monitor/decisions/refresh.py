"""When a model is due to be fitted anew although nothing is wrong. Pure; bottom of `decisions`.

A model is due at the budget's even pace, so that the runs that are allowed are spread over the time
they are allowed for; sooner while it is young, since the tenth week of data is worth more than the
hundredth. How seldom it may be is decided by what its refits have been worth: each run compares the
refitted model with the one that serves, on the same rows, and these differences are pooled over
the last runs. While they show a gain the pace stays; while they show none it slows down. Drift
holds the pace up, and alone is no reason to fit again on what is known already.

`benchmarks/retraining.py` compares it with calendars on real data.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, timedelta

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.decisions.model import PastRun
    from steadfeast.monitor.profiles import Window

YOUNG = 0.5
"""Growth of what is known, as a share, at which a young model is due."""
POOLED = 6
"""Comparisons that are pooled, the newest."""
CLEAR, LIKELY = 2.0, 1.0
"""Standard errors by which the pooled gain is above 0: refits pay clearly, or probably."""
_PACE_LIKELY, _PACE_UNSURE, _PACE_WORSE = 1.1, 1.5, 2.0
"""Longest time between two refits, in multiples of the budget's even pace: while refits probably
pay or nobody knows, while nothing shows it, and while they have rather done harm."""
_TO_ERROR = 1.75
"""Half of an interval of 90 % over about a dozen blocks, in standard errors."""


def gain_of(
    compared: Iterable[tuple[float | None, float | None, float | None]],
) -> tuple[float | None, float | None]:
    """Return gain and standard error of a run; None where nothing was compared.

    Args:
        compared: Of each of its gates the difference to the model that serves, and the ends of its
            interval; the first that has them counts.
    """
    for difference, low, high in compared:
        if difference is None or low is None or high is None:
            continue
        error = (high - low) / 2 / _TO_ERROR
        if math.isfinite(error) and error > 0:
            return difference, error
    return None, None


def worth(runs: Sequence[PastRun]) -> float | None:
    """Return the pooled gain of the last refits, in standard errors; None with fewer than two."""
    known = [(one.gain, one.error) for one in runs if one.gain is not None and one.error]
    last = known[-POOLED:]
    if len(last) < 2:  # noqa: PLR2004 - one comparison is no evidence
        return None
    errors = math.sqrt(sum((error or 0.0) ** 2 for _, error in last))
    return sum(gain or 0.0 for gain, _ in last) / errors


def due(
    at: datetime,
    known: Window,
    runs: Sequence[PastRun],
    config: MonitorConfig,
    *,
    drifting: bool = False,
) -> str:
    """Return why the model is due at `at`, in one line; empty if it is not.

    Args:
        at: Now, in event time.
        known: From the oldest to the newest example that the model was fitted on.
        runs: Earlier retrainings, by time.
        config: Of the monitor.
        drifting: Whether a drift stands.
    """
    refresh = config.refresh
    if refresh == "never" or known.end <= known.start:
        return ""
    newest, last = at, known.end
    if config.performance is not None:
        newest -= config.performance.label_delay
    if runs and not runs[-1].promoted and at < runs[-1].at + config.retry_after:
        return ""
    if runs and runs[-1].promoted:  # a reference that is configured does not move with the model
        last = max(last, runs[-1].at - (at - newest))
    grown, length = newest - last, last - known.start
    said = f"{grown.days} days of examples are new"
    if refresh != "auto":
        return f"{said}, and refresh is {refresh.days} days" if grown >= refresh else ""
    wait, why = _wait(length, worth(runs), config.budget.per / config.budget.runs, drifting)
    if grown < wait:
        return ""
    return f"{said}, {grown / length:.0%} of what the model knew; {why}"


def _wait(
    length: timedelta, gain: float | None, even: timedelta, drifting: bool
) -> tuple[timedelta, str]:
    """Return by how much the known stretch has to grow, and what the last refits were worth."""
    if gain is None:
        pace, why = _PACE_LIKELY, "what its refits are worth is not known yet"
    elif gain >= CLEAR:
        pace, why = 1.0, "its last refits were clearly better"
    elif gain >= LIKELY:
        pace, why = _PACE_LIKELY, "its last refits were probably better"
    elif gain >= 0:
        pace, why = _PACE_UNSURE, "its last refits were not shown to be better"
    else:
        pace, why = _PACE_WORSE, "its last refits were rather worse"
    if drifting and pace > 1:
        pace, why = 1.0, "there is drift"
    return min(YOUNG * length, pace * even), why
