"""Cheap looks beside the distance: at single cells, at both tails, and at what is empty.

Above `monitor.profiles.binning`; `monitor.drift.thresholds` calibrates with it,
`monitor.drift.detector` reads the outcome. Pure.

A distance spreads its attention over all bins. One percent of the rows at one value, a tail that
grows tenfold, or a category that nobody had seen are hardly anything in it, and nulls are not in
it at all. Each of these is a share of rows, and how far a share may rise is known well:

    counting + what the reference's own stretches differ by beyond counting,

both as variances, with the skewness of counts of few (Cornish and Fisher, 1938), and with
Student's t in place of the normal where the second part is known from a few stretches only. So a
share that was nearly nothing is seen after a handful of rows, and one that moves every day is not
seen when it moves as usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

from steadfeast.monitor.profiles.binning import ORDERED

if TYPE_CHECKING:
    from steadfeast.monitor.profiles.binning import ColumnEdges
    from steadfeast.monitor.profiles.profile import ColumnProfile

Floats = npt.NDArray[np.float64]

LARGEST_CELL = "largest_cell"
LOW_TAIL = "low_tail"
HIGH_TAIL = "high_tail"
EMPTY = "null_share"

WEIGHTS = {LARGEST_CELL: 0.2, LOW_TAIL: 0.08, HIGH_TAIL: 0.08, EMPTY: 0.08}
"""How much of a feature's chances of a false alarm each look may take."""

CELL_FLOOR, TAIL_FLOOR, EMPTY_FLOOR = 0.005, 0.0015, 0.005
HIGHEST_FLOOR = 0.1
"""Rises in share that are not worth an alarm; and the most that clustering may make of them."""

_TIMES = 2.0
"""Standard deviations of a share that drawing the entities again may take: a route doubles."""
_TAIL = 0.00175
_FEWEST = 1e-12


@dataclass(frozen=True, slots=True)
class Look:
    """The most that one share rose, or the share of empty rows fell.

    Attributes:
        name: One of the names above.
        first: First bin of the stretch; the number of bins for empty rows.
        stop: Bin after its last.
        share: Of the current rows, 0 to 1.
        was: Of the reference's.
        allowed: Change of share at the limit, above 0.
    """

    name: str
    first: int
    stop: int
    share: float
    was: float
    allowed: float

    @property
    def change(self) -> float:
        """How far the share is from what it was."""
        return abs(self.share - self.was)

    @property
    def ratio(self) -> float:
        """Change over what is allowed."""
        return self.change / self.allowed


