"""How sure a figure or a difference is where rows of one day, or of one entity, go together.

Above `catalog`. The rows are cut into blocks of time; the figure is computed anew without each
block in turn (the jackknife over blocks), which counts what a whole day does together once and
not once a row. Where entities come back, the same is done over groups of entities, and what they
add to the variance is added. Two models are compared on the same rows: what both find hard takes
no part in the difference. Nothing is drawn, so the same rows give the same answer.

Reference: Kuensch (1989), Ann. Statist. 17:1217 (blocks); Cameron, Gelbach and Miller (2011),
J. Bus. Econ. Stat. 29:238 (two ways of going together); MacKinnon, Nielsen and Webb (2023),
J. Econom. 232:272 (jackknife and t with few blocks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from steadfeast.measures.figures import OneClassError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steadfeast.measures.catalog import Measure
    from steadfeast.measures.sample import Sample

Codes = npt.NDArray[np.int64]

MOST_BLOCKS = 30


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, or a difference of two, with what is known of it.

    Attributes:
        value: On all rows.
        error: Its standard error; infinite if there are too few blocks to tell.
        blocks: Blocks of time that the rows fall into.
    """

    value: float
    error: float
    blocks: int

    def reach(self, confidence: float) -> float:
        """Return how far the two ends of an interval are from the value."""
        if not math.isfinite(self.error):
            return math.inf
        return float(student.ppf((1 + confidence) / 2, self.blocks - 1)) * self.error

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the ends of the interval that holds the truth with probability `confidence`."""
        return self.value - self.reach(confidence), self.value + self.reach(confidence)


def blocks_of(times: npt.NDArray[np.datetime64]) -> Codes:
    """Return the number of each row's block of time: a day, or more days so that few are left.

    Blocks of one day where rows span up to `MOST_BLOCKS` days: a shorter one would cut what a day
    does together in two.
    """
    days = times.astype("datetime64[D]").astype(np.int64)
    if not len(days):
        return np.zeros(0, np.int64)
    width = max(1, math.ceil((int(days.max()) - int(days.min()) + 1) / MOST_BLOCKS))
    return np.asarray(np.unique((days - days.min()) // width, return_inverse=True)[1], np.int64)


def measured(measure: Measure, sample: Sample, clusters: Sequence[Codes]) -> Estimate:
    """Return a figure and its standard error.

    Args:
        measure: The figure.
        sample: The rows.
        clusters: Which rows go together: the block of time of each row, and after it other
            groups, as of entities.

    Raises:
        OneClassError: The figure cannot be computed on these rows.
    """
    return _estimate(lambda rows: measure.value(sample.take(rows)), len(sample), clusters)


def compared(
    measure: Measure, sample: Sample, other: npt.NDArray[np.float64], clusters: Sequence[Codes]
) -> Estimate:
    """Return how much better the sample's predictions are than `other` on the same rows.

    The difference is in the figure's unit; above 0 is better, whichever way the figure counts.
    See `measured`.
    """
    theirs = sample.predicting(other)

    def difference(rows: npt.NDArray[np.bool_]) -> float:
        return measure.drop(measure.value(sample.take(rows)), measure.value(theirs.take(rows)))

    return _estimate(difference, len(sample), clusters)


def _estimate(
    figure: Callable[[npt.NDArray[np.bool_]], float], rows: int, clusters: Sequence[Codes]
) -> Estimate:
    value = figure(np.ones(rows, bool))
    time, *others = clusters
    variance = _variance(figure, time)
    if others and math.isfinite(variance):
        independent = _variance(figure, _spread(np.arange(rows)))
        for codes in others:
            variance += max(0.0, _variance(figure, _spread(codes)) - independent)
    return Estimate(value, math.sqrt(variance), len(np.unique(time)))


def _spread(codes: Codes) -> Codes:
    """Return groups that are few enough to leave out one by one."""
    numbers = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    # Multiplied so that neighbours, which may be alike, do not end in one group.
    return np.asarray((numbers * np.int64(2_654_435_761) % np.int64(2**32)) % MOST_BLOCKS)


def _variance(figure: Callable[[npt.NDArray[np.bool_]], float], codes: Codes) -> float:
    """Return the jackknife's variance of a figure, with one group left out at a time."""
    groups = np.unique(codes)
    if len(groups) < 2:  # noqa: PLR2004 - one group has no spread
        return math.inf
    try:
        left = np.array([figure(codes != group) for group in groups])
    except OneClassError:
        return math.inf
    return float((len(groups) - 1) / len(groups) * np.sum((left - left.mean()) ** 2))
