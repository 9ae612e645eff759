"""How far is far: each feature's limits, measured on the buckets of the reference.

Above `monitor.drift.thresholds`, `shares`, `calendar` and `false_alarms`; `monitor.drift.reference`
holds what is made here. Pure.

Every bucket of the reference is compared with its like among the others, as a later one will be
compared with all of them. What is left is how far the feature strays by itself: its *effects*. The
limit is the largest of

- the floor, `smallest_change`, below which nothing is worth an alarm;
- a multiple of the spread of the effects, which `monitor.drift.false_alarms` makes of the promises;

and what counting the rows of one bucket adds to its distance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

from steadfeast.monitor.drift.calendar import MONTH_START, Calendar
from steadfeast.monitor.drift.distances import statistic
from steadfeast.monitor.drift.false_alarms import Comparison, Promise, Wandering, scale, wandering
from steadfeast.monitor.drift.shares import (
    Ends,
    extended,
    share_limits,
    shares_of,
)
from steadfeast.monitor.drift.thresholds import (
    SHIFTS,
    Straying,
    Threshold,
    distances,
    effect_curve,
    normal_scores,
    suited,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift.shares import ShareLimits
    from steadfeast.monitor.profiles import ColumnEdges, Edges, Profile

Floats = npt.NDArray[np.float64]

FEWEST_BUCKETS = 4
_TRUSTED_ROWS = 1_000
"""Rows of a bucket whose counting errs as much as days of a restless feature differ."""
_DRAWS = 128
_COUNTING = 2.0
"""Standard deviations of a distance by counting that a bucket may be off beside its effect."""
_SURE = 6.0
"""Standard errors by which the first days of months must differ to be a kind of their own."""
_MOST_AHEAD = 1_000
_CALENDAR = 25
_FLAT = 1e-6
_WINDOWS = 1.5
"""Times that a window of a feature that is the calendar may be off what the reference's were."""
_YEAR = timedelta(days=365.25)


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What buckets are expected to look like, by the calendar.

    Attributes:
        terms: What of the calendar is told apart.
        rows: Of a bucket, in the middle.
        precision: How surely each part of the design is known, shape (k, k).
        shares: Of each feature, as `shares_of` gives them, by part of the design, (k, bins + 1).
    """

    terms: tuple[str, ...]
    rows: float
    precision: Floats
    shares: Mapping[str, Floats]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expected) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def of(self, feature: str, design: Floats) -> tuple[Floats, float]:
        """Return the shares to expect, and as how many rows they are good.

        Args:
            feature: Which.
            design: Of the buckets that are judged together, shape (buckets, k).
        """
        mean = design.mean(axis=0)
        doubt = max(float(mean @ self.precision @ mean), 1e-9)
        return _proper(mean @ self.shares[feature]), self.rows / doubt

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "terms": list(self.terms),
            "rows": self.rows,
            "precision": self.precision.tolist(),
            "shares": {name: one.tolist() for name, one in self.shares.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Expected:
        """Return what `to_json` was called on."""
        shares = {name: np.array(one) for name, one in data["shares"].items()}
        return cls(tuple(data["terms"]), data["rows"], np.array(data["precision"]), shares)


def calibrate(
    found: Sequence[tuple[datetime, Profile]],
    edges: Edges,
    config: MonitorConfig,
    *,
    beside: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> tuple[Expected | None, dict[str, Threshold]]:
    """Compare the buckets of a reference with each other; nothing where they are too few.

    Args:
        found: Start and profile of each bucket with rows, by time.
        edges: What the profiles are over.
        config: The monitor.
        beside: More features that share what is promised.
        tell: Called with how many features are calibrated, and how many there are.
    """
    starts = [start for start, _ in found]
    counts = {
        name: filled
        for name in edges.columns
        if (filled := _filled([extended(one.columns[name]) for _, one in found])) is not None
    }
    if len(found) < FEWEST_BUCKETS or not counts:
        return None, {}
    rows = np.array([one.rows for _, one in found], np.float64)
    calendar = Calendar.of(config.bucket, config.calendar, starts)
    how, precision = _comparison(calendar, starts, rows)
    if MONTH_START in calendar.kinds and calendar.config.month_start is None:
        values = [_location(edges.columns[name], one, how) for name, one in counts.items()]
        if _months_begin_apart(calendar, starts, how.residuals(np.array(values))):
            calendar = replace(calendar, terms=(*calendar.terms, MONTH_START))
            how, precision = _comparison(calendar, starts, rows)
    measured = {}
    for done, (name, one) in enumerate(counts.items()):
        if tell is not None:
            tell(done, len(counts))
        measured[name] = _measured(edges.columns[name], one, how, config)
    # Rounded, so that what is stored is what was used.
    shares = {name: np.round(how.operator @ shares_of(one), 9) for name, one in counts.items()}
    expected = Expected(calendar.terms, float(np.median(rows)), precision, shares)
    share = len(counts) / (len(counts) + beside)
    promise = Promise(
        share * config.false_alarms_per_year,
        share * config.false_alarm_days_per_year,
        _YEAR / config.bucket,
    )
    return expected, _limits(measured, how, promise)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured of one feature.

    Attributes:
        threshold: Its limits, as if nothing wandered.
        effects: How far each bucket was from its like, in sd and to which side.
        counting: Variance that counting adds to them.
        shares: Gives the limits of shares at a multiple of what they stray.
    """

    threshold: Threshold
    effects: Floats
    counting: float
    shares: Callable[[float], ShareLimits]


