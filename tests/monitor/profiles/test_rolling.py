"""Sums of sliding windows, against adding up every bucket."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.profile import Profile, profile
from steadfeast.monitor.profiles.rolling import Sums

RNG = np.random.default_rng(1)
EDGES = edges_of(pa.table({"v": RNG.normal(size=500)}), ["v"])


def bucket(number):
    rng = np.random.default_rng(number)
    return profile([pa.record_batch({"v": rng.normal(size=int(rng.integers(0, 9)))})], EDGES)


def naive(low, high):
    found = Profile.empty(EDGES)
    for number in range(low, high):
        found += bucket(number)
    return found


@given(st.integers(0, 2**40), st.integers(0, 70), st.integers(1, 30))
@settings(max_examples=40)
def test_a_sliding_sum_is_the_sum(first, length, ticks):
    """Counts exactly, means but for rounding; and it is the same for who starts only now."""
    sums = Sums(EDGES)
    for tick in range(ticks):
        low, high = first + tick, first + tick + length
        found, expected = sums.total(low, high, bucket), naive(low, high)
        sums.forget(low)
        assert found.rows == expected.rows
        one, other = found.columns["v"], expected.columns["v"]
        assert one.counts.tolist() == other.counts.tolist()
        assert one.mean == pytest.approx(other.mean, abs=1e-12)
        assert one.m2 == pytest.approx(other.m2, abs=1e-9)
        assert found == Sums(EDGES).total(low, high, bucket)


def test_a_tick_costs_few_merges_and_asks_for_its_own_bucket_only():
    asked = []

    def get(number):
        asked.append(number)
        return bucket(number)

    sums = Sums(EDGES)
    sums.total(0, 365, get)
    assert sorted(asked) == list(range(365))
    for low in range(1, 50):
        asked.clear()
        before = len(sums._groups)
        sums.total(low, low + 365, get)
        assert asked == [low + 364]
        assert len(sums._groups) - before < 20
        sums.forget(low)
        assert (low in sums, low - 1 in sums) == (True, False)
    assert len(sums._groups) < 2 * 365 + 20
