"""The limits of one feature: what was measured, what may be, and what a window is compared with.

Above `monitor.drift.shares`; `monitor.drift.calibration` measures them on a reference and says how.
Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

from steadfeast.monitor.drift.distances import Statistic, statistic
from steadfeast.monitor.drift.shares import Tolerance
from steadfeast.monitor.profiles.binning import ORDERED, ColumnEdges
from steadfeast.monitor.sources.snapshot import EPOCH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from steadfeast.monitor.config.schema import MonitorConfig
    from steadfeast.monitor.profiles.profile import ColumnProfile

SHIFTS = (0.0, *np.geomspace(0.001, 10, 64).tolist())
"""Read in straight lines between: from far below any floor, because PSI rises with the square."""
_MIN_SAME_WEEKDAYS = 4
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How one feature's threshold came about.

    Attributes:
        statistic: Name of the statistic that is used for this feature.
        mean: Mean squared distance of a block of the reference to the rest of it, as a shift
            in standard deviations of a normal feature.
        factor: How many times that mean a window may be off.
        sampling: Times `1 / rows`, what counting alone may add at most, in the same terms.
        directions: Effective number of the directions that make the largest distances.
        varying: Share of `mean` that is theirs, above 0 to 1; the rest is always there.
        blocks: Whole blocks in the reference.
        rows: Rows of a block, in the middle.
        curve: Value of the statistic at each of `SHIFTS`, ascending.
        floor: Least shift that is worth an alarm, in standard deviations.
        memory: Correlation of one stretch with the next, 0 to 1; 0 where they overlap.
        looks: How far single shares may change.
    """

    statistic: str
    mean: float
    factor: float
    sampling: float
    directions: float
    varying: float
    blocks: int
    rows: float
    curve: tuple[float, ...]
    floor: float
    memory: float
    looks: Tolerance

    def limit(self, rows: float) -> float:
        """Return the threshold for a window of `rows` usable rows, in the statistic's unit."""
        fewer = max(0.0, 1 / rows - 1 / self.rows) if rows else 0.0
        squared = max(self.factor * self.mean, self.floor**2) + self.sampling * fewer
        return float(np.interp(math.sqrt(squared), SHIFTS, self.curve))

    def shift(self, value: float) -> float:
        """Return the shift of a normal feature that would give `value`, in sd, 0 to 10."""
        return float(np.interp(value, self.curve, SHIFTS))

    def surprise(self, value: float) -> float:
        """Return the chance of such a value or a larger one where nothing happened, 0 to 1."""
        if not self.mean:
            return 0.0 if value > self.curve[0] else 1.0
        freedom = 1.5 * self.directions * max(self.blocks - 1, 1)
        above = max(0.0, self.shift(value) ** 2 / self.mean - 1 + self.varying) / self.varying
        return float(special.fdtrc(self.directions, freedom, above))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Return what `dataclasses.asdict` was called on, after its way through JSON."""
        looks: dict[str, Any] = {
            key: tuple(one) if isinstance(one, list) else one for key, one in data["looks"].items()
        }
        return cls(**{**data, "curve": tuple(data["curve"]), "looks": Tolerance(**looks)})


def suited(chosen: Statistic, edges: ColumnEdges) -> Statistic:
    """Return `chosen`, or what stands in for it on a column whose bins have no order."""
    if chosen.ordered and edges.kind not in ORDERED:
        return statistic("total_variation")
    return chosen


def compare(
    chosen: Statistic,
    edges: ColumnEdges,
    reference: ColumnProfile,
    current: ColumnProfile,
    expected: npt.NDArray[Any] | None = None,
) -> float:
    """Return the distance of two profiles of one column, in the unit of `chosen`.

    Args:
        chosen: The statistic.
        edges: Of both.
        reference: Of the column.
        current: Of the column.
        expected: Counts to compare with rather than all of the reference's, shape (bins,).

    Raises:
        EmptyWindowError: A side has no usable counts.
    """
    bounds = [reference.minimum, current.minimum, reference.maximum, current.maximum]
    held = [bound for bound in bounds if bound is not None]
    positions = edges.positions(min(held, default=None), max(held, default=None))
    counts = reference.counts if expected is None else expected
    return distance(chosen, edges, counts, current.counts, positions)


def distance(
    chosen: Statistic,
    edges: ColumnEdges,
    reference: npt.NDArray[Any],
    current: npt.NDArray[Any],
    positions: npt.NDArray[np.float64],
) -> float:
    """Return the distance of two vectors of counts over `edges`.

    Args:
        chosen: The statistic.
        edges: Of both.
        reference: Shape (bins,); may be fractional.
        current: Likewise.
        positions: Where each bin's rows are taken to lie.

    Raises:
        EmptyWindowError: A side has no usable counts.
    """
    if chosen.coarse:
        reference, current = edges.coarse(reference), edges.coarse(current)
        positions = np.arange(len(reference), dtype=np.float64)
    # A bin that nobody is in is no bin: with a prior it would count where sizes differ.
    held = (reference + current) > 0
    return chosen.measure(reference[held], current[held], positions[held])


def distances(
    chosen: Statistic,
    edges: ColumnEdges,
    reference: npt.NDArray[Any],
    current: npt.NDArray[Any],
    positions: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return the `distance` of each row of one stack to that of the other, shape (n,).

    Args:
        chosen: The statistic.
        edges: Of both.
        reference: Shape (n, bins), or (bins,) for each of the others; may be fractional.
        current: Shape (n, bins).
        positions: Where each bin's rows are taken to lie.

    Raises:
        EmptyWindowError: A row has no usable counts.
    """
    reference = np.broadcast_to(reference, current.shape)
    if not chosen.stacked:
        pairs = zip(reference, current, strict=True)
        return np.array([distance(chosen, edges, one, two, positions) for one, two in pairs])
    if chosen.coarse:
        reference, current = edges.coarse(reference), edges.coarse(current)
        positions = np.arange(reference.shape[-1], dtype=np.float64)
    return np.asarray(chosen.measured(reference, current, positions))


def weekday(start: datetime) -> int:
    """Return the day of the week of a bucket that starts at `start`, UTC; a Thursday is 0."""
    return (start - EPOCH) // _DAY % 7


def latest_length(config: MonitorConfig) -> timedelta:
    """Return how much of a window is judged by itself as its last part: a day of a week."""
    return config.bucket * max(1, config.window // config.bucket // 7)


def seasonal(config: MonitorConfig, weekdays: npt.NDArray[np.int64]) -> bool:
    """Say whether the last part of a window is compared with the same weekdays.

    Args:
        config: The monitor.
        weekdays: Of the reference's buckets that have rows.
    """
    if config.bucket > _DAY or latest_length(config) % _DAY:
        return False
    enough = _MIN_SAME_WEEKDAYS * (_DAY // config.bucket)
    return bool((np.bincount(weekdays, minlength=7) >= enough).all())


def mixed(by_weekday: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the reference's counts for buckets of certain weekdays, shape (bins + 1,).

    Args:
        by_weekday: `extended` counts of the reference, shape (7, bins + 1).
        rows: Current rows by weekday, shape (7,), any scale.
    """
    has = by_weekday.sum(axis=1)
    weight = np.where(has > 0, rows, 0)
    if not weight.sum():
        whole: npt.NDArray[np.float64] = by_weekday.sum(axis=0).astype(np.float64)
        return whole
    share = weight / weight.sum() / np.maximum(has, 1)
    found: npt.NDArray[np.float64] = (share @ by_weekday) * has[weight > 0].sum()
    return found
