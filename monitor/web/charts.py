"""Geometry of the page's charts: numbers in, coordinates out.

Bottom of what `monitor.web.page` draws with: no I/O, no clock, no markup. A template turns what is
returned here into inline SVG, so the page needs no script and works without a network. Every
chart carries a `summary`, the sentence a screen reader says in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    History = Sequence[tuple[datetime, float | None]]

FLOOR = 0.1
"""Smallest ratio that a chart tells apart; what is below is drawn at the bottom."""

NO_VALUES = "No window has had enough data for a value."


@dataclass(frozen=True, slots=True)
class Box:
    """Where a chart is drawn, in SVG user units: x grows to the right, y downwards."""

    width: float
    height: float
    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def sized(cls, width: float, height: float, *, margins: tuple[float, ...]) -> Box:
        """Return a box of that size with margins (top, right, bottom, left) around the data."""
        top, right, bottom, left = margins
        return cls(width, height, left, width - right, height - bottom, top)


SPARK = Box.sized(150, 32, margins=(4, 5, 4, 3))
MEDIUM = Box.sized(320, 150, margins=(14, 10, 24, 42))
LARGE = Box.sized(420, 160, margins=(14, 10, 24, 42))


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis; `anchor` is SVG's text-anchor."""

    at: float
    label: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class Point:
    """One window, drawn at its end; `bad` when it is on the wrong side of the limit."""

    x: float
    y: float
    bad: bool
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure over time with its limit.

    Attributes:
        box: Where it is drawn.
        path: SVG path of the line, broken where a window had no value.
        beside: SVG path of a second line, such as an estimate; empty without one.
        points: The windows that have a value, oldest first.
        limit: The y of the limit; None without one.
        limit_label: The limit in words.
        x_ticks: Dates.
        y_ticks: Values.
        summary: The chart in a sentence.
    """

    box: Box
    path: str
    points: tuple[Point, ...]
    limit: float | None
    limit_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Contest:
    """A run that came to its gates.

    Attributes:
        at: When, event time.
        challenger: What its model measured.
        champion: What the live model measured on the same rows; None without one.
        promoted: Whether the challenger was.
        outcome: How it ended, in words.
    """

    at: datetime
    challenger: float
    champion: float | None
    promoted: bool
    outcome: str


def number(value: float) -> str:
    """Write `value` with three significant digits, without an exponent where it can be read."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:  # noqa: PLR2004  # what is read at a glance
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2e}"


def day(at: datetime) -> str:
    """Write the date of `at`, as `3 Mar 2013`."""
    return f"{at.day} {at:%b %Y}"


def ratios(history: History, box: Box = LARGE) -> Chart:
    """Draw the ratio of value to threshold over time; its limit is 1.

    The axis is logarithmic from 0.1 up: what matters is on which side of 1 a window is and how
    many times it is over, whether twice or a hundred times.

    Args:
        history: End of each window and its ratio (0 or more; None where there was no value),
            oldest first.
        box: Where to draw.
    """
    values = _present(history)
    decades = math.ceil(math.log10(max([10.0, *(ratio for _, ratio in values)])) - 1e-9)
    bottom = math.log10(FLOOR)

    def y(ratio: float) -> float:
        share = (math.log10(max(ratio, FLOOR)) - bottom) / (decades - bottom)
        return round(box.y0 - share * (box.y0 - box.y1), 1)

    ticks = [10.0**k for k in range(-1, decades + 1)]
    return _chart(history, box, y, ticks, limit=1.0, limit_label="limit", over_is_bad=True)


def figures(
    history: History, *, expected: float | None, estimated: History = (), box: Box = LARGE
) -> Chart:
    """Draw a figure over time on a linear axis, with the value it is held against.

    Nothing is marked bad: whether a fall below what was expected matters is for an episode to
    say.

    Args:
        history: End of each window and the figure, oldest first.
        expected: What the model had when it was trained; None where that is unknown.
        estimated: The same windows, and what was estimated; empty without an estimate.
        box: Where to draw.
    """
    values = [value for line in (history, estimated) for _, value in _present(line)]
    y, ticks = _linear([*values, *([] if expected is None else [expected])], box)
    drawn = _chart(history, box, y, ticks, limit=expected, limit_label="when trained")
    thought = _present(estimated)
    if not thought:
        return drawn
    beside = _chart(estimated, box, y, ticks).path
    at, value = thought[-1]
    summary = f"{drawn.summary} Estimated {number(value)} on {day(at)}."
    return replace(drawn, beside=beside, summary=summary)