def _limits(
    measured: Mapping[str, _Measured], how: Comparison, promise: Promise
) -> dict[str, Threshold]:
    """Return the limits that keep a promise."""
    effects = np.array([one.effects for one in measured.values()])
    power = np.maximum(np.mean(effects**2, axis=1), 1e-18)
    counting = np.array([one.counting for one in measured.values()]) / power
    floors = np.array([one.threshold.floor for one in measured.values()])

    def strayings(known: Sequence[Straying | None]) -> tuple[list[Straying | None], Wandering]:
        spread = np.array([0.0 if one is None else one.spread for one in known])
        found = wandering(effects, spread, np.minimum(counting, 1), how, floors, promise)
        most, single = found.multiple * found.spread, found.farthest * found.spread
        return [
            one
            and replace(
                one, spread=float(found.spread[i]), most=float(most[i]), single=float(single[i])
            )
            for i, one in enumerate(known)
        ], found

    shifts, _ = strayings([one.threshold.by_shift for one in measured.values()])
    distances_, found = strayings([one.threshold.by_distance for one in measured.values()])
    made = {}
    for i, (name, one) in enumerate(measured.items()):
        by_distance = distances_[i]
        if by_distance is None or one.threshold.whole_window:
            by_distance = one.threshold.by_distance
        made[name] = replace(
            one.threshold,
            by_distance=by_distance,
            by_shift=shifts[i],
            memory=float(found.memory[i]),
            shares=one.shares(float(found.multiple[i])),
        )
    return made


def _measured(
    edges: ColumnEdges,
    counts: npt.NDArray[Any],
    how: Comparison,
    config: MonitorConfig,
) -> _Measured:
    """Compare each bucket of one feature with its like among the others."""
    chosen, column = suited(config.statistic, edges), counts.sum(axis=0)
    leverage, usable = how.leverage, counts[:, :-1].sum(axis=1)
    rows = float(np.median(usable))
    shares = shares_of(counts)
    left_out = _proper(shares - how.residuals(shares.T).T / (1 - leverage[:, None]))
    positions = edges.positions(None, None)
    likes = rows * (1 / np.maximum(leverage, 1e-9) - 1)
    typical = float(np.median(likes))
    curve = effect_curve(chosen, edges, column[:-1], typical, rows, positions)
    if curve[-1] < _FLAT:  # all rows in one bin, which no shift moves
        chosen = statistic("total_variation")
        curve = 2 * special.ndtr(np.array(SHIFTS) / 2) - 1

    def squared(reference: Floats, current: npt.NDArray[Any]) -> Floats:
        value = distances(chosen, edges, reference, current, positions)
        return np.asarray(np.interp(value, curve, SHIFTS)) ** 2

    effects = squared(left_out[:, :-1] * likes[:, None], counts[:, :-1])
    # Seeded by nothing but a constant: a reference built twice is the same.
    middle = column[:-1] / column[:-1].sum()
    drawn = np.random.default_rng(0).multinomial(max(1, int(rows)), middle, size=_DRAWS)
    by_counting = squared(middle * typical, drawn)
    both = 1 / rows + 1 / typical
    even = (1 - leverage.mean()) * (_within(effects) - _within(by_counting))
    along = how.residuals(_location(edges, counts, how))
    shares_within = partial(
        share_limits,
        counts,
        left_out,
        likes,
        Ends.of(edges, column[:-1]),
        smallest_change=config.smallest_change,
    )
    farthest, whole_window, most = float(np.sqrt(effects.max())), _tells_time(shares, how), 0.0
    if whole_window:
        inside = _sliding(counts[:, :-1], config.window // config.bucket)
        far = squared((column[:-1] - inside).astype(np.float64), inside)
        most = _WINDOWS * float(np.sqrt(far.max(initial=0)))
    counting = float(np.mean((1 - leverage) / usable))
    scores, by_shift = normal_scores(edges, column[:-1]), None
    if len(scores) and not whole_window:
        spread = float(scale(along / np.sqrt(1 - leverage))) ** 2 - counting
        most_shift = float(np.abs(along / (1 - leverage)).max())
        by_shift = Straying(max(spread, 0.0) ** 0.5, 0.0, 0.0, most_shift)
    threshold = Threshold(
        statistic=chosen.name,
        floor=config.smallest_change,
        by_distance=Straying(float(np.sqrt(max(even, 0.0))), most, most, farthest),
        by_shift=by_shift,
        counting=float(by_counting.mean() + _COUNTING * by_counting.std()) / both,
        buckets=len(counts),
        rows=rows,
        memory=0.0,
        whole_window=whole_window,
        curve=tuple(curve.tolist()),
        scores=tuple(scores.tolist()),
        shares=shares_within(1.0),
    )
    return _Measured(threshold, along, counting, shares_within)


def _tells_time(shares: Floats, how: Comparison) -> bool:
    """Say whether a feature is the calendar: the same on days of a kind, and far on others."""
    used = shares[:, :-1].mean(axis=0) > 0
    even = shares[:, :-1][:, used] / np.sqrt(shares[:, :-1][:, used].mean(axis=0))
    whole = float(np.mean(np.sum((even - even.mean(axis=0)) ** 2, axis=1)))
    left = float(np.mean(np.sum(how.residuals(even.T) ** 2, axis=0)))
    return whole > max(1.0, _CALENDAR * left)


def _sliding(counts: npt.NDArray[Any], length: int) -> npt.NDArray[np.int64]:
    """Return the sums of each `length` buckets in a row, where they are not all of them."""
    sums = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])
    found: npt.NDArray[np.int64] = sums[length:] - sums[:-length]
    return found[: len(found) if length < len(counts) else 0]