def extended(column: ColumnProfile) -> npt.NDArray[np.int64]:
    """Return counts per bin and, last, rows that are null or NaN; shape (bins + 1,)."""
    return np.append(column.counts, column.nulls + column.nans)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the shares of one feature may change.

    Attributes:
        low: Bins in the low tail; 0 without one.
        high: First bin of the high tail; the number of bins without one.
        spread: By how much each share varies beyond counting, with the allowance for how well
            that is known; bins, low tail, high tail, empty.
        news: Share of rows that a stretch of the reference has where what it is compared with has
            none: its mean, and its spread with the same allowance.
        ends: Share of rows that a stretch of the reference has in the tails of the others, low
            and high.
        floors: Changes below which nothing is worth an alarm, likewise; empty for the usual.
        scores: Standard normal quantile of the limit for a cell, a tail, empty rows.
    """

    low: int
    high: int
    spread: tuple[float, ...]
    news: tuple[float, float]
    ends: tuple[float, float]
    floors: tuple[float, ...]
    scores: tuple[float, float, float]

    def worst(self, expected: npt.NDArray[Any], current: npt.NDArray[Any]) -> Look | None:
        """Return the look with the highest ratio; None where a side has no rows.

        Args:
            expected: `extended` counts of the reference; may be fractional.
            current: The same of the window.
        """
        was, m = _shares(expected, self.low, self.high)
        now, n = _shares(current, self.low, self.high)
        if not (m[-1] and n[-1]):
            return None
        bins = len(expected) - 1
        allowed = self.allowed(was, m, n)
        changes = now - was
        changes[-1] = abs(changes[-1])
        changes[(m == 0) | (n == 0)] = 0
        most = int(np.argmax(changes / allowed))
        name, first, stop = (
            (LARGEST_CELL, most, most + 1)
            if most < bins
            else [(LOW_TAIL, 0, self.low), (HIGH_TAIL, self.high, bins), (EMPTY, bins, bins + 1)][
                most - bins
            ]
        )
        return Look(name, first, stop, float(now[most]), float(was[most]), float(allowed[most]))

    def allowed(self, was: Floats, m: Floats, n: Floats) -> Floats:
        """Return the change of each share at its limit.

        Args:
            was: Shares in the reference, shape (bins + 3,).
            m: Rows that they are of.
            n: Rows of the window.
        """
        m, n = np.maximum(m, 1), np.maximum(n, 1)
        bins = len(was) - 3
        score = np.full(len(was), self.scores[0])
        score[bins : bins + 2] = self.scores[1]
        score[-1] = self.scores[2]
        share = (was * m + 0.5) / (m + 1)
        counting = share * (1 - share) * (1 / n + 1 / m)
        beyond = np.square(np.where(was > 0, self.spread, np.maximum(self.spread, self.news[1])))
        # As of a gamma-distributed share; where nothing is expected, with the mean that news has.
        mean = np.where(was > 0, share, np.maximum(share, self.news[0]))
        mean[bins : bins + 2] = np.maximum(mean[bins : bins + 2], self.ends)
        skewed = (1 - 2 * share) / n + 2 * beyond / mean
        variance = counting + beyond
        rise = score * np.sqrt(variance) + (score**2 - 1) / 6 * skewed
        # Those are the first terms of a series: too much for a tail that is empty at most times.
        ends = slice(bins, bins + 2)
        rise[ends] = np.minimum(rise[ends], _rare(variance[ends], skewed[ends], score[ends]))
        floors = np.array(self.floors) if self.floors else usual_floors(bins)
        if not self.low:
            rise[bins] = np.inf
        if self.high == bins:
            rise[bins + 1] = np.inf
        allowed: Floats = np.maximum(rise + share - was, floors)
        # A record is no news by itself: what lies beyond all that was is part of a tail, and how
        # much of its rows a stretch has there was seen by leaving each out.
        for tail, cells in ((bins, slice(self.low)), (bins + 1, slice(self.high, bins))):
            never = was[cells] == 0
            allowed[cells][never] = np.maximum(allowed[cells][never], allowed[tail])
        return allowed


def _rare(variance: Floats, skewed: Floats, score: Floats) -> Floats:
    """Return the quantile above the mean of a gamma distribution with these moments (Pearson III).

    Args:
        variance: Above 0.
        skewed: Third central moment over the variance, above 0.
        score: Standard normal quantile of the chance that is wanted.

    Returns:
        Infinity where the skewness is below 2, as of Poisson counts of more than a quarter: there
        the series is right.
    """
    shape = 4 * variance / skewed**2
    found: Floats = skewed / 2 * (special.gammainccinv(shape, special.ndtr(-score)) - shape)
    return np.where(shape < 1, found, np.inf)


def tails(edges: ColumnEdges, counts: npt.NDArray[Any]) -> tuple[int, int]:
    """Return how many bins are in the low tail, and the first bin of the high one.

    A tail holds about a thousandth of the reference's rows, or none where that is a point mass;
    what lies beyond the reference's range is in it.
    """
    bins = len(counts)
    if edges.kind not in ORDERED or bins < 3 or not counts.sum():  # noqa: PLR2004 - and a middle
        return 0, bins
    low, high = _ends(counts[None])
    return int(low[0]), int(high[0])


def _ends(counts: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the same for each row of a stack, two of shape (n,)."""
    most = _TAIL * counts.sum(axis=1, keepdims=True)
    low, high = (
        np.maximum((np.cumsum(one, axis=1) <= most).sum(axis=1), 1)
        for one in (counts, counts[:, ::-1])
    )
    return low, counts.shape[1] - high


def usual_floors(bins: int) -> Floats:
    """Return the floors of a feature whose rows are each their own."""
    return np.array([*[CELL_FLOOR] * bins, TAIL_FLOOR, TAIL_FLOOR, EMPTY_FLOOR])


