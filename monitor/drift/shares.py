"""Shares of rows that a distance hardly sees: single bins, both tails, the outside, nulls.

Above `monitor.profiles.binning`; `monitor.drift.calibration` calibrates with it,
`monitor.drift.detector` reads the outcome. Pure.

A distance spreads its attention over all bins. One percent of the rows at one value, a tail that
grows tenfold, or a category that nobody had seen are hardly anything in it, and nulls are not in
it at all. Each of these is a share of rows, and may rise by

    what the reference's buckets strayed, times the same multiple as the distance,
    and what counting rows does in one of 30,000 cases (Cornish and Fisher, 1938, for few),

as variances, or by a floor. A record is no news by itself: what lies beyond all that the reference
saw is part of a tail, and how much of its rows a bucket has in the tail of the others was seen by
leaving each out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from steadfeast.monitor.profiles import ORDERED

if TYPE_CHECKING:
    from steadfeast.monitor.profiles import ColumnEdges, ColumnProfile

Floats = npt.NDArray[np.float64]

LARGEST_CELL = "largest_cell"
LOW_TAIL = "low_tail"
HIGH_TAIL = "high_tail"
OUTSIDE = "outside_share"
EMPTY = "null_share"
NAMES = (LOW_TAIL, HIGH_TAIL, OUTSIDE, EMPTY)
"""What follows the bins in a vector of shares, in this order."""
SHARES = (LARGEST_CELL, *NAMES)

_FLOORS = {LARGEST_CELL: 0.005, LOW_TAIL: 0.0015, HIGH_TAIL: 0.0015, OUTSIDE: 0.03, EMPTY: 0.005}
_USUAL_CHANGE = 0.15
_SCORE = 4.0
"""Standard deviations of counting that a share may be off."""
_BEYOND, _MOST_DAYS = 1.5, 0.95
"""A limit is at least so many times what most of the reference's own buckets did."""
_TAIL, _OUTSIDE = 0.00175, 0.1
_FEWEST = 1e-12


