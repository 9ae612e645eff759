"""What a rollout is judged by: chances, limits, counts and differences; and what is found.

Above `steadfeast.measures`; `judgement` decides. Arrays and counts, no I/O.

One budget of false rollbacks a year is divided over the rollouts of a year, and the share of one
rollout over its guards. Looks and steps cost nothing more: every end holds at all looks at once.
The other end, which lets a challenger through, has a chance of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from steadfeast.measures import (
    AnytimeMean,
    anytime_mean,
    overdispersion,
    share_high,
    share_low,
    unit_inflation,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from steadfeast.measures import Floats

    Codes = npt.NDArray[np.int64]

MOST_PER_ROLLOUT = 0.25
"""Chance of a false rollback that one rollout is given at most, however large the budget."""


class Verdict(StrEnum):
    """What may be said of the challenger."""

    BETTER = "better"
    NOT_WORSE = "not_worse"
    WORSE = "worse"
    UNDECIDED = "undecided"
    HARMFUL = "harmful"
    INVALID = "invalid"

    @property
    def goes_back(self) -> bool:
        """Whether the champion should serve alone again."""
        return self in (Verdict.WORSE, Verdict.HARMFUL)


@dataclass(frozen=True, slots=True)
class Budget:
    """Chances of being wrong, of one rollout.

    Attributes:
        false_rollbacks_per_year: Challengers as good as the champion that go back in a year.
        rollouts_per_year: How many rollouts share them.
        false_promotion: Chance that one which is worse by the margin is called not worse.
        false_split: Chance that a split as asked for is called failed.
    """

    false_rollbacks_per_year: float = 1.0
    rollouts_per_year: float = 12.0
    false_promotion: float = 0.05
    false_split: float = 0.001

    def __post_init__(self) -> None:
        """Refuse what is no budget."""
        for name in ("false_rollbacks_per_year", "rollouts_per_year"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("false_promotion", "false_split"):
            if not 0 < getattr(self, name) < 0.5:  # noqa: PLR2004 - a coin
                raise ValueError(f"{name} is {getattr(self, name)}; give a chance below 0.5")

    @property
    def of_rollout(self) -> float:
        """Chance that a rollout of an equally good challenger ends in a rollback."""
        share = self.false_rollbacks_per_year / self.rollouts_per_year
        return min(share, MOST_PER_ROLLOUT)

    @property
    def of_labels(self) -> float:
        """Of the paired difference: half of the rollout's, where nearly all that matters shows."""
        return self.of_rollout / 2

    @property
    def of_guard(self) -> float:
        """Of each of the five others: split difference, errors, latency, decisions, estimate."""
        return self.of_rollout / 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of the challenger; None asks nothing.

    Attributes:
        margin: Loss of the metric that nobody would notice, in its unit, above 0.
        errors: Share of failed answers, 0 to 1.
        slow: Share of answers slower than the guard's time: 0.01 for a p99.
        disagreement: Share of requests on which the two decide otherwise, 0 to 1.
        estimated_drop: Of the estimated metric, in its unit.
        labels: Labels before anything is promoted.
    """

    margin: float
    errors: float | None = None
    slow: float | None = 0.01
    disagreement: float | None = None
    estimated_drop: float | None = None
    labels: int = 0

    def __post_init__(self) -> None:
        """Refuse a margin that decides nothing."""
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin is {self.margin}; give a number above 0")


@dataclass(frozen=True, slots=True)
class Counts:
    """How often something happened, by bucket of time.

    Attributes:
        happened: Shape (buckets,).
        rows: Of how many, shape (buckets,).
    """

    happened: Sequence[float]
    rows: Sequence[float]

    def ends(self, alpha: float) -> tuple[float, float]:
        """Return what the share lies above and below; bursts count as fewer rows."""
        fewer = overdispersion(self.happened, self.rows)
        happened, rows = sum(self.happened) / fewer, sum(self.rows) / fewer
        if not rows:
            return 0.0, 1.0
        return share_low(happened, rows, alpha), share_high(happened, rows, alpha)

    @property
    def share(self) -> float:
        """The share itself; NaN without rows."""
        return sum(self.happened) / sum(self.rows) if sum(self.rows) else math.nan


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a rollout now; what is not known is left out.

    Attributes:
        units: Units seen in each arm, each counted once, champion first.
        weights: Shares of units that were asked for, champion first.
        errors: Failed answers, of champion and challenger.
        slow: Answers slower than the guard's time, of champion and challenger.
        disagreement: Requests on which the two decide otherwise.
        estimated: Difference of the estimated metric; above 0 the challenger is better.
        paired: Difference on the same requests, labels in; above 0 the challenger is better.
        split: Difference of the arms, labels in.
        labels: Labels behind `paired` and `split`.
        days: Days since the rollout began.
        withheld: Why labels cannot be judged now: an open data incident, labels that are late.
    """

    units: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    errors: tuple[Counts, Counts] | None = None
    slow: tuple[Counts, Counts] | None = None
    disagreement: Counts | None = None
    estimated: AnytimeMean | None = None
    paired: AnytimeMean | None = None
    split: AnytimeMean | None = None
    labels: int = 0
    days: float = 0.0
    withheld: str = ""

    @property
    def difference(self) -> AnytimeMean | None:
        """What is judged: the paired difference, which is far sharper, or that of the arms."""
        return self.split if self.paired is None else self.paired


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict with its reason.

    Attributes:
        verdict: What may be said.
        reason: In one line, with figures.
        estimate: Of the difference in the metric's unit, above 0 the challenger is better; NaN
            without labels.
        low: What it lies above, at any look.
        high: What it lies below, at any look.
        margin: As asked for.
        labels: Labels that were judged.
        units: Units that were seen.
        more_days: Days that would decide, if the difference stays what it is; infinite if no
            number would. 0 when decided.
        more_labels: Labels likewise.
    """

    verdict: Verdict
    reason: str
    estimate: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    margin: float = 0.0
    labels: int = 0
    units: int = 0
    more_days: float = field(default=0.0)
    more_labels: float = field(default=0.0)


def paired(
    differences: Floats, blocks: Codes, units: npt.NDArray[np.generic] | None = None
) -> AnytimeMean:
    """Return the mean of the champion's losses less the challenger's on the same requests.

    Args:
        differences: One a request, shape (rows,); above 0 the challenger was better.
        blocks: Number of each request's block of time, in order of time; see `blocks_of`.
        units: Whose request each is; None if none comes back.
    """
    inflation = 1.0 if units is None else unit_inflation(differences, blocks, units)
    _, codes = np.unique(blocks, return_inverse=True)
    sums, rows = np.bincount(codes, differences), np.bincount(codes)
    return anytime_mean(sums.astype(np.float64), rows.astype(np.float64), units=inflation)


def split(
    losses: Floats,
    challenger: npt.NDArray[np.bool_],
    blocks: Codes,
    units: npt.NDArray[np.generic] | None = None,
) -> AnytimeMean:
    """Return by how much the challenger's requests went better than the champion's.

    Arms are compared within a block, so that what a day does to both takes no part. A block counts
    by n m / (n + m) of its two arms' rows; one without both arms takes no part.

    Args:
        losses: Of the arm that answered, one a request, shape (rows,).
        challenger: Which requests the challenger answered, shape (rows,).
        blocks: See `paired`.
        units: See `paired`.
    """
    _, codes = np.unique(blocks, return_inverse=True)
    size = int(codes.max(initial=-1)) + 1
    theirs, ours = (
        np.bincount(codes[mask], minlength=size).astype(float) for mask in (~challenger, challenger)
    )
    both = (theirs > 0) & (ours > 0)
    weights = np.divide(theirs * ours, theirs + ours, out=np.zeros(size), where=both)
    mean_of = [
        np.divide(
            np.bincount(codes[mask], losses[mask], size), rows, out=np.zeros(size), where=both
        )
        for mask, rows in ((~challenger, theirs), (challenger, ours))
    ]
    sums = weights * (mean_of[0] - mean_of[1])
    inflation = 1.0
    if units is not None and both.any():
        inside = both[codes]
        arm = challenger[inside].astype(int)
        at = codes[inside]
        centred = losses[inside] - np.stack(mean_of)[arm, at]
        signed = np.where(arm == 1, -1.0, 1.0) * centred
        signed *= weights[at] / np.stack((theirs, ours))[arm, at]
        # As in `unit_inflation`: what the rows of a unit do together, beside what the blocks do.
        _, of = np.unique(units[inside], return_inverse=True)
        together = float((np.bincount(of, signed) ** 2).sum() - (signed**2).sum())
        off = sums[both] - weights[both] * sums.sum() / weights.sum()
        spread = float((off**2).sum())
        inflation = 1 + max(0.0, together) / spread if spread else 1.0
    return anytime_mean(sums[both], weights[both], units=inflation)