def clustered_floors(variances: Floats, low: int, high: int) -> tuple[float, ...]:
    """Return the floors where shares vary with the entities, as `monitor.drift.clustering` says."""
    bins = len(variances) - 1
    ends = variances[:low].sum(), variances[high:bins].sum()
    variances = np.array([*variances[:-1], *ends, variances[-1]])
    usual = usual_floors(bins)
    found = np.clip(_TIMES * np.sqrt(variances), usual, HIGHEST_FLOOR)
    return () if (found == usual).all() else tuple(np.round(found, 5).tolist())


def tolerance(
    inside: npt.NDArray[Any],
    outside: npt.NDArray[Any],
    *,
    ends: tuple[int, int],
    floors: tuple[float, ...],
    freedom: float,
    chances: tuple[float, float, float],
) -> Tolerance:
    """Measure by how much shares vary between stretches of the reference.

    Args:
        inside: `extended` counts of each stretch, shape (stretches, bins + 1).
        outside: What each is compared with, likewise.
        ends: Of the tails, from `tails`.
        floors: From `clustered_floors`.
        freedom: Of a variance that is estimated from the stretches.
        chances: That one look exceeds its limit: all cells together, a tail, empty rows.
    """
    bins = inside.shape[1] - 1
    low, high = ends
    now, n = _shares(inside, low, high)
    was, m = _shares(outside, low, high)
    if low:
        # A stretch that is left out has tails of the others' making, as a window will have.
        first, last = _ends(outside[:, :-1])
        for side, shares, rows in ((inside, now, n), (outside, was, m)):
            sums = np.cumsum(side[:, :-1], axis=1)
            below = (
                np.take_along_axis(sums, at[:, None] - 1, axis=1)[:, 0] for at in (first, last)
            )
            low_rows, rest_rows = below
            shares[:, bins] = low_rows / rows[:, 0]
            shares[:, bins + 1] = (sums[:, -1] - rest_rows) / rows[:, 0]
    used = (n > 0) & (m > 0)
    share = np.sum(now * n, axis=0) / np.maximum(n.sum(axis=0), 1)
    n, m = np.maximum(n, 1), np.maximum(m, 1)
    counting = share * (1 - share) * (1 / n + 1 / m)
    many = np.maximum(used.sum(axis=0), 1)
    beyond = np.maximum(np.sum(((now - was) ** 2 - counting) * used, axis=0) / many, 0)
    # What nobody had is news of a kind that stretches may bring each time: that is its spread.
    new = np.sum(inside[:, :-1] * (outside[:, :-1] == 0), axis=1) / n[:, 0]
    counted = np.sum(counting * used, axis=0) / many
    occupied = max(1, int(np.count_nonzero(inside[:, :-1].sum(axis=0))))
    chance = np.array([*[chances[0] / occupied] * bins, chances[1], chances[1], chances[2]])
    score = special.ndtri(1 - chance)
    # Where counting is most of the variance, it is known; where it is little, `freedom` says.
    total = counted + beyond
    known = freedom * (total / np.maximum(beyond, _FEWEST)) ** 2
    wide = special.stdtrit(np.minimum(known, 1e9), 1 - chance)
    widest = float(special.stdtrit(freedom, 1 - chance[0]) / score[0])
    varied = beyond > _FEWEST
    spread = np.where(varied, (wide / score) ** 2 * total - counted, 0)
    return Tolerance(
        low=low,
        high=high,
        spread=tuple(float(f"{one:.3g}") for one in np.sqrt(np.maximum(spread, 0))),
        news=(float(np.mean(new)), float(np.sqrt(np.mean(new**2)) * widest)),
        ends=(float(share[bins]), float(share[bins + 1])),
        floors=floors,
        scores=(float(score[0]), float(score[bins]), float(score[-1])),
    )


def _shares(counts: npt.NDArray[Any], low: int, high: int) -> tuple[Floats, Floats]:
    """Return shares of bins, tails and empty rows, and the rows that they are of."""
    bins = counts[..., :-1]
    usable = bins.sum(axis=-1, keepdims=True)
    rows = usable + counts[..., -1:]
    many = np.concatenate(
        [np.broadcast_to(usable, (*usable.shape[:-1], bins.shape[-1] + 2)), rows], axis=-1
    ).astype(np.float64)
    parts = np.concatenate(
        [
            bins,
            bins[..., :low].sum(axis=-1, keepdims=True),
            bins[..., high:].sum(axis=-1, keepdims=True),
            counts[..., -1:],
        ],
        axis=-1,
    )
    return parts / np.maximum(many, _FEWEST), many