def _within(squares: Floats) -> float:
    return float(scale(np.sqrt(squares)) ** 2)


def _comparison(
    calendar: Calendar, starts: Sequence[datetime], rows: Floats
) -> tuple[Comparison, Floats]:
    """Return how buckets are compared, and how surely each part of the design is known."""
    design = calendar.design(starts)
    weighted = design * (rows / (rows + _TRUSTED_ROWS))[:, None]
    precision = np.asarray(np.linalg.pinv(weighted.T @ design, hermitian=True), np.float64)
    many = min(_MOST_AHEAD, max(1, round(_YEAR / calendar.bucket)))
    ahead = calendar.design([starts[-1] + (i + 1) * calendar.bucket for i in range(many)])
    typical = float(np.median(rows / (rows + _TRUSTED_ROWS)))
    return Comparison(design, precision @ weighted.T, ahead), precision * typical


def _filled(counts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """Return counts by bucket; a bucket without values is as all are; None where none has any."""
    stacked = np.array(counts)
    usable = stacked[:, :-1].sum(axis=1)
    if not usable.any():
        return None
    blank = usable == 0
    stacked[blank] = np.maximum(stacked.sum(axis=0) // max(1, np.count_nonzero(~blank)), 0)
    lost = stacked[:, :-1].sum(axis=1) == 0
    stacked[lost, int(stacked[:, :-1].sum(axis=0).argmax())] = 1
    return stacked


def _proper(shares: Floats) -> Floats:
    """Return shares that a least squares fit gives as shares, shape (..., bins + 1)."""
    bins = np.maximum(shares[..., :-1], 0)
    whole = np.maximum(bins.sum(axis=-1, keepdims=True), 1e-12)
    return np.concatenate([bins / whole, np.clip(shares[..., -1:], 0, 1)], axis=-1)


def _location(edges: ColumnEdges, counts: npt.NDArray[Any], how: Comparison) -> Floats:
    """Return where each bucket's rows lie, in sd: one number that tells its sides apart.

    Bins without an order lie on the line along which buckets differ most.
    """
    column = counts.sum(axis=0)[:-1]
    scores = normal_scores(edges, column)
    shares = shares_of(counts)[:, :-1]
    if len(scores):
        return shares @ scores
    groups = np.add.reduceat(shares, edges.groups, axis=1)
    usual = np.add.reduceat(column, edges.groups) / column.sum()
    even = groups / np.sqrt(np.maximum(usual, 1e-12))
    _, _, axes = np.linalg.svd(how.residuals(even.T).T, full_matrices=False)
    found: Floats = even @ axes[0]
    return found


def _months_begin_apart(calendar: Calendar, starts: Sequence[datetime], effects: Floats) -> bool:
    """Say whether any feature differs on the first days of months, and of each month alike."""
    first = np.array([calendar.kind(start) == MONTH_START for start in starts])
    months = np.array([12 * start.year + start.month for start in starts])
    listed = np.unique(months[first])
    if len(listed) < 2 or first.all():  # noqa: PLR2004 - one is no pattern
        return False
    usual = effects[:, ~first].mean(axis=1)
    apart = np.array([effects[:, first & (months == one)].mean(axis=1) for one in listed]) - usual
    error = np.maximum(scale(effects[:, ~first]), 1e-9) / np.sqrt(np.count_nonzero(first))
    mean = apart.mean(axis=0)
    alike = (apart * mean > mean**2 / 2).all(axis=0)
    return bool((alike & (np.abs(mean) > _SURE * error)).any())