@dataclass(frozen=True, slots=True)
class ShareChange:
    """The change of one share that is largest against what is allowed.

    Attributes:
        name: One of the names above.
        first: First bin of it; the number of bins for empty rows.
        stop: Bin after its last.
        share: Of the current rows, 0 to 1.
        was: Of the rows that are compared with.
        allowed: Change of share at the limit, above 0.
        side: 1 or -1: which of two kinds of change it is, so that what lasts is of one kind.
    """

    name: str
    first: int
    stop: int
    share: float
    was: float
    allowed: float
    side: int

    @property
    def change(self) -> float:
        """How far the share is from what it was."""
        return abs(self.share - self.was)

    @property
    def ratio(self) -> float:
        """Change over what is allowed."""
        return self.change / self.allowed


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the ends of a distribution are, as bins.

    Attributes:
        low: Bins in the low tail; 0 without one.
        high: First bin of the high tail; the number of bins without one.
        inner_low: First bin that is not outside: a tenth of the rows is below it.
        inner_high: First bin above that is, likewise.
        middle: First bin of the upper half.
    """

    low: int
    high: int
    inner_low: int
    inner_high: int
    middle: int

    @classmethod
    def of(cls, edges: ColumnEdges, counts: npt.NDArray[Any]) -> Ends:
        """Return the ends of a reference's counts, shape (bins,); none without an order.

        A tail holds about a thousandth of the rows, or none where that is a point mass; what lies
        beyond the reference's range is in it.
        """
        bins = len(counts)
        if edges.kind not in ORDERED or bins < 3 or not counts.sum():  # noqa: PLR2004 - and a middle
            return cls(0, bins, 0, bins, 0)
        low, high = _tails(counts[None])
        below = np.cumsum(counts) / counts.sum()
        inner = int(np.searchsorted(below, _OUTSIDE)), int(np.searchsorted(below, 1 - _OUTSIDE)) + 1
        middle = int(np.searchsorted(below, 0.5))
        if not 0 < inner[0] < inner[1] < bins:
            inner = (0, bins)
        return cls(int(low[0]), int(high[0]), *inner, middle)


def extended(column: ColumnProfile) -> npt.NDArray[np.int64]:
    """Return counts per bin and, last, rows that are null or NaN; shape (bins + 1,)."""
    return np.append(column.counts, column.nulls + column.nans)


def shares_of(counts: npt.NDArray[Any]) -> Floats:
    """Return `extended` counts as shares, shape (..., bins + 1).

    Bins of the rows with a value, of which a row without any has equal zeros; empty of all rows.
    """
    usable = counts[..., :-1].sum(axis=-1, keepdims=True)
    rows = usable + counts[..., -1:]
    bins = counts[..., :-1] / np.maximum(usable, _FEWEST)
    return np.concatenate([bins, counts[..., -1:] / np.maximum(rows, _FEWEST)], axis=-1)


def parts(shares: Floats, ends: Ends) -> Floats:
    """Return the shares that are looked at, shape (..., bins + 4), of those of `shares_of`."""
    bins, empty = shares[..., :-1], shares[..., -1:]
    added = [
        bins[..., : ends.low],
        bins[..., ends.high :],
        np.delete(bins, np.s_[ends.inner_low : ends.inner_high], axis=-1),
    ]
    sums = [one.sum(axis=-1, keepdims=True) for one in added]
    return np.concatenate([bins, *sums, empty], axis=-1)


@dataclass(frozen=True, slots=True)
class ShareLimits:
    """How far the shares of one feature may change.

    Attributes:
        ends: Where its tails are.
        spread: By how much each share strays beyond counting, times the multiple; bins and `NAMES`.
        news: The same of rows in bins that the other buckets lack.
        times: How often the limit of a single bin, and of each of `NAMES`, is taken; more than once
            where the reference's own buckets were beyond it.
        scale: Times the usual floors.
    """

    ends: Ends
    spread: tuple[float, ...]
    news: float
    times: tuple[float, ...] = (1.0,) * (1 + len(NAMES))
    scale: float = 1.0

    def worst(
        self, expected: Floats, expected_rows: float, current: npt.NDArray[Any]
    ) -> ShareChange | None:
        """Return the change with the highest ratio; None where there are no rows.

        Args:
            expected: Shares of what is compared with, as `shares_of` gives them.
            expected_rows: Rows that they are as good as.
            current: `extended` counts.
        """
        usable, rows = int(current[:-1].sum()), int(current.sum())
        if not usable or not expected_rows:
            return None
        was, now = parts(expected, self.ends), parts(shares_of(current), self.ends)
        many = np.full(len(was), usable)
        many[-1] = rows
        allowed = self.allowed(was, expected_rows, many)
        changes = now - was
        changes[-2:] = np.abs(changes[-2:])
        most = int(np.argmax(changes / allowed))
        bins, ends = len(current) - 1, self.ends
        places = [(0, ends.low), (ends.high, bins), (0, bins), (bins, bins + 1)]
        if most < bins:
            side = -1 if ends.low <= most < ends.middle else 1  # both tails may grow together
            name, first, stop = LARGEST_CELL, most, most + 1
        else:
            name, (first, stop) = NAMES[most - bins], places[most - bins]
            side = -1 if now[most] < was[most] else 1
        share, before = float(now[most]), float(was[most])
        return ShareChange(name, first, stop, share, before, float(allowed[most]), side)

    def allowed(self, was: Floats, m: float, n: npt.NDArray[Any]) -> Floats:
        """Return the change of each share at its limit.

        Args:
            was: Shares that are compared with, from `parts`.
            m: Rows that they are as good as.
            n: Rows of the bucket, shape of `was`.
        """
        bins, ends = len(was) - len(NAMES), self.ends
        share = (was * m + 0.5) / (m + 1)
        counting = share * (1 - share) * (1 / n + 1 / m)
        spread = np.where(was > _FEWEST, self.spread, np.maximum(self.spread, self.news))
        rise = np.sqrt(spread**2 + _SCORE**2 * counting) + (_SCORE**2 - 1) / 6 * (1 - 2 * share) / n
        floors = np.array([*[_FLOORS[LARGEST_CELL]] * bins, *(_FLOORS[name] for name in NAMES)])
        allowed: Floats = np.maximum(rise + share - was, self.scale * floors)
        allowed *= np.repeat(self.times, [bins, *[1] * len(NAMES)])
        for tail, cells in ((bins, slice(0, ends.low)), (bins + 1, slice(ends.high, bins))):
            never = was[cells] <= _FEWEST
            allowed[cells][never] = np.maximum(allowed[cells][never], allowed[tail])
        allowed[bins : bins + 3][[not ends.low, ends.high == bins, not ends.inner_low]] = np.inf
        return allowed


def share_limits(
    counts: npt.NDArray[Any],
    left_out: Floats,
    likes: Floats,
    ends: Ends,
    multiple: float,
    smallest_change: float,
) -> ShareLimits:
    """Measure by how much shares stray between a reference's buckets.

    Args:
        counts: `extended` counts of each bucket, shape (buckets, bins + 1).
        left_out: What each bucket's shares are expected to be by the others, of that shape.
        likes: As how many rows that is good, shape (buckets,).
        ends: Of the reference.
        multiple: Of what they stray, that is allowed.
        smallest_change: That a user wants to hear of, in sd.
    """
    bins = counts.shape[1] - 1
    now, was = parts(shares_of(counts), ends), parts(left_out, ends)
    others = counts.sum(axis=0) - counts
    if ends.low:
        # A bucket that is left out has tails of the others' making, as a later one will have.
        below = np.cumsum(now[:, :bins], axis=1)
        first, last = (one - 1 for one in _tails(others[:, :-1]))
        at = np.arange(len(now))
        now[:, bins], now[:, bins + 1] = below[at, first], 1 - below[at, last]
    rows = np.maximum(counts[:, :-1].sum(axis=1, keepdims=True), 1)
    usual = np.clip(now.mean(axis=0), 0, 1)
    counting = usual * (1 - usual) * np.mean(1 / rows)
    squares = (now - was) ** 2 / (1 + rows / likes[:, None])
    news = np.sum(now[:, :bins] * (others[:, :-1] == 0), axis=1)

    def strayed(beyond: Floats) -> tuple[float, ...]:
        spread = multiple * np.sqrt(np.maximum(beyond - counting, 0))
        return tuple(float(f"{one:.3g}") for one in spread)

    scale = smallest_change / _USUAL_CHANGE
    often = multiple * float(np.sqrt(np.mean(news**2)))
    found = ShareLimits(ends, strayed(squares.mean(axis=0)), often, scale=scale)
    changes = now - was
    changes[:, -2:] = np.abs(changes[:, -2:])
    # Each by what the others strayed: what only one did must not widen its own limit.
    others_strayed = (squares.sum(axis=0) - squares) / max(1, len(squares) - 1)
    ratios = np.array(
        [
            change / replace(found, spread=strayed(beyond)).allowed(*each)
            for change, beyond, *each in zip(changes, others_strayed, was, likes, rows, strict=True)
        ]
    )
    # Of bins the worst of each bucket: there are a hundred chances to be it.
    each = np.column_stack([ratios[:, :bins].max(axis=1), ratios[:, bins:]])
    most = np.quantile(each, _MOST_DAYS, axis=0)
    return replace(found, times=tuple(np.maximum(1, _BEYOND * most).round(3).tolist()))


def _tails(counts: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return bins in the low tail, and the first of the high one, of each row of a stack."""
    most = _TAIL * counts.sum(axis=1, keepdims=True)
    low, high = (
        np.maximum((np.cumsum(one, axis=1) <= most).sum(axis=1), 1)
        for one in (counts, counts[:, ::-1])
    )
    return low, counts.shape[1] - high
