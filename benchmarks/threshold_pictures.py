"""Draw the pictures of docs/guide/thresholds.md, from the monitor's own limits.

    python benchmarks/threshold_pictures.py [--out docs/images]

One feature of a quiet world, day by day: its distance from its like in the reference and after it,
the limit, and where a drift stands. Seeded, so that the pictures are the same each time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.quiet_worlds import DAY, START, Running
from steadfeast.monitor.decisions import PolicyState
from steadfeast.monitor.drift import episodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 240, 46, 28
KNOWN, AHEAD = 56, 64
STORM = 0.5
"""Shifts from which on they last a day only."""
PICTURES = {
    "threshold-shift.svg": (
        "independent, sd .05",
        30,
        0.3,
        "A shift of .3 sd on the thirtieth day",
    ),
    "threshold-storm.svg": (
        "independent, sd .05",
        30,
        0.7,
        "One day of .7 sd: a verdict, no alarm",
    ),
    "threshold-memory.svg": ("AR(1) .95, sd .05", 0, 0.0, "Days that remember: the limit is wider"),
}


def line(values: Sequence[float], top: float, style: str) -> str:
    """Return a polyline of one value per day."""
    points = " ".join(f"{x(i):.1f},{y(v, top):.1f}" for i, v in enumerate(values))
    return f'<polyline points="{points}" fill="none" {style}/>'


def x(day: float) -> float:
    """Return where a day is drawn."""
    return LEFT + (WIDTH - LEFT - 10) * day / (KNOWN + AHEAD - 1)


def y(value: float, top: float) -> float:
    """Return where an effect is drawn; `top` sd is the upper end."""
    return (HEIGHT - BOTTOM) * (1 - (value + top) / (2 * top)) + 8


def lived(world: str, moves: int, by: float) -> tuple[Floats, float, Floats]:
    """Return the shift of the second feature by day, its limit, and where a drift stands."""
    monitor = Running(world, 6, KNOWN, 10_000, 4, 42)
    threshold = monitor.reference.thresholds["f001"]
    if threshold.by_shift is None:
        raise RuntimeError("a normal feature has an order")
    scores, shifts, evidence = np.array(threshold.scores), [], []
    state = PolicyState()
    for day in range(KNOWN + AHEAD):
        moved = np.zeros(6)
        after = day - KNOWN
        if after == moves or (after > moves and by < STORM):
            moved[1] = by
        counts = monitor.day(day, moved).columns["f001"].counts
        start = (START + day * DAY,)
        expected, likes = monitor.reference.usual("f001", start, monitor.config)
        shifts.append(float((counts / counts.sum() - expected[:-1]) @ scores))
        if after >= 0:
            state, _, _ = monitor.decide(state, day, moved)
            evidence.append((state.recent.get("served/f001") or (0.0,))[-1] or 0.0)
    limit = threshold.shift_limit(threshold.by_shift, 10_000, likes)
    _, standing = episodes(np.array(evidence)[None])
    return np.array(shifts), limit, standing[0]


def picture(world: str, moves: int, by: float, title: str) -> str:
    """Return one picture as SVG."""
    shifts, limit, standing = lived(world, moves, by)
    top = 1.15 * max(limit, float(np.abs(shifts).max()))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 8}" '
            'font-family="sans-serif" font-size="12" role="img">'
        ),
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT + 8}" fill="#fff"/>',
        (
            f'<rect x="{LEFT}" y="8" width="{x(KNOWN - 0.5) - LEFT:.1f}" '
            f'height="{HEIGHT - BOTTOM}" fill="#eef2f7"/>'
        ),
    ]
    for day in np.flatnonzero(standing):
        at, width = x(KNOWN + day - 0.5), x(1) - x(0)
        parts.append(
            f'<rect x="{at:.1f}" y="8" width="{width:.1f}" height="{HEIGHT - BOTTOM}" '
            'fill="#fbe3dc"/>'
        )
    for level in (-limit, 0.0, limit):
        dash = 'stroke="#c2410c" stroke-dasharray="5 4"' if level else 'stroke="#94a3b8"'
        at = y(level, top)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{at:.1f}" y2="{at:.1f}" {dash}/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" fill="#334155">'
            f"{level:+.2f}</text>"
        )
    parts.append(line(shifts.tolist(), top, 'stroke="#1d4ed8" stroke-width="1.6"'))
    below = HEIGHT - 2
    parts += [
        (
            f'<text x="{LEFT + 6}" y="{below}" fill="#334155">reference, {KNOWN} days, each '
            "compared with its weekday</text>"
        ),
        f'<text x="{x(KNOWN) + 6:.1f}" y="{below}" fill="#334155">{title}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write every picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out: Path = parser.parse_args().out
    for name, (world, moves, by, title) in PICTURES.items():
        (out / name).write_text(picture(world, moves, by, title))
        print(out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
