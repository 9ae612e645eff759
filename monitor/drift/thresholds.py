"""The limits of one feature: how far it may be from its like, and how a distance is measured.

Above `monitor.drift.shares`; `monitor.drift.calibration` measures them on a reference. Pure.

Statistics saturate: PSI of a shift by 6 standard deviations is hardly above that of 4. So each
value is read as the shift, in standard deviations of a normal feature over the same bins, that
would give it: its *effect*. Effects are what is compared, with each other and over time; in the
statistic's own unit only the value itself is shown and its limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

from steadfeast.monitor.drift.distances import Statistic, statistic
from steadfeast.monitor.drift.false_alarms import decisive
from steadfeast.monitor.drift.persistence import DECISIVE
from steadfeast.monitor.drift.shares import EMPTY, Ends, ShareLimits
from steadfeast.monitor.profiles import ORDERED, ColumnEdges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steadfeast.monitor.drift.shares import ShareChange

SHIFT = "shift"
"""Name of the measure that is where a feature's rows lie."""

SHIFTS = (0.0, *np.geomspace(0.001, 10, 64).tolist())
"""Read in straight lines between: from far below any floor, because PSI rises with the square."""
_SHIFT_SCORE = 2.5
"""Standard deviations of counting that a shift may be off."""
_CLEARLY_EMPTY = 0.02
"""Least change of the empty rows, or of new values, that a single bucket may be an alarm for."""


@dataclass(frozen=True, slots=True)
class Straying:
    """How far a feature goes by itself, in standard deviations.

    Attributes:
        spread: Of the reference's buckets, beyond counting, corrected for what so few hide.
        most: What is reached as often as was promised.
        single: What a single bucket reaches as often as was promised.
        farthest: The most in the reference, each bucket compared with the others.
    """

    spread: float
    most: float
    single: float
    farthest: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """How far one feature may be from its like.

    Attributes:
        statistic: Name of the statistic that is used for this feature.
        floor: Least effect that is worth an alarm, in standard deviations.
        by_distance: How far the feature strays by itself, by the statistic.
        by_shift: The same by where its rows lie; None without an order.
        counting: Times `1 / rows`, what counting adds to a squared effect at most.
        buckets: Of the reference.
        rows: Of a bucket, in the middle.
        memory: Correlation of one bucket with the next, 0 to 1.
        whole_window: Whether the window is judged rather than its last bucket: a feature that is
            the calendar itself, such as the day of the week, says nothing within a day.
        curve: Value of the statistic at each of `SHIFTS`, ascending.
        scores: Where each bin lies, in sd of a normal feature; empty without an order.
        shares: How far single shares may change.
    """

    statistic: str
    floor: float
    by_distance: Straying
    by_shift: Straying | None
    counting: float
    buckets: int
    rows: float
    memory: float
    whole_window: bool
    curve: tuple[float, ...]
    scores: tuple[float, ...]
    shares: ShareLimits

    def limit(self, rows: float, expected_rows: float = math.inf) -> float:
        """Return the largest effect by distance that is no drift, in sd.

        Args:
            rows: With a value, of what is judged.
            expected_rows: That what it is compared with is as good as.
        """
        sampling = self.counting * (1 / rows + 1 / expected_rows) if rows else 0.0
        return math.sqrt(max(self.floor, self.by_distance.most) ** 2 + sampling)

    def decisive(self, limit: float, straying: Straying) -> float:
        """Return the effect from which on a single bucket is an alarm, in sd."""
        return float(decisive(*map(np.array, (limit, self.floor, straying.single))))

    def shift_limit(self, straying: Straying, rows: float, expected_rows: float) -> float:
        """Return the largest shift that is no drift, in sd. Arguments as in `limit`."""
        sampling = _SHIFT_SCORE**2 * (1 / rows + 1 / expected_rows)
        return math.sqrt(max(self.floor, straying.most) ** 2 + sampling)

    def decisive_change(self, change: ShareChange, effect: float, *, unseen: bool) -> float:
        """Return the change of a share from which on a single bucket is an alarm.

        Args:
            change: Of which share.
            effect: That is decisive: what it would move between the halves of a normal feature.
            unseen: Whether it is the share of values that the reference lacks.
        """
        if change.name == EMPTY or unseen:
            return max(DECISIVE * change.allowed, _CLEARLY_EMPTY)
        return max(DECISIVE * change.allowed, float(2 * special.ndtr(effect / 2) - 1))

    def effect(self, value: float) -> float:
        """Return the shift of a normal feature that would give `value`, in sd, 0 to 10."""
        return float(np.interp(value, self.curve, SHIFTS))

    def value(self, effect: float) -> float:
        """Return the value of the statistic at an effect."""
        return float(np.interp(effect, SHIFTS, self.curve))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Threshold:
        """Return what `dataclasses.asdict` was called on, after its way through JSON."""
        shares = data["shares"]
        listed = {key: tuple(shares[key]) for key in ("spread", "times")}
        made = ShareLimits(**{**shares, **listed, "ends": Ends(**shares["ends"])})
        by_shift = data["by_shift"]
        return cls(
            **{
                **data,
                **{key: tuple(data[key]) for key in ("curve", "scores")},
                "by_distance": Straying(**data["by_distance"]),
                "by_shift": None if by_shift is None else Straying(**by_shift),
                "shares": made,
            }
        )


def suited(name: str, edges: ColumnEdges) -> Statistic:
    """Return the statistic of this name, or what stands in for it on bins without an order."""
    chosen = statistic(name)
    if chosen.ordered and edges.kind not in ORDERED:
        return statistic("total_variation")
    return chosen


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
    filled = (reference + current) > 0
    return chosen.measure(reference[filled], current[filled], positions[filled])


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


def effect_curve(
    chosen: Statistic,
    edges: ColumnEdges,
    counts: npt.NDArray[Any],
    likes: float,
    rows: float,
    positions: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return the distance of `rows` rows to `likes` for each of `SHIFTS` of a normal feature.

    The bins' shares are taken for stretches of a normal axis, which then moves either way; bins
    without order are taken as they come. Ascends strictly, so that it can be inverted.
    """
    # Summed as whole numbers: an empty bin at either end then has no width at all.
    ends = special.ndtri(np.cumsum(counts)[:-1] / counts.sum())
    moved = special.ndtr(ends + np.multiply.outer((-1, 1), SHIFTS)[..., None])
    shares = np.diff(moved, prepend=0, append=1, axis=-1).reshape(-1, len(counts))
    usual = likes / counts.sum() * counts
    found = distances(chosen, edges, usual, rows * shares, positions)
    rising = np.maximum.accumulate(found.reshape(2, -1).mean(axis=0))
    # Saturated parts rise by a hair.
    return np.asarray(rising + 1e-12 * max(rising[-1], 1e-12) * np.arange(len(SHIFTS)))


def normal_scores(edges: ColumnEdges, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return where each bin lies in sd of a normal feature, mean 0 and sd 1 over `counts`.

    Empty without an order, or where all rows are in one bin. After van der Waerden (1952).
    """
    shares = counts / max(1, counts.sum())
    if edges.kind not in ORDERED or shares.max(initial=0) >= 1:
        return np.empty(0)
    middle = np.clip(np.cumsum(shares) - shares / 2, 1e-4, 1 - 1e-4)
    scores = special.ndtri(middle)
    scores -= shares @ scores
    found: npt.NDArray[np.float64] = scores / math.sqrt(shares @ scores**2)
    return found
