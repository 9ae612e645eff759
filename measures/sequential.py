"""What may be said of a mean or a share at any time one looks, where rows of one day go together.

Beside `resampling`, which is for one look. Arrays in, numbers out; no I/O, clock or globals. Every
end returned here holds at all looks at once: the chance that it is *ever* wrong is `alpha`, however
often one looks and whenever one stops.

*A mean* is of blocks of time, usually days: what a day's weather does to every row of it is one
draw, not a thousand. Its ends come from a Bayes factor of Student's t, whose law under the null
does not depend on the unknown spread, so that a spread estimated from few days is paid for and not
assumed. Days that go together are paid for by an inflation of the variance and fewer days; the
correlation that is used lies above the estimated one by what the estimate does not know. Days of
unequal size count by Kish's effective number.

*A share* is of rows that happen or do not (errors, slow answers): a mixture of binomials over all
shares. Bursts are paid for by the overdispersion of the buckets.

References: Gonen et al. (2005), Am. Stat. 59:252 (Bayes factor of t); Wang and Ramdas (2025),
Sequential Anal. 44:56 (t tests valid at any time); Howard et al. (2021), Ann. Statist. 49:1055;
Robbins (1970), Ann. Math. Statist. 41:1397 (mixtures); Marriott and Pope (1954), Biometrika
41:390 (bias of a correlation); Lindon and Malek (2022), NeurIPS 35 (shares of a split).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from steadfeast.measures.figures import Floats

FEWEST_BLOCKS = 4
"""Blocks before anything is said of a mean."""
PRIOR = 0.3
"""Variance of the mixture over effect sizes (mean / spread of a day); sharpest near two weeks.

