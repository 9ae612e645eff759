"""Which features broke together, and which drift by degrees: recent ratios in, answers out.

See `steadfeast.monitor.drift.persistence` for the ratios.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.monitor.drift import LOOKBACK, RECENT, crept

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP = 0.6
"""Most that a slow change gains from the windows before to the last ones, in limits."""


def onset(recent: Sequence[float | None]) -> int:
    """Return how many windows ago the change that opens now began: 0 is the last window."""
    last = [ratio or 0.0 for ratio in recent[-RECENT:]]
    side = 1 if last[-1] > 0 else -1
    first = next(i for i, ratio in enumerate(last) if side * ratio > 1)
    return len(last) - 1 - first


def slow(recent: Sequence[float | None]) -> bool:
    """Return whether a change that opens now crossed its limit by degrees, and not by a jump."""
    if not crept(recent):
        return False
    last = [ratio for ratio in recent[-RECENT:] if ratio is not None]
    before = [ratio for ratio in recent[-LOOKBACK:-RECENT] if ratio is not None]
    side = 1 if last[-1] > 0 else -1
    over = [side * ratio for ratio in last if side * ratio > 1]
    return sum(over) / len(over) - side * sum(before) / len(before) <= STEP


def crept_on(recent: Sequence[float | None]) -> bool:
    """Return whether an open slow change went on by degrees, and did not jump."""
    last = [abs(ratio) for ratio in recent[-RECENT:] if ratio is not None]
    before = [abs(ratio) for ratio in recent[-LOOKBACK:-RECENT] if ratio is not None]
    return not before or max(last, default=0.0) < 2 * sum(before) / len(before)
