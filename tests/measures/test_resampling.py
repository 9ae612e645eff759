"""Standard errors where rows go together, against closed forms and repeated worlds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from steadfeast.measures import MEASURES, Sample, blocks_of, compared, measured

MAE = MEASURES["mean_absolute_error"]
RNG = np.random.default_rng(0)


def test_of_a_mean_the_error_is_that_of_the_means_of_the_blocks():
    """Equal blocks: the jackknife is the textbook error of so many independent means."""
    days = np.repeat(np.arange(12), 50)
    off = RNG.normal(size=600) + RNG.normal(size=12)[days]
    made = Sample(np.zeros(600), off)
    means = np.abs(off).reshape(12, 50).mean(axis=1)
    found = measured(MAE, made, [days])
    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(np.std(means, ddof=1) / math.sqrt(12))
    assert found.blocks == 12
    low, high = found.interval(0.9)
    expected = stats.t.interval(0.9, 11, means.mean(), found.error)
    assert (low, high) == pytest.approx(expected)


def test_a_difference_counts_which_way_is_better():
    truth = RNG.normal(size=400)
    near, far = truth + 0.1, truth + 0.4
    days = np.repeat(np.arange(8), 50)
    assert compared(MAE, Sample(truth, near), far, [days]).value == pytest.approx(0.3)
    labels = (truth > 0).astype(float)
    found = compared(MEASURES["roc_auc"], Sample(labels, truth), -truth, [days])
    assert found.value == pytest.approx(1)


def test_what_both_models_find_hard_takes_no_part_in_the_difference():
    days = np.repeat(np.arange(10), 40)
    hard = RNG.normal(0, 5, 10)[days]
    both = Sample(np.zeros(400), hard + 0.01)
    assert measured(MAE, both, [days]).error > 0.5
    assert compared(MAE, both, hard + 0.02, [days]).error < 0.02


@pytest.mark.parametrize("shops", [False, True])
def test_intervals_hold_the_truth_as_often_as_they_say_where_rows_go_together(shops):
    """200 worlds of 20 days and 40 shops with good and bad luck; intervals of 90 %."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        day = np.repeat(np.arange(20), 40)
        shop = np.tile(np.arange(40), 20)
        off = 3 + rng.normal(0, 0.3, 20)[day] + rng.normal(0, 0.5 if shops else 0, 40)[shop]
        made = Sample(np.zeros(800), off + rng.normal(0, 0.5, 800))
        low, high = measured(MAE, made, [day, shop]).interval(0.9)
        inside += low <= 3 <= high
    assert inside >= stats.binom.ppf(1e-6, 200, 0.9)


def test_too_few_blocks_say_so():
    made = Sample(np.zeros(50), RNG.normal(size=50))
    found = measured(MAE, made, [np.zeros(50, int)])
    assert not math.isfinite(found.error)
    assert found.interval(0.9) == (-math.inf, math.inf)


def test_blocks_are_days_and_longer_where_there_are_many():
    hours = np.datetime64("2024-03-01T12", "us") + np.arange(24 * 10) * np.timedelta64(1, "h")
    assert len(np.unique(blocks_of(hours))) == 11
    assert np.unique(np.diff(np.flatnonzero(np.diff(blocks_of(hours))))).tolist() == [24]
    year = np.datetime64("2024-01-01", "us") + np.arange(365) * np.timedelta64(1, "D")
    assert len(np.unique(blocks_of(year))) <= 30
    assert len(blocks_of(year[:0])) == 0