This and `PAID` are one of several pairs that kept every end's chance in simulation, with days
correlated up to 0.5 and with heavy tails.
"""
PAID = 0.5
"""Standard errors by which the correlation that is paid for lies above the estimated one."""
_MOST_CORRELATION = 0.9
_FURTHEST = 1e9


@dataclass(frozen=True, slots=True)
class AnytimeMean:
    """A mean of blocks, with ends that hold at every look.

    Attributes:
        value: The mean over rows, in the unit of the rows.
        error: Its standard error, with what blocks and units do together.
        blocks: Effective number of independent blocks; at most how many there are.
    """

    value: float
    error: float
    blocks: float

    def reach(self, alpha: float) -> float:
        """Return how far one end is from the value; infinite with too few blocks."""
        if not math.isfinite(self.error):
            return math.inf
        return self.error * t_reach(self.blocks, alpha)

    def low(self, alpha: float) -> float:
        """Return what the mean lies above; ever wrong with a chance of `alpha`."""
        return self.value - self.reach(alpha)

    def high(self, alpha: float) -> float:
        """Return what the mean lies below; ever wrong with a chance of `alpha`."""
        return self.value + self.reach(alpha)


def t_reach(blocks: float, alpha: float, prior: float = PRIOR) -> float:
    """Return how many standard errors one end of a mean is away.

    The Bayes factor of a t of n blocks, with effect sizes normal around 0 with variance g, is

        (1 + n g)^(-1/2) * ((1 + t^2 / v) / (1 + t^2 / (v (1 + n g))))^((v + 1) / 2), v = n - 1.

    It is a martingale under the null, so that it ever reaches 1 / (2 alpha) with a chance of at
    most 2 alpha: alpha on each side. Solved for t.

    Args:
        blocks: Effective number of blocks, above 1.
        alpha: Chance that this end is ever wrong, 0 to 1/2.
        prior: g, the variance of effect sizes.
    """
    if blocks < 2:  # noqa: PLR2004 - one block has no spread
        return math.inf
    freedom, grown = blocks - 1, 1 + blocks * prior
    exponent = 2 / (freedom + 1) * (0.5 * math.log(grown) - math.log(2 * alpha))
    if exponent >= math.log(grown):
        return math.inf
    ratio = math.exp(exponent)
    return math.sqrt(freedom * (ratio - 1) / (1 - ratio / grown))


def anytime_mean(
    sums: Floats, weights: Floats, *, units: float = 1.0, paid: float = PAID
) -> AnytimeMean:
    """Return the mean of rows given as blocks of time.

    Args:
        sums: Sum over the rows of each block, oldest first, shape (blocks,).
        weights: How many rows each block has; of weighted rows their weights' sum, above 0.
        units: By what factor units that come back raise the variance, at least 1; see
            `unit_inflation`.
        paid: Standard errors that the correlation of blocks is raised by.

    Raises:
        ValueError: The shapes differ, or a weight is not above 0.
    """
    sums, weights = np.asarray(sums, np.float64), np.asarray(weights, np.float64)
    if sums.shape != weights.shape or sums.ndim != 1:
        raise ValueError(f"blocks of shapes {sums.shape} and {weights.shape}")
    if not (weights > 0).all():
        raise ValueError("a block without rows; leave it out")
    count = len(sums)
    if count < FEWEST_BLOCKS:
        value = float(sums.sum() / weights.sum()) if count else math.nan
        return AnytimeMean(value, math.inf, count)
    value = float(sums.sum() / weights.sum())
    off = sums - value * weights
    kish = float(weights.sum() ** 2 / (weights**2).sum())
    variance = float((off**2).sum() / weights.sum() ** 2) * kish / max(kish - 1, 1.0)
    together = correlation(off, paid)
    inflated = (1 + together) / (1 - together)
    return AnytimeMean(value, math.sqrt(variance * inflated * max(units, 1.0)), kish / inflated)


def correlation(off: Floats, paid: float = PAID) -> float:
    """Return the correlation of neighbouring blocks that is paid for, 0 to 0.9.

    That of deviations from their own mean is too low by about (1 + 4 r) / n and known to about
    1 / sqrt(n); both are added.
    """
    total = float((off * off).sum())
    if total == 0:
        return 0.0
    count = len(off)
    found = float((off[1:] * off[:-1]).sum()) / total
    raised = found + (1 + 4 * found) / count + paid / math.sqrt(count)
    return min(max(raised, 0.0), _MOST_CORRELATION)


def unit_inflation(values: Floats, blocks: npt.NDArray[np.int64], units: npt.NDArray) -> float:  # type: ignore[type-arg]
    """Return by what factor units that come back raise the variance of a mean, at least 1.

    The variance of blocks, and what groups of a unit's rows add to that of single rows.

    Args:
        values: Of the rows, shape (rows,).
        blocks: Number of each row's block.
        units: What stays together, a value a row.

    Reference: Cameron, Gelbach and Miller (2011), J. Bus. Econ. Stat. 29:238.
    """
    off = values - values.mean()
    rows = float((off**2).sum())
    of_blocks = float((np.bincount(blocks, off) ** 2).sum())
    codes = np.unique(units, return_inverse=True)[1]
    of_units = float((np.bincount(codes, off) ** 2).sum())
    if of_blocks == 0:
        return 1.0
    return 1.0 + max(0.0, of_units - rows) / of_blocks


# -- shares ------------------------------------------------------------------------------


def share_low(happened: float, rows: float, alpha: float) -> float:
    """Return what a share lies above; ever wrong with a chance of `alpha`.

    Args:
        happened: How often, at most `rows`.
        rows: Of how many; may be an effective number.
        alpha: Chance that the end is ever wrong.
    """
    if happened <= 0:
        return 0.0
    return _share_end(happened, rows, alpha, 1e-15, happened / rows)


def share_high(happened: float, rows: float, alpha: float) -> float:
    """Return what a share lies below; ever wrong with a chance of `alpha`. See `share_low`."""
    return 1 - share_low(rows - happened, rows, alpha)


def overdispersion(happened: Sequence[float], rows: Sequence[float]) -> float:
    """Return by what factor buckets vary more than a binomial does, at least 1.

    Args:
        happened: How often, by bucket.
        rows: Of how many, by bucket.
    """
    count, size = np.asarray(happened, np.float64), np.asarray(rows, np.float64)
    count, size = count[size > 0], size[size > 0]
    if len(size) < 2:  # noqa: PLR2004 - one bucket has no spread
        return 1.0
    share = count.sum() / size.sum()
    if not 0 < share < 1:
        return 1.0
    pearson = ((count - size * share) ** 2 / (size * share * (1 - share))).sum()
    return max(1.0, float(pearson / (len(size) - 1)))


def split_evidence(
    seen: Sequence[int], weights: Sequence[float], strength: float = 1000.0
) -> float:
    """Return the evidence (an e-value) that units were not split by `weights`.

    The ratio of a Dirichlet mixture around the weights to the weights themselves. A split as asked
    for ever reaches 1 / alpha with a chance of at most alpha.

    Args:
        seen: Units of each arm, each counted once.
        weights: Shares that were asked for, above 0; they sum to 1.
        strength: Of the mixture: how near to the weights a failed split is looked for.
    """
    counts, shares = np.asarray(seen, np.float64), np.asarray(weights, np.float64)
    if counts.shape != shares.shape or not (shares > 0).all() or not math.isclose(shares.sum(), 1):
        raise ValueError(f"weights {list(weights)} of {len(counts)} arms: above 0, and sum to 1")
    prior = strength * shares
    log_e = -float((counts * np.log(shares)).sum())
    # A Dirichlet's constant, arm by arm: a chain of betas keeps large counts exact.
    for place in range(len(counts) - 1):
        here, rest = prior[place], float(prior[place + 1 :].sum())
        log_e += float(betaln(here + counts[place], rest + counts[place + 1 :].sum()))
        log_e -= float(betaln(here, rest))
    return math.exp(min(log_e, 700.0))


def _share_end(happened: float, rows: float, alpha: float, least: float, most: float) -> float:
    mixture = float(betaln(happened + 0.5, rows - happened + 0.5) - betaln(0.5, 0.5))
    limit = -math.log(alpha)

    def over(share: float) -> float:
        missed = rows - happened
        own = happened * math.log(share)
        own += missed * math.log1p(-share) if missed > 0 else 0.0
        return mixture - own - limit

    if over(least) <= 0:
        return 0.0
    if most >= 1:
        most = 1 - 1e-12
    return most if over(most) > 0 else float(brentq(over, least, most, xtol=1e-12))
