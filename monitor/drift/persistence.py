"""When one feature's drift begins and ends, from its last buckets. Pure; depends on nothing.

Each bucket gives one signed ratio: how far the feature is off over how far it may be, above 0 where
it is off to one side and below 0 to the other; None where the bucket could not be judged. A drift
lasts, or it is large: what a single day does, unless it is decisive, is a verdict and no alarm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOKBACK = 14
"""Buckets whose ratios are worth keeping; older ones decide nothing."""

DECISIVE = 7.0
"""Times the limit that is an alarm at once."""

NEAR = 0.8
"""Times the limit that is too near to it to say that a drift has ended."""

LADDER = ((1, 1, DECISIVE), (2, 3, 3.5), (4, 5, 1.0))
"""So many of the last so many buckets, beyond so many times the limit, all on one side."""

RECENT, STILL_NEAR = 5, 2
"""A drift goes on while so many of the last buckets are near the limit or beyond: 2 of 5."""

_CREEPING = 0.4


def opens(recent: Sequence[float | None]) -> bool:
    """Say whether a drift has begun.

    Args:
        recent: Signed ratios of the feature's last buckets, newest last; older ones are ignored.
    """
    return any(
        sum(ratio is not None and side * ratio > times for ratio in recent[-last:]) >= many
        for many, last, times in LADDER
        for side in (1, -1)
    )


def stays_open(recent: Sequence[float | None]) -> bool:
    """Say whether a drift that has begun goes on.

    A bucket that could not be judged shows no end: it counts as near.

    Args:
        recent: As of `opens`.
    """
    near = sum(ratio is None or abs(ratio) > NEAR for ratio in recent[-RECENT:])
    return near >= STILL_NEAR or opens(recent)


def crept(recent: Sequence[float | None]) -> bool:
    """Say whether what the last buckets show came slowly, as a season does, and did not jump.

    It did if the buckets before the last ones were well on their way to the same side.

    Args:
        recent: As of `opens`.
    """
    newest = next((ratio for ratio in reversed(recent) if ratio is not None), 0.0)
    side = 1 if newest > 0 else -1
    before = [side * ratio for ratio in recent[-LOOKBACK:-RECENT] if ratio is not None]
    return bool(before) and sum(before) / len(before) > _CREEPING
