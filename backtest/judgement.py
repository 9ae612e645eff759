"""What each policy earned: its figure by period, the calendars' frontier, and who is recommended.

Above `replay`. Every policy is judged on the same requests. The figure of a policy is the mean over
periods, so that a busy month counts as much as a calm one; a difference is paired period by period,
and its interval comes from how much it changes between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from steadfeast.featurestore import notebook
from steadfeast.measures import OneClassError, measure_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from steadfeast.backtest.history import History
    from steadfeast.backtest.replay import Replayed
    from steadfeast.measures import Measure

CONFIDENCE = 0.95
_FEWEST_ROWS = 20
_MOST_PERIODS = 72
_FEWEST_MONTHS = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one policy is than another, in the measure's unit; below 0 is worse.

    Attributes:
        value: Mean over the periods.
        low: Lower end of the interval of 95 %.
        high: Its upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Earned:
    """One policy's figures.

    Attributes:
        replayed: The policy and its runs.
        figure: Mean over the periods.
        by_period: Figure of each period; NaN where there is none.
        against_never: Against the first model left alone.
        frontier: What a calendar of as many runs gets, read off between the calendars, the plain
            ones if there are any; None for calendars, and beyond the last of them.
    """

    replayed: Replayed
    figure: float
    by_period: tuple[float, ...]
    against_never: Difference | None
    frontier: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All policies beside each other.

    Attributes:
        measure: What is compared.
        period: `week`, `month`, `quarter` or `year`.
        periods: Name of each period.
        earned: By policy, in the order that was asked for.
        best: The policy to choose: the one of fewest runs of those that are not shown to be worse
            than the best figure.
        advice: One sentence that says so.
    """

    measure: Measure
    period: str
    periods: tuple[str, ...]
    earned: tuple[Earned, ...]
    best: str
    advice: str

    def __repr__(self) -> str:
        """Say what is recommended."""
        policies = ", ".join(one.replayed.name for one in self.earned)
        measured = f"{self.measure.name} by {self.period}"
        return notebook.line("Verdict", f"{self.best} of {policies}", measured)


def judge(
    history: History, replays: Sequence[Replayed], start: datetime, end: datetime, here: Path
) -> Verdict:
    """Compare policies on the requests of [start, end)."""
    gate = history.config.judged_by[0]
    measure = measure_named(gate.metric or "", gate.options, here)
    rows = history.rows(start, end)
    period, codes, names = _periods(history.times[rows])
    table = history.training.table.slice(rows.start, rows.stop - rows.start)

    def figures(replayed: Replayed) -> tuple[float, ...]:
        whole = history.target.sample(table, replayed.served)
        return tuple(_figures(measure, whole.take, codes, len(names)))

    by_period = [figures(one) for one in replays]
    means = [float(np.nanmean(one)) for one in by_period]
    never = next((i for i, one in enumerate(replays) if not one.asked), None)
    any_plain = any(one.plain for one in replays)
    calendars = [
        (one.runs, mean)
        for one, mean in zip(replays, means, strict=True)
        if one.is_calendar and (one.plain == any_plain or not one.asked)
    ]
    earned = tuple(
        Earned(
            one,
            mean,
            found,
            None if never in {None, i} else _difference(measure, found, by_period[never or 0]),
            None if one.is_calendar else _interpolated(one.runs, calendars),
        )
        for i, (one, mean, found) in enumerate(zip(replays, means, by_period, strict=True))
    )
    best, advice = _advice(measure, earned, period)
    return Verdict(measure, period, names, earned, best, advice)


def _figures(measure: Measure, take: object, codes: np.ndarray, count: int) -> Iterator[float]:
    for number in range(count):
        places = np.flatnonzero(codes == number)
        if len(places) < _FEWEST_ROWS:
            yield math.nan
            continue
        try:
            yield measure.value(take(places))  # type: ignore[operator]
        except OneClassError:
            yield math.nan


def _periods(times: np.ndarray) -> tuple[str, np.ndarray, tuple[str, ...]]:
    """Cut into the shortest calendar periods that are not too many to show."""
    months = times.astype("datetime64[M]").astype(np.int64)
    cuts = {
        "week": (times.astype("datetime64[D]").astype(np.int64) + 3) // 7,
        "month": months,
        "quarter": months // 3,
        "year": months // 12,
    }
    for name, numbers in cuts.items():
        kept, codes = np.unique(numbers, return_inverse=True)
        fits = len(kept) <= _MOST_PERIODS and (
            name != "week" or months[-1] - months[0] < _FEWEST_MONTHS
        )
        if fits or name == "year":
            return name, codes, tuple(_name(name, int(number)) for number in kept)
    raise AssertionError(cuts)


def _name(period: str, number: int) -> str:
    if period == "week":
        return str(np.datetime64(number * 7 - 3, "D"))
    if period == "month":
        return str(np.datetime64(number, "M"))
    if period == "quarter":
        return f"{1970 + number // 4} Q{number % 4 + 1}"
    return str(1970 + number)


def _difference(measure: Measure, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    better = np.array([measure.drop(b, a) for a, b in zip(theirs, ours, strict=True)])
    better = better[np.isfinite(better)]
    mean = float(np.mean(better)) if len(better) else math.nan
    if len(better) < 2:  # noqa: PLR2004 - one period has no spread
        return Difference(mean, -math.inf, math.inf)
    reach = student.ppf((1 + CONFIDENCE) / 2, len(better) - 1)
    reach *= float(np.std(better, ddof=1)) / math.sqrt(len(better))
    return Difference(mean, mean - reach, mean + reach)


def _interpolated(runs: float, calendars: Sequence[tuple[float, float]]) -> float | None:
    points = sorted(calendars)
    if not points or not points[0][0] <= runs <= points[-1][0]:
        return None
    counts, figures = zip(*points, strict=True)
    return float(np.interp(runs, counts, figures))


def _advice(measure: Measure, earned: Sequence[Earned], period: str) -> tuple[str, str]:
    """Return the cheapest policy that is not shown to be worse than the best, and say so."""

    def rank(one: Earned) -> float:
        return -one.figure if measure.lower_is_better else one.figure

    top = max(earned, key=rank)
    good = [
        one
        for one in earned
        if one is top or _difference(measure, one.by_period, top.by_period).high >= 0
    ]
    best = min(good, key=lambda one: (one.replayed.runs, -rank(one)))
    name = best.replayed.name
    said = (
        f"{name}: {measure.name} {best.figure:.4g} on average by {period}, "
        f"with {best.replayed.runs:g} runs"
    )
    if best is not top:
        said += (
            f"; {top.replayed.name} is at {top.figure:.4g} with {top.replayed.runs:g}, "
            "which is no more than noise"
        )
    how = {"never": "leave the model alone", "triggered": "let the monitor decide"}
    advice = how.get(name, f"retrain {name} (schedule, with refresh: never)")
    if best.replayed.plain:
        period = name.removeprefix("plain ")
        advice = f"retrain {period} (schedule, with refresh: never, window: all)"
    return name, f"Recommended: {advice}. {said}.{_beside(measure, best, earned)}"


def _beside(measure: Measure, best: Earned, earned: Sequence[Earned]) -> str:
    """Say what the monitor's triggers are worth where dates are better or as good."""
    ours = next((one for one in earned if not one.replayed.is_calendar), None)
    if ours is None or ours is best:
        return ""
    lost = _difference(measure, best.by_period, ours.by_period)
    more = f"{ours.replayed.runs:g} runs at {ours.figure:.4g}"
    if lost.high < 0:
        return f" The monitor's triggers lose to it here: {more}."
    return f" The monitor's triggers show no gain over it: {more}."
