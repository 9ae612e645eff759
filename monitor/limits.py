"""How far is far: distances of windows, and the threshold of one feature.

Above `monitor.profile`; `monitor.calibrate` applies it to a training set. Pure.

A threshold is measured, not copied. The reference is cut into blocks as long as the monitor's
window, and each block is compared with the rest: so day of week, weather and rows of one entity
that move together are in the noise that is expected. The limit is where the squared distance, on
a scale on which distances add up, reaches

    factor x its mean over the blocks, or a floor,  + what fewer rows add.

*The scale.* Statistics saturate: PSI of a shift by 6 standard deviations is hardly above that of
4. In their own unit a multiple of what restless weather does in eight weeks can lie beyond what
any window could reach, and the feature is blind. So each value is read as the shift, in standard
deviations of a normal feature over the same bins, that would give it: its square adds up like a
variance, whatever the statistic is. Limits are turned back into the statistic's unit.

*The factor* makes the false alarms come to `false_alarms_per_year`, shared equally over the
features. For a feature whose blocks differ in `d` directions, squared distances spread like
chi-square(d) / d, and their mean over `b` blocks is itself uncertain, like chi-square(f) / f:
their ratio is an F. Two things make that usable with the eight weeks of a two-month reference.
One direction and separate blocks would be F(1, 7), whose quantile at one in a thousand is 29.
But blocks differ in 2 to 4 directions in practice: `d` is measured as the participation ratio
of the blocks' deviations (sum of eigenvalues, squared, over sum of squares). And blocks slide by
less than their length, which is worth f = 1.5 d (b - 1) rather than d (b - 1): the squared
correlations of overlapping averages add up to 2/3 of a window. What counts as one alarm is an
episode, not a window; `monitor.budget` turns one into the other.

*Fewer rows*: where only a sample is served, a window has fewer rows than a block of the training
set; what the statistic then shows by counting alone is drawn from the reference and added.

*The floor*, a shift of .22 standard deviations (PSI .05), is an effect that is not worth an
alarm however calm the reference was: controls such as the carrier mix of an airport move by .17
within a year as schedules change.

Known limits. Correlated features share the budget as if they were independent, which errs to
the quiet side. A reference with a trend counts its trend as noise: a window is drifted when it
is farther out than the training set's own weeks were, which is what the model has not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

from monitor.bins import ORDERED, ColumnEdges
from monitor.budget import Plan, factor
from monitor.statistics import Statistic, statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from monitor.config import MonitorConfig
    from monitor.profile import ColumnProfile, Profile

SHIFTS = (0.0, *np.geomspace(0.02, 10, 48).tolist())
FLOOR = 0.22
MIN_BLOCKS = 3
_WANTED_BLOCKS = 6
_OVERLAP = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """How one feature's threshold came about.

    Attributes:
        statistic: Name of the statistic that is used for this feature.
        mean: Mean squared distance of a block of the reference to the rest of it, as a shift
            in standard deviations of a normal feature.
        factor: How many times that mean a window may be off.
        sampling: Times `1 / rows`, what counting alone may add at most, in the same terms.
        directions: Effective number of directions in which the blocks differ.
        blocks: Whole blocks in the reference.
        rows: Rows of a block, in the middle.
        curve: Value of the statistic at each of `SHIFTS`, ascending.
    """

    statistic: str
    mean: float
    factor: float
    sampling: float
    directions: float
    blocks: int
    rows: float
    curve: tuple[float, ...]

    def limit(self, rows: float) -> float:
        """Return the threshold for a window of `rows` usable rows, in the statistic's unit."""
        fewer = max(0.0, 1 / rows - 1 / self.rows) if rows else 0.0
        squared = max(self.factor * self.mean, FLOOR**2) + self.sampling * fewer
        return float(np.interp(math.sqrt(squared), SHIFTS, self.curve))

    def shift(self, value: float) -> float:
        """Return the shift of a normal feature that would give `value`, in sd, 0 to 10."""
        return float(np.interp(value, self.curve, SHIFTS))


def suited(chosen: Statistic, edges: ColumnEdges) -> Statistic:
    """Return `chosen`, or what stands in for it on a column whose bins have no order."""
    if chosen.ordered and edges.kind not in ORDERED:
        return statistic("total_variation")
    return chosen


def compare(
    chosen: Statistic, edges: ColumnEdges, reference: ColumnProfile, current: ColumnProfile
) -> float:
    """Return the distance of two profiles of one column, in the unit of `chosen`.

    Raises:
        EmptyWindowError: A side has no usable counts.
    """
    bounds = [reference.minimum, current.minimum, reference.maximum, current.maximum]
    held = [bound for bound in bounds if bound is not None]
    positions = edges.positions(min(held, default=None), max(held, default=None))
    return _distance(chosen, edges, reference.counts, current.counts, positions)


