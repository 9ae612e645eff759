"""How far is far: the limits of one feature, measured on stretches of the reference.

Above `monitor.drift.thresholds`; `monitor.drift.reference` applies it to a training set. Pure.

A limit is measured, not copied. The reference is cut into stretches as long as what is judged, and
each is compared with the rest: so weather, and rows of one entity that move together, are in the
noise that is expected. The limit is where the squared distance, on a scale on which distances add
up, reaches

    factor x its mean over the stretches, or a floor,  + what fewer rows add.

*Two stretches* are judged, by limits of their own: the whole window, which sees what is small, and
its last part (`latest_length`), which sees early what is not. The last day is compared with the
reference's same weekdays where there are enough, the whole window with all of it.

*The scale.* Statistics saturate: PSI of a shift by 6 standard deviations is hardly above that of
4. In their own unit a multiple of what restless weather does in eight weeks can lie beyond what
any window could reach, and the feature is blind. So each value is read as the shift, in standard
deviations of a normal feature over the same bins, that would give it: its square adds up like a
variance, whatever the statistic is. Limits are turned back into the statistic's unit.

*The factor* makes the false alarms come to `false_alarms_per_year`, shared equally over the
features. A squared distance is a sum of squares, one for each direction in which stretches differ,
with the eigenvalues of the deviations as weights. Equal ones spread like chi-square(d) / d; where
the days' own restlessness is one direction, and counting makes many small ones, the one makes the
large distances, and the others are always there. So three moments are matched (Liu, Tang and Zhang,
2009): a constant, and `varying` times chi-square(d) / d; d is less where the statistic looks in
fewer directions than there are. Only the second part is far at times, and it is known from `b`
stretches, like chi-square(f) / f: their ratio is an F, and the constant is added once. Windows
slide by less than their length, which is worth f = 1.5 d (b - 1) rather than d (b - 1): the squared
correlations of overlapping averages add up to 2/3 of a window. Days remember the day before: their
correlation r leaves (1 - r^2) / (1 + r^2) of their number, and persistence helps less. What counts
as one alarm is an episode, not a window; `monitor.drift.false_alarms` turns one into the other.

*Fewer rows*: where only a sample is served, a window has fewer rows than a stretch of the training
set; what the statistic then shows by counting alone is drawn from the reference and added.

*The floor* is an effect that is not worth an alarm however calm the reference was: a shift of .03
standard deviations (PSI .001) where every row is its own. A feature that entities decide moves
with their mix, whatever the counting of rows says: its floor is what drawing the entities again
would do (`monitor.drift.clustering`), up to .22 standard deviations (PSI .05).

Known limits. Correlated features share the budget as if they were independent, which errs to
the quiet side. A reference with a trend counts its trend as noise: a window is drifted when it
is farther out than the training set's own weeks were, which is what the model has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

from steadfeast.monitor.drift.false_alarms import Plan, factor, tail
from steadfeast.monitor.drift.shares import (
    EMPTY,
    HIGH_TAIL,
    LARGEST_CELL,
    WEIGHTS,
    clustered_floors,
    extended,
    tails,
    tolerance,
)
from steadfeast.monitor.drift.thresholds import (
    SHIFTS,
    Calibration,
    distances,
    latest_length,
    mixed,
    seasonal,
    suited,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steadfeast.monitor.config.schema import MonitorConfig
    from steadfeast.monitor.drift.clustering import Clustering
    from steadfeast.monitor.drift.distances import Statistic
    from steadfeast.monitor.profiles.binning import ColumnEdges
    from steadfeast.monitor.profiles.profile import ColumnProfile, Profile

FLOOR = 0.03
HIGHEST_FLOOR, HIGHEST_FLOOR_LATEST = 0.22, 0.3
"""Of a window, and of its last part: one day of a timetable differs more than a week of it."""
MIN_BLOCKS = 3
_DISTANCE = 0.75
"""Share of a feature's chances that the distance takes. With those of the other looks they come to
more than 1, because what moves the distance by chance often moves them too."""
_MIN_FREEDOM = 7
_CALENDAR = 25
_WANTED_BLOCKS = 6
_OVERLAP = 8
_DRAWS = 128
_SURE = 4


@dataclass(frozen=True, slots=True)
class Series:
    """One column of the reference, bucket by bucket.

    Attributes:
        counts: `extended` counts, shape (buckets, bins + 1); zeros where a bucket has no rows.
        weekdays: Day of the week of each bucket, 0 to 6, shape (buckets,).
        clustering: How the column moves with the entities; None where unknown.
    """

    counts: npt.NDArray[np.int64]
    weekdays: npt.NDArray[np.int64]
    clustering: Clustering | None = None

    @classmethod
    def of(
        cls,
        name: str,
        series: Sequence[Profile],
        weekdays: npt.NDArray[np.int64],
        clustering: Clustering | None = None,
    ) -> Series:
        """Take column `name` out of one profile per bucket."""
        return cls(np.array([extended(one.columns[name]) for one in series]), weekdays, clustering)


def calibrate(
    edges: ColumnEdges,
    series: Series,
    column: ColumnProfile,
    *,
    config: MonitorConfig,
    chosen: Statistic,
    alarms_per_year: float,
) -> Calibration | None:
    """Compare windows of the reference with the rest of it; None with too few.

    Args:
        edges: Of the column.
        series: Its counts.
        column: All of it.
        config: The monitor.
        chosen: The statistic that decides.
        alarms_per_year: False episodes that this may cause.
    """
    counts = series.counts
    length = _block_length(len(counts), config.window // config.bucket)
    blocks = int(np.count_nonzero(counts[:, :-1].sum(axis=1))) / length
    if blocks < MIN_BLOCKS:
        return None
    inside = _sliding(counts, length)
    return _calibrated(
        edges,
        inside,
        counts.sum(axis=0) - inside,
        column,
        series,
        chosen,
        blocks=blocks,
        freedom=1.5 * (blocks - 1),
        alarms_per_year=alarms_per_year,
        plan=Plan.of(config),
        highest_floor=HIGHEST_FLOOR,
    )


def calibrate_latest(
    edges: ColumnEdges,
    series: Series,
    column: ColumnProfile,
    *,
    config: MonitorConfig,
    chosen: Statistic,
    alarms_per_year: float,
) -> Calibration | None:
    """Do the same for the last part of windows, with the same weekdays where there are enough."""
    counts, length = series.counts, latest_length(config) // config.bucket
    filled = counts[:, :-1].sum(axis=1) > 0
    blocks = int(np.count_nonzero(filled)) / length
    by_weekday = np.zeros((7, counts.shape[1]), np.int64)
    np.add.at(by_weekday, series.weekdays, counts)
    same = seasonal(config, series.weekdays[filled])
    freedom = blocks - (7 if same else 1)
    if freedom < _MIN_FREEDOM:
        return None
    inside = _sliding(counts, length)
    outside = np.array(counts.sum(axis=0) - inside, dtype=np.float64)
    if same:
        for i in range(len(inside)):
            at = slice(i * max(1, length // _OVERLAP), None)
            own = np.zeros_like(by_weekday)
            np.add.at(own, series.weekdays[at][:length], counts[at][:length])
            outside[i] = mixed(by_weekday - own, own.sum(axis=1))
    apart = slice(None, None, min(length, _OVERLAP))
    held = (inside[apart, :-1].sum(axis=1) > 0) & (outside[apart, :-1].sum(axis=1) > 0)
    deviations = _deviations(edges, inside[apart][held], outside[apart][held])
    if not len(deviations) or (same and _tells_weekday(edges, by_weekday, deviations)):
        return None
    memory = _memory(deviations)
    plan = Plan.of_latest(config, latest_length(config))
    return _calibrated(
        edges,
        inside,
        outside,
        column,
        series,
        chosen,
        blocks=blocks,
        freedom=max(1.0, freedom * (1 - memory**2) / (1 + memory**2)),
        alarms_per_year=alarms_per_year,
        plan=plan,
        highest_floor=HIGHEST_FLOOR_LATEST,
        memory=float(memory ** (1 / plan.per_window)),
    )


def _tells_weekday(
    edges: ColumnEdges, by_weekday: npt.NDArray[Any], deviations: npt.NDArray[np.float64]
) -> bool:
    """Say whether a feature is nearly the same on the same day of the week, and far on others.

    Such a feature is the calendar. Within a day it says nothing, except when midnight is.
    """
    whole = np.broadcast_to(by_weekday.sum(axis=0), by_weekday.shape)
    between = float(np.mean(np.sum(_deviations(edges, by_weekday, whole) ** 2, axis=1)))
    within = float(np.mean(np.sum(deviations**2, axis=1)))
    return between > max(1.0, _CALENDAR * within)


def _sliding(counts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    sums = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])
    starts = np.arange(0, len(counts) - length + 1, max(1, length // _OVERLAP))
    found: npt.NDArray[np.int64] = sums[starts + length] - sums[starts]
    return found


def _calibrated(
    edges: ColumnEdges,
    inside: npt.NDArray[np.int64],
    outside: npt.NDArray[Any],
    column: ColumnProfile,
    series: Series,
    chosen: Statistic,
    *,
    blocks: float,
    freedom: float,
    alarms_per_year: float,
    plan: Plan,
    highest_floor: float,
    memory: float = 0.0,
) -> Calibration | None:
    """Calibrate on stretches, `inside`, and what each is compared with, `outside`.

    `freedom` is that of a variance in one direction, estimated from the stretches; `memory` the
    correlation of one look's step with the next.
    """
    chosen = suited(chosen, edges)
    used = (inside[:, :-1].sum(axis=1) > 0) & (outside[:, :-1].sum(axis=1) > 0)
    if not column.usable or not edges.bins or not used.any():
        return None
    inside, outside = inside[used], outside[used]
    rows = float(np.median(inside[:, :-1].sum(axis=1)))
    bound = partial(
        distances, chosen, edges, positions=edges.positions(column.minimum, column.maximum)
    )
    curve = _curve(bound, column.counts, rows)

    def squared(reference: npt.NDArray[Any], current: npt.NDArray[Any]) -> Any:
        return np.interp(bound(reference, current), curve, SHIFTS) ** 2

    # Seeded by nothing but a constant: a reference built twice is the same.
    drawn = np.random.default_rng(0).multinomial(
        max(1, int(rows)), column.counts / column.usable, size=_DRAWS
    )
    by_counting = squared(column.counts, drawn)
    directions, varying = _directions(_spectrum(edges, inside, outside), freedom)
    whole = np.broadcast_to(column.counts, drawn.shape)
    free = float(np.sum(_spectrum(edges, _with_empty(drawn), _with_empty(whole)) ** 2))
    if by_counting.var():
        directions *= min(1.0, float(2 * by_counting.mean() ** 2 / by_counting.var()) * free)
    directions = max(1.0, directions)
    ends = tails(edges, column.counts)
    floor, floors = FLOOR, tuple[float, ...]()
    if series.clustering is not None:
        floor = min(max(FLOOR, series.clustering.shift), highest_floor)
        floors = clustered_floors(series.clustering.variances, *ends)
    cells, tail_, empty = (
        tail(alarms_per_year * plan.part(WEIGHTS[name]), plan, memory)
        for name in (LARGEST_CELL, HIGH_TAIL, EMPTY)
    )
    times = factor(
        directions=directions,
        freedom=freedom * directions,
        alarms_per_year=alarms_per_year * plan.part(_DISTANCE),
        plan=plan,
        memory=memory,
    )
    return Calibration(
        statistic=chosen.name,
        mean=float(np.mean(squared(outside[:, :-1], inside[:, :-1]))),
        factor=1 - varying + varying * times,
        sampling=float(by_counting.mean() + 4 * by_counting.std()) * rows,
        directions=directions,
        varying=varying,
        blocks=int(blocks),
        rows=rows,
        curve=tuple(curve.tolist()),
        floor=floor,
        memory=memory if plan.per_window == 1 else 0.0,
        looks=tolerance(
            inside,
            outside,
            ends=ends,
            floors=floors,
            freedom=freedom,
            chances=(cells, tail_, empty),
        ),
    )


def _curve(
    distances: Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.float64]],
    counts: npt.NDArray[Any],
    rows: float,
) -> npt.NDArray[np.float64]:
    """Return the distance to the reference when a normal feature shifts, for each of `SHIFTS`.

    The bins' shares are taken for stretches of a normal axis, which then moves either way; bins
    without order are taken as they come. Ascends strictly, so that it can be inverted.
    """
    # Summed as whole numbers: an empty bin at either end then has no width at all.
    ends = special.ndtri(np.cumsum(counts)[:-1] / counts.sum())
    moved = special.ndtr(ends + np.multiply.outer((-1, 1), SHIFTS)[..., None])
    shares = np.diff(moved, prepend=0, append=1, axis=-1).reshape(-1, len(counts))
    rising = np.maximum.accumulate(distances(counts, rows * shares).reshape(2, -1).mean(axis=0))
    # Saturated stretches rise by a hair.
    return np.asarray(rising + 1e-12 * max(rising[-1], 1e-12) * np.arange(len(SHIFTS)))


def _block_length(buckets: int, window: int) -> int:
    """Return a block's length in buckets: the window's, or less where that gives too few.

    Shorter blocks differ by more than windows do, so the limit errs to the quiet side.
    """
    return max(1, min(window, buckets // _WANTED_BLOCKS))


def _directions(weights: npt.NDArray[np.float64], freedom: float) -> tuple[float, float]:
    """Return the `directions` and `varying` of `Calibration`, of shares that add up to 1.

    Few windows make equal shares look unequal, by as much as moments of Wishart matrices say
    (Muirhead, 1982, section 3.2). Taken out in full, the noise of the correction would fit limits
    to the reference by luck: it is done as for `_SURE` times as many windows. Simulated features of
    one, two, four and nine directions, alone and in noise, went off at most 2.2 times as often as
    promised with 3 for it, and 1.6 times with 6.
    """
    n = _SURE * freedom
    cubes, mixed, whole = np.linalg.solve(
        [
            [1 + 3 / n + 4 / n**2, 3 / n + 3 / n**2, 1 / n**2],
            [4 / n + 4 / n**2, 1 + 1 / n + 4 / n**2, 1 / n],
            [8 / n**2, 6 / n, 1],
        ],
        [np.sum(weights**3), np.sum(weights**2), 1],
    )
    squares = float(np.clip(mixed / whole, 1 / len(weights), 1))
    cubes = float(np.clip(cubes / whole, squares**2, squares**1.5))
    return squares**3 / cubes**2, squares**2 / cubes


def _spectrum(
    edges: ColumnEdges, inside: npt.NDArray[Any], outside: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Return by how much stretches differ from what they are compared with, in each direction.

    Shares of the whole, which add up to 1: the eigenvalues of the covariance of the bins' shares,
    each in units of its counting error.
    """
    spread = np.linalg.svd(_deviations(edges, inside, outside), compute_uv=False) ** 2
    # All equal up to rounding: nothing to tell directions by.
    if spread.sum() < 1e-18:  # noqa: PLR2004
        return np.ones(1)
    found: npt.NDArray[np.float64] = spread / spread.sum()
    return found


def _memory(deviations: npt.NDArray[np.float64]) -> float:
    """Return the correlation of one stretch's deviations with the next one's, 0 to .98."""
    power = float(np.sum(deviations**2))
    if power < 1e-18:  # noqa: PLR2004 - as above
        return 0.0
    return min(0.98, max(0.0, float(np.sum(deviations[1:] * deviations[:-1])) / power))


def _deviations(
    edges: ColumnEdges, inside: npt.NDArray[Any], outside: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Return how the shares of coarse groups differ, in units of counting error.

    Shape (stretches, groups in use).
    """
    now, was = (np.add.reduceat(one[:, :-1], edges.groups, axis=1) for one in (inside, outside))
    middle = now.sum(axis=0) / now.sum()
    used = middle > 0
    gap = now / now.sum(axis=1, keepdims=True) - was / was.sum(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = gap[:, used] / np.sqrt(middle[used])
    return found


def _with_empty(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([counts, np.zeros((len(counts), 1), counts.dtype)], axis=1)
