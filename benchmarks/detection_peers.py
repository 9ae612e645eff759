"""What others flag by default, as formulas over counts; for `benchmarks/detection.py`.

Each rule looks at one day of one feature against the whole reference, and flags or not.

evidently: up to 1000 reference rows KS or chi-square with p < .05; above, the Wasserstein distance
over the reference's standard deviation, or for categories the Jensen-Shannon distance (square root
of nats), at .1 or more. Its chi-square takes the reference for the truth.

nannyml: the Jensen-Shannon distance (base 2, square root) of each chunk, here a day, beyond mean
plus or minus three standard deviations of the reference's own chunks, the lower limit never below
0. It cuts numeric features by Doane's rule, about .5 standard deviations wide here; bins of .4
stand for those.

Checked against evidently 0.7.23 and nannyml 0.13.1 in small runs: evidently's methods, values and
flags are the same to rounding; nannyml's are the same on categories, and its flags on 19 of 20
chunks of numeric features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from benchmarks.detection_world import GRID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.detection_world import Column

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

RULES = ("KS p < .05", "PSI > .1", "PSI > .2", "mean ± 3 sd", "evidently", "nannyml")
SMALL = 1000
_MIDDLES = np.concatenate([[GRID[0]], (GRID[1:] + GRID[:-1]) / 2, [GRID[-1]]])


@dataclass(frozen=True)
class Peers:
    """The rules, fitted to one feature's reference.

    Attributes:
        ours: Reference counts over our bins.
        even: Over the even grid, or the categories.
        numeric: Whether bins have an order.
        deciles: First bin of each tenth of the reference, of `ours`.
        means: Mean and standard deviation of the reference days' means; of a category's share.
        chunks: Mean and standard deviation of the reference days' Jensen-Shannon distances.
    """

    ours: Counts
    even: Counts
    numeric: bool
    deciles: Counts
    means: tuple[float, float]
    chunks: tuple[float, float]

    @classmethod
    def fit(cls, reference: Sequence[Column], *, numeric: bool) -> Peers:
        """Fit them to the reference's days."""
        ours = np.sum([one.ours for one in reference], axis=0)
        even = np.sum([one.even for one in reference], axis=0)
        at = np.searchsorted(np.cumsum(ours) / ours.sum(), np.arange(1, 10) / 10)
        deciles = np.unique(np.append(0, at + 1)) if numeric else np.arange(len(ours))
        means = [_mean(one.even, numeric=numeric) for one in reference]
        chunks = [
            jensen_shannon(_doane(even, numeric), _doane(one.even, numeric)) for one in reference
        ]
        return cls(
            ours,
            even,
            numeric,
            deciles,
            (float(np.mean(means)), float(np.std(means))),
            (float(np.mean(chunks)), float(np.std(chunks))),
        )

    def flags(self, day: Column) -> tuple[bool, ...]:
        """Return what each of `RULES` says."""
        psi = self._psi(day)
        centre, spread = self.means
        at, by = self.chunks
        mean = _mean(day.even, numeric=self.numeric)
        chunk = jensen_shannon(_doane(self.even, self.numeric), _doane(day.even, self.numeric))
        return (
            self._p(day) < 0.05,
            psi > 0.1,
            psi > 0.2,
            abs(mean - centre) > 3 * spread,
            self._evidently(day),
            chunk > at + 3 * by or chunk < max(at - 3 * by, 0),
        )

    def _p(self, day: Column) -> float:
        """Two-sample KS, asymptotic; two-sample chi-square on categories."""
        n, m = self.ours.sum(), day.ours.sum()
        if self.numeric:
            distance = np.max(np.abs(np.cumsum(self.ours / n - day.ours / m)))
            return float(special.kolmogorov(distance * np.sqrt(n * m / (n + m))))
        held = (self.ours + day.ours) > 0
        return float(stats.chi2_contingency([self.ours[held], day.ours[held]])[1])

    def _psi(self, day: Column) -> float:
        was, now = (np.add.reduceat(one, self.deciles) for one in (self.ours, day.ours))
        held = (was + now) > 0
        p, q = (np.maximum(one[held] / one.sum(), 1e-4) for one in (was, now))
        return float(np.sum((q - p) * np.log(q / p)))

    def _evidently(self, day: Column) -> bool:
        was, now = self.even / self.even.sum(), day.even / day.even.sum()
        if self.even.sum() <= SMALL and self.numeric:
            return self._p(day) < 0.05
        if self.even.sum() <= SMALL:
            held = was > 0
            expected = was[held] / was[held].sum() * day.even[held].sum()
            return bool(
                (now[~held] > 0).any() or stats.chisquare(day.even[held], expected)[1] < 0.05
            )
        if not self.numeric:
            return jensen_shannon(self.even, day.even) * np.sqrt(np.log(2)) >= 0.1
        gap = np.abs(np.cumsum(was - now))[:-1] @ np.diff(_MIDDLES)
        spread = np.sqrt(was @ _MIDDLES**2 - (was @ _MIDDLES) ** 2)
        return bool(gap / max(spread, 0.001) >= 0.1)


def jensen_shannon(left: Counts, right: Counts) -> float:
    """Return the square root of the divergence to base 2, 0 to 1."""
    p, q = left / left.sum(), right / right.sum()
    middle = (p + q) / 2
    return float(
        np.sqrt(
            max(
                0.0,
                (special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum() / 2 / np.log(2),
            )
        )
    )


def _doane(counts: Counts, numeric: bool) -> Counts:
    """Return counts over bins as wide as nannyml's."""
    return np.add.reduceat(counts, np.arange(0, len(counts), 2)) if numeric else counts


def _mean(counts: Counts, *, numeric: bool) -> float:
    """Return the mean value; of categories, the share of the first."""
    return float(counts @ _MIDDLES / counts.sum() if numeric else counts[0] / counts.sum())