def contests(runs: Sequence[Contest], box: Box = LARGE) -> Chart:
    """Draw what challengers and champions measured, run by run; one kept back is marked bad.

    Args:
        runs: At least one, oldest first.
        box: Where to draw.
    """
    shown = [value for one in runs for value in (one.challenger, one.champion) if value is not None]
    y, ticks = _linear(shown, box)
    drawn = _chart([(one.at, one.challenger) for one in runs], box, y, ticks)
    champions = _chart([(one.at, one.champion) for one in runs], box, y, ticks)
    points = [
        replace(point, bad=not one.promoted, label=f"{day(one.at)}: {_told(one)}")
        for point, one in zip(drawn.points, runs, strict=True)
    ]
    kept = sum(not one.promoted for one in runs)
    rest = f"; of {len(runs)} runs {kept or 'none'} not promoted" if len(runs) > 1 else ""
    summary = f"{_told(runs[-1])} on {day(runs[-1].at)}{rest}."
    return replace(drawn, beside=champions.path, points=tuple(points), summary=summary)


def _told(run: Contest) -> str:
    against = "" if run.champion is None else f" against {number(run.champion)} of the champion"
    return f"{number(run.challenger)}{against}, {run.outcome}"


def _present(history: History) -> list[tuple[datetime, float]]:
    return [(at, value) for at, value in history if value is not None and math.isfinite(value)]


def _linear(values: Sequence[float], box: Box) -> tuple[Callable[[float], float], list[float]]:
    """Return an axis that has room for `values`, and its ticks."""
    low, high = (choose(values, default=at) for choose, at in ((min, 0.0), (max, 1.0)))
    pad = 0.15 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - pad, high + pad

    def y(value: float) -> float:
        return round(box.y0 - (value - low) / (high - low) * (box.y0 - box.y1), 1)

    return y, _round_values(low, high)


def _round_values(low: float, high: float) -> list[float]:
    """Give two to six round values between `low` and `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (factor * step) >= 2)  # noqa: PLR2004
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]


def _chart(
    history: History,
    box: Box,
    y: Callable[[float], float],
    ticks: Sequence[float],
    *,
    limit: float | None = None,
    limit_label: str = "",
    over_is_bad: bool = False,
) -> Chart:
    """Draw `history` on the axis that `y` stands for, whatever its scale."""

    def bad(value: float) -> bool:
        return over_is_bad and limit is not None and value > limit

    seconds = (history[-1][0] - history[0][0]).total_seconds() if history else 0.0

    def x(at: datetime) -> float:
        share = (at - history[0][0]).total_seconds() / seconds if seconds else 1.0
        return round(box.x0 + share * (box.x1 - box.x0), 1)

    points: list[Point] = []
    path, pen = "", "M"
    for at, value in history:
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        points.append(Point(x(at), y(value), bad(value), f"{day(at)}: {number(value)}"))
        path += f"{pen}{points[-1].x} {points[-1].y}"
        pen = "L"
    return Chart(
        box=box,
        path=path,
        points=tuple(points),
        limit=None if limit is None else y(limit),
        limit_label=limit_label,
        x_ticks=_dates([at for at, _ in history], x),
        y_ticks=tuple(Tick(y(value), number(value)) for value in ticks),
        summary=_summary(_present(history), limit, limit_label, over_is_bad=over_is_bad),
    )


def _dates(ends: Sequence[datetime], x: Callable[[datetime], float]) -> tuple[Tick, ...]:
    """Label the first and the last window, and the middle when there is room."""
    if not ends:
        return ()
    last = Tick(x(ends[-1]), day(ends[-1]), "end")
    if len(ends) == 1:
        return (last,)
    middle = ends[len(ends) // 2]
    between = (Tick(x(middle), day(middle)),) if len(ends) > 4 else ()  # noqa: PLR2004
    return (Tick(x(ends[0]), day(ends[0]), "start"), *between, last)


def _summary(
    values: Sequence[tuple[datetime, float]],
    limit: float | None,
    limit_label: str,
    *,
    over_is_bad: bool,
) -> str:
    if not values:
        return NO_VALUES
    low, high = (choose(value for _, value in values) for choose in (min, max))
    text = (
        f"{number(values[-1][1])} on {day(values[-1][0])}; "
        f"{number(low)} to {number(high)} over {len(values)} windows since {day(values[0][0])}"
    )
    if limit is None:
        return f"{text}."
    if not over_is_bad:
        return f"{text}; {number(limit)} {limit_label}."
    since = None
    for at, value in reversed(values):
        if value <= limit:
            break
        since = at
    return f"{text}; over the limit since {day(since)}." if since else f"{text}; within the limit."
