"""Two pictures as SVG: the figure against the runs, and the figure over time. Bottom of `backtest`.

No script and no style sheet of others: they go into one HTML file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 16, 40
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e5ea2", "#b8860b", "#4a4a4a", "#d35400", "#16a085")


@dataclass(frozen=True, slots=True)
class Line:
    """One policy in a picture.

    Attributes:
        name: Of the policy.
        values: Figure of each period; NaN where there is none.
    """

    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Point:
    """One policy as a point.

    Attributes:
        name: Of the policy.
        runs: That it took.
        figure: That it earned.
        is_calendar: Whether it lies on the line between the calendars.
    """

    name: str
    runs: float
    figure: float
    is_calendar: bool


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    length: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * self.length


def frontier(points: Sequence[Point], figure: str) -> str:
    """Draw figure against runs; calendars are joined by a line."""
    x = _Scale(0, max(one.runs for one in points) or 1, LEFT, WIDTH - LEFT - RIGHT)
    y = _vertical([one.figure for one in points])
    calendars = sorted((one.runs, one.figure) for one in points if one.is_calendar)
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in calendars)
    marks = [f'<polyline points="{path}" fill="none" stroke="#bbb" stroke-width="2"/>']
    for number, one in enumerate(points):
        colour = COLOURS[number % len(COLOURS)]
        at, height = x(one.runs), y(one.figure)
        marks.append(f'<circle cx="{at:.1f}" cy="{height:.1f}" r="5" fill="{colour}"/>')
        marks.append(_text(at + 8, height - 6, one.name, colour))
    below = HEIGHT - BOTTOM + 18
    ticks = _ticks(0, x.high)
    marks += [_text(x(runs), below, f"{runs:g}", "#666", "middle") for runs in ticks]
    marks.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "runs", "#666", "middle"))
    return _svg([*_grid(y), *marks], f"{figure} against runs")


def over_time(lines: Sequence[Line], periods: Sequence[str], figure: str) -> str:
    """Draw the figure of each period, one line for each policy."""
    x = _Scale(0, max(len(periods) - 1, 1), LEFT, WIDTH - LEFT - RIGHT)
    y = _vertical([value for one in lines for value in one.values])
    marks = []
    for number, one in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        for stretch in _stretches(one.values):
            path = " ".join(f"{x(i):.1f},{y(one.values[i]):.1f}" for i in stretch)
            marks.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
        marks.append(_text(WIDTH - RIGHT + 14, TOP + 14 + 18 * number, one.name, colour))
    step = max(1, math.ceil(len(periods) / 8))
    shown = range(0, len(periods), step)
    below = HEIGHT - BOTTOM + 18
    marks += [_text(x(place), below, periods[place], "#666", "middle") for place in shown]
    return _svg([*_grid(y), *marks], f"{figure} over time")


def _stretches(values: Sequence[float]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for place, value in enumerate(values):
        if math.isfinite(value):
            found[-1].append(place)
        else:
            found.append([])
    return [one for one in found if one]


def _vertical(values: Sequence[float]) -> _Scale:
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return _Scale(low - room, high + room, HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM))


def _grid(y: _Scale) -> list[str]:
    lines = []
    for value in _ticks(y.low, y.high):
        at = y(value)
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#eee"/>'
        )
        lines.append(_text(LEFT - 8, at + 4, f"{value:.4g}", "#666", "end"))
    return lines


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers in [low, high]."""
    raw = (high - low) / 5
    if raw <= 0:
        return [low]
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= raw)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="12" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(marks: Sequence[str], title: str) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<title>{escape(title)}</title>{''.join(marks)}</svg>"