def _distance(
    chosen: Statistic,
    edges: ColumnEdges,
    reference: npt.NDArray[Any],
    current: npt.NDArray[Any],
    positions: npt.NDArray[np.float64],
) -> float:
    if chosen.coarse:
        reference, current = edges.coarse(reference), edges.coarse(current)
        positions = np.arange(len(reference), dtype=np.float64)
    # A bin that nobody is in is no bin: with a prior it would count where sizes differ.
    held = (reference + current) > 0
    return chosen.measure(reference[held], current[held], positions[held])


def calibrate(
    name: str,
    edges: ColumnEdges,
    series: Sequence[Profile],
    *,
    whole: Profile,
    config: MonitorConfig,
    chosen: Statistic,
    alarms_per_year: float,
) -> Calibration | None:
    """Compare blocks of the reference with the rest of it; None with too few blocks."""
    chosen = suited(chosen, edges)
    column = whole.columns[name]
    if not column.usable or not edges.bins:
        return None
    counts = np.array([one.columns[name].counts for one in series])
    length = _block_length(len(series), config.window // config.bucket)
    blocks = int(np.count_nonzero(counts.sum(axis=1))) / length
    if blocks < MIN_BLOCKS:
        return None
    sums = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])
    starts = range(0, len(series) - length + 1, max(1, length // _OVERLAP))
    positions = edges.positions(column.minimum, column.maximum)
    inside = [sums[i + length] - sums[i] for i in starts]
    inside = [block for block in inside if 0 < block.sum() < column.usable]
    rows = float(np.median([block.sum() for block in inside]))
    bound = partial(_distance, chosen, edges, positions=positions)
    curve = _curve(bound, column.counts, rows)
    directions = _directions(np.array([edges.coarse(block) for block in inside]))
    # Seeded by nothing but a constant: a reference built twice is the same.
    drawn = np.random.default_rng(0).multinomial(
        max(1, int(rows)), column.counts / column.usable, size=64
    )

    def squared(pairs: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Any:
        return np.interp([bound(left, right) for left, right in pairs], curve, SHIFTS) ** 2

    by_counting = squared((column.counts, draw) for draw in drawn)
    return Calibration(
        statistic=chosen.name,
        mean=float(np.mean(squared((column.counts - block, block) for block in inside))),
        factor=factor(
            directions=directions,
            freedom=1.5 * directions * (blocks - 1),
            alarms_per_year=alarms_per_year,
            plan=Plan.of(config),
        ),
        sampling=float(by_counting.mean() + 4 * by_counting.std()) * rows,
        directions=directions,
        blocks=int(blocks),
        rows=rows,
        curve=tuple(curve.tolist()),
    )


def _curve(
    distance: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float],
    counts: npt.NDArray[Any],
    rows: float,
) -> npt.NDArray[np.float64]:
    """Return the distance to the reference when a normal feature shifts, for each of `SHIFTS`.

    The bins' shares are taken for stretches of a normal axis, which then moves either way; bins
    without order are taken as they come. Ascends strictly, so that it can be inverted.
    """
    # Summed as whole numbers: an empty bin at either end then has no width at all.
    ends = special.ndtri(np.cumsum(counts)[:-1] / counts.sum())
    values = []
    for shift in SHIFTS:
        moved = [np.diff(special.ndtr(ends - way * shift), prepend=0, append=1) for way in (-1, 1)]
        values.append(np.mean([distance(counts, rows * share) for share in moved]))
    rising = np.maximum.accumulate(values)
    # Saturated stretches rise by a hair.
    return np.asarray(rising + 1e-12 * max(rising[-1], 1e-12) * np.arange(len(SHIFTS)))


def _block_length(buckets: int, window: int) -> int:
    """Return a block's length in buckets: the window's, or less where that gives too few.

    Shorter blocks differ by more than windows do, so the limit errs to the quiet side.
    """
    return max(1, min(window, buckets // _WANTED_BLOCKS))


def _directions(blocks: npt.NDArray[Any]) -> float:
    """Return in how many directions blocks differ, at least 1; counts of shape (blocks, groups).

    The participation ratio of the covariance of shares, each in units of its counting error.
    """
    shares = blocks / blocks.sum(axis=1, keepdims=True)
    middle = blocks.sum(axis=0) / blocks.sum()
    used = middle > 0
    deviations = (shares - middle)[:, used] / np.sqrt(middle[used])
    spread = np.linalg.svd(deviations, compute_uv=False) ** 2
    # All blocks equal up to rounding: nothing to tell directions by.
    if spread.sum() < 1e-18:  # noqa: PLR2004
        return 1.0
    return max(1.0, float(spread.sum() ** 2 / np.sum(spread**2)))
