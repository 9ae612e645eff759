"""Distances between two histograms of one feature.

Bottom layer: arrays in, floats out; no clock and no state. `monitor.drift.reference` says which
distance is large, `monitor.drift.detector` compares. All functions take counts per bin of the same
binning; counts may be fractional (weights). Bins are in ascending order for numeric features. Nulls
and NaN are not in the counts: `monitor.drift.data_quality` looks at them. Those of ours take stacks
of histograms too, shape (..., k), and return as many distances, shape (...): calibration compares
hundreds of windows of a feature at once.

Errors are stated against the value on raw rows, at the binning of `monitor.profiles.binning` and
100,000 rows a side, for shifts of 0 to 1 standard deviation and scales of 1 to 1.1 (tests/monitor/
test_statistics_error.py). For what sums a cost per bin the value on raw rows is that over the
reference's exact deciles: on continuous features the groups are those deciles up to counting; on
counts and zero-inflated features each value of weight is a group of its own, which sees more.

A statistic of one's own is a function `(reference, current) -> float` with an entry point in
the group `steadfeast.statistics`; its name there is the name in the configuration. An entry
point may also name a `Statistic`, which says more about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from steadfeast.featurestore.errors import NotFoundError, SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Mapping

Counts = npt.NDArray[Any]
Positions = npt.NDArray[np.float64]
Value = float | npt.NDArray[np.float64]
Distance = Callable[..., Value]

GROUP = "steadfeast.statistics"


class BinMismatchError(SteadfeastError):
    """Two histograms do not have the same bins.

    Attributes:
        reference: Shape of the reference's counts.
        current: Shape of the current ones.
    """

    def __init__(self, reference: tuple[int, ...], current: tuple[int, ...]) -> None:
        self.reference, self.current = reference, current
        super().__init__(f"histograms of different shapes: {reference} and {current}")


class EmptyWindowError(SteadfeastError):
    """One side has no usable counts: no data is an error, never zero drift.

    Attributes:
        side: "reference" or "current".
    """

    def __init__(self, side: str) -> None:
        self.side = side
        super().__init__(f"the {side} histogram holds no usable counts")


def _checked(reference: Counts, current: Counts) -> tuple[Counts, Counts]:
    """Return both as float vectors, or say what is wrong with them."""
    if reference.shape != current.shape or not reference.ndim:
        raise BinMismatchError(reference.shape, current.shape)
    sides = []
    for side, counts in (("reference", reference), ("current", current)):
        values = counts.astype(np.float64)
        sums = values.sum(axis=-1)
        # The comparisons are false for NaN and infinite totals, and for no bins at all.
        if not (sums.size and sums.min() > 0 and sums.max() < math.inf and values.min() >= 0):
            raise EmptyWindowError(side)
        sides.append(values)
    return sides[0], sides[1]


def _sum(terms: Counts) -> Value:
    total: Value = terms.sum(axis=-1)
    return total


def _shares(reference: Counts, current: Counts) -> tuple[Counts, Counts]:
    left, right = _checked(reference, current)
    return left / left.sum(axis=-1, keepdims=True), right / right.sum(axis=-1, keepdims=True)


def psi(reference: Counts, current: Counts, *, prior: float = 0.5) -> Value:
    """Return the population stability index in nats; 0 means equal shares.

    Args:
        reference: Counts per bin, shape (k,), or (..., k) for as many distances.
        current: Counts over the same bins, of the same shape.
        prior: Pseudo-count per bin; keeps an empty bin's cost finite. A bin that is empty on both
            sides is no bin: with a prior it would count where sizes differ.

    Raises:
        BinMismatchError: The shapes differ.
        EmptyWindowError: A side has no usable counts.

    Error: .5 % or 2e-5 on continuous features; for others see the module.

    Reference: Jeffreys (1946), Proc. R. Soc. A 186:453 (divergence and prior).
    """
    left, right = _checked(reference, current)
    held = left + right > 0
    p, q = (c + prior * held for c in (left, right))
    p, q = (c / c.sum(axis=-1, keepdims=True) for c in (p, q))
    return _sum((q - p) * np.log(np.where(held, q, 1) / np.where(held, p, 1)))


def jensen_shannon(reference: Counts, current: Counts) -> Value:
    """Return the Jensen-Shannon divergence in nats, 0 to ln 2.

    The divergence, not its square root. Arguments and errors as in `psi`.

    Error: .5 % or 2e-5 on continuous features; for others see the module.

    Reference: Lin (1991), IEEE Trans. Inf. Theory 37:145.
    """
    p, q = _shares(reference, current)
    middle = (p + q) / 2

    def relative_entropy(share: Counts) -> Value:
        held = share > 0
        return _sum(share * np.log(np.where(held, share, 1) / np.where(held, middle, 1)))

    return np.maximum(0.0, (relative_entropy(p) + relative_entropy(q)) / 2)


def ks(reference: Counts, current: Counts) -> Value:
    """Return the Kolmogorov-Smirnov distance over the bins' upper ends, 0 to 1.

    Ordered bins. Never above the distance of the raw rows, and below it by at most the largest
    share of one bin. Arguments and errors as in `psi`.

    Error: at most .001, never above.

    Reference: Smirnov (1948), Ann. Math. Statist. 19:279.
    """
    p, q = _shares(reference, current)
    return np.asarray(np.abs(np.cumsum(p - q, axis=-1)).max(axis=-1))[()]


def wasserstein(reference: Counts, current: Counts, positions: Positions) -> Value:
    """Return the 1-Wasserstein distance in standard deviations of the reference, from 0.

    Ordered bins. A reference without spread is measured in the positions' own unit.

    Args:
        reference: Counts per bin, shape (k,), or (..., k) for as many distances.
        current: Counts over the same bins, of the same shape.
        positions: Where each bin's rows are taken to lie, ascending, shape (k,).

    Raises:
        BinMismatchError: The shapes differ.
        EmptyWindowError: A side has no usable counts.

    Error: at most 5 % or .001; on tails as heavy as Student's t with 3 degrees of freedom, of
    which a few rows decide, up to 40 %.

    Reference: Vallender (1974), Theory Probab. Appl. 18:784 (the area between two CDFs).
    """
    p, q = _shares(reference, current)
    if positions.shape != p.shape[-1:]:
        raise BinMismatchError(p.shape, positions.shape)
    mean = _sum(p * positions)
    spread = np.sqrt(_sum(p * (positions - np.expand_dims(mean, -1)) ** 2))
    area = _sum(np.abs(np.cumsum(p - q, axis=-1))[..., :-1] * np.diff(positions))
    return area / np.where(spread == 0, 1.0, spread)


def hellinger(reference: Counts, current: Counts) -> Value:
    """Return the Hellinger distance, 0 to 1. Arguments and errors as in `psi`.

    Error: .5 % or 2e-5 on continuous features; for others see the module.

    Reference: Le Cam and Yang (2000), Asymptotics in Statistics, section 3.1.
    """
    p, q = _shares(reference, current)
    return np.sqrt(_sum((np.sqrt(p) - np.sqrt(q)) ** 2) / 2)


def total_variation(reference: Counts, current: Counts) -> Value:
    """Return the share of rows that would have to change bins, 0 to 1.

    Arguments and errors as in `psi`.

    Error: .5 % or 2e-5 on continuous features; for others see the module.

    Reference: Levin, Peres and Wilmer (2009), Markov Chains and Mixing Times, section 4.1.
    """
    p, q = _shares(reference, current)
    return _sum(np.abs(p - q)) / 2


def cramer_von_mises(reference: Counts, current: Counts) -> Value:
    """Return the mean squared gap of the two CDFs, 0 to 1/3, or to 2/3 where rows share bins.

    Ordered bins. For equal sizes this is the two-sample T of Anderson divided by nm/(n+m); for
    others both sides have the same weight all the same, so that sizes do not matter. Arguments
    and errors as in `psi`.

    Error: at most 2 % or 2e-6.

    Reference: Anderson (1962), Ann. Math. Statist. 33:1148.
    """
    p, q = _shares(reference, current)
    return _sum((p + q) / 2 * np.cumsum(p - q, axis=-1) ** 2)


def chi_square(reference: Counts, current: Counts) -> Value:
    """Return the two-sample chi-square statistic divided by nm/(n+m), from 0.

    Two-sample: the reference is counted too, not taken for the truth. The division makes it an
    effect size, near PSI for small shifts. Arguments and errors as in `psi`.

    Error: .5 % or 2e-5 on continuous features; for others see the module.

    Reference: Pearson (1911), Biometrika 8:250.
    """
    left, right = _checked(reference, current)
    n, m = (side.sum(axis=-1, keepdims=True) for side in (left, right))
    pooled = (left + right) / (n + m)
    return _sum((left / n - right / m) ** 2 / np.where(pooled > 0, pooled, 1))


def g_test(reference: Counts, current: Counts) -> Value:
    """Return the two-sample G statistic (likelihood ratio) divided by nm/(n+m), from 0.

    Arguments and errors as in `psi`.

    Error: .5 % or 2e-5 on continuous features; for others see the module.

    Reference: Wilks (1935), Ann. Math. Statist. 6:190.
    """
    left, right = _checked(reference, current)
    n, m = (side.sum(axis=-1, keepdims=True) for side in (left, right))
    pooled = (left + right) / (n + m)
    gain: Value = 0.0
    for counts, size in ((left, n), (right, m)):
        held = counts > 0
        gain += _sum(counts * np.log(np.where(held, counts, 1) / np.where(held, size * pooled, 1)))
    found: Value = np.maximum(0.0, 2 * gain * ((n + m) / (n * m))[..., 0])
    return found


@dataclass(frozen=True, slots=True)
class Statistic:
    """A distance, and what one must know to use it.

    Attributes:
        name: As in the configuration.
        function: `(reference, current) -> float`, or with `positions` as a third argument.
        unit: Of the value; empty for a share or a ratio.
        ordered: Bins must be in order; on categories `total_variation` stands in.
        positioned: The function takes `positions`.
        coarse: Uses about ten groups of bins rather than about a hundred bins. What sums a cost
            per bin gains noise with each bin; what reads the CDF loses detail with fewer.
        stacked: The function takes stacks of counts, too, and bins that are empty on both sides
            change nothing.
    """

    name: str
    function: Distance
    unit: str = ""
    ordered: bool = False
    positioned: bool = False
    coarse: bool = True
    stacked: bool = False

    def measure(self, reference: Counts, current: Counts, positions: Positions) -> float:
        """Return the distance; `positions` is ignored unless the function takes it."""
        return float(self.measured(reference, current, positions))

    def measured(self, reference: Counts, current: Counts, positions: Positions) -> Value:
        """Return what the function does, of stacks as many distances."""
        if self.positioned:
            return self.function(reference, current, positions)
        return self.function(reference, current)


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        one.name: replace(one, stacked=True)
        for one in (
            Statistic("psi", psi, unit="nats"),
            Statistic("jensen_shannon", jensen_shannon, unit="nats"),
            Statistic("ks", ks, ordered=True, coarse=False),
            Statistic(
                "wasserstein", wasserstein, unit="sd", ordered=True, positioned=True, coarse=False
            ),
            Statistic("hellinger", hellinger),
            Statistic("total_variation", total_variation),
            Statistic("cramer_von_mises", cramer_von_mises, ordered=True, coarse=False),
            Statistic("chi_square", chi_square),
            Statistic("g_test", g_test),
        )
    }
)
"""The statistics that come with Steadfeast, by name."""


def statistic(name: str) -> Statistic:
    """Return a statistic of ours, or else one that an installed package registered.

    Raises:
        NotFoundError: Nobody registered one of this name.
    """
    if name in STATISTICS:
        return STATISTICS[name]
    registered = entry_points(group=GROUP)
    for point in registered.select(name=name):
        loaded = point.load()
        return loaded if isinstance(loaded, Statistic) else Statistic(name, loaded)
    raise NotFoundError("statistic", name, [*STATISTICS, *registered.names])
