"""Ends that hold at every look: closed forms, laws, and worlds looked at again and again."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from steadfeast.measures import (
    anytime_mean,
    overdispersion,
    share_high,
    share_low,
    split_evidence,
    unit_inflation,
)
from steadfeast.measures.sequential import FEWEST_BLOCKS, correlation, t_reach

alphas = st.floats(0.001, 0.2)


@pytest.mark.parametrize("blocks", [7, 12, 40])
def test_the_reach_is_where_the_likelihoods_of_t_stand_so(blocks):
    """With normal effect sizes t is a central t, wider by sqrt(1 + n g)."""
    prior, alpha = 0.3, 0.04
    t = t_reach(blocks, alpha, prior)
    wider = stats.t(blocks - 1, scale=math.sqrt(1 + blocks * prior))
    assert wider.pdf(t) / stats.t.pdf(t, blocks - 1) == pytest.approx(1 / (2 * alpha))


@given(st.floats(2, 500), alphas)
def test_an_end_that_holds_at_every_look_is_further_than_that_of_one_look(blocks, alpha):
    assert t_reach(blocks, alpha) >= stats.t.ppf(1 - alpha, blocks - 1)
    assert t_reach(blocks, alpha / 2) >= t_reach(blocks, alpha)


@given(
    st.lists(st.floats(-5, 5), min_size=FEWEST_BLOCKS, max_size=40),
    st.floats(-3, 3),
    st.floats(0.1, 10),
)
def test_a_mean_moves_and_grows_with_its_rows(means, shift, factor):
    sums, rows = np.array(means) * 100, np.full(len(means), 100.0)
    plain, moved = anytime_mean(sums, rows), anytime_mean((sums + shift * rows) * factor, rows)
    assert moved.value == pytest.approx((plain.value + shift) * factor, abs=1e-9)
    assert moved.error == pytest.approx(plain.error * factor, abs=1e-7)


def test_blocks_alone_and_equal_give_the_textbook_error():
    """Days that alternate pay for no correlation: s / sqrt(n)."""
    means = np.tile([1.0, -1.0], 15)
    found = anytime_mean(means * 50, np.full(30, 50.0))
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(30))
    assert found.blocks == pytest.approx(30)


def test_correlation_is_a_naive_loops_and_what_it_does_not_know():
    off = np.random.default_rng(1).normal(size=25)
    off -= off.mean()
    loop = sum(off[i] * off[i + 1] for i in range(24)) / sum(x * x for x in off)
    assert correlation(off, 0) == pytest.approx(max(0, loop + (1 + 4 * loop) / 25))
    assert correlation(off, 1) >= correlation(off, 0)


def test_few_blocks_say_nothing_and_bad_ones_are_refused():
    assert anytime_mean(np.ones(3), np.ones(3)).high(0.04) == math.inf
    assert math.isnan(anytime_mean(np.ones(0), np.ones(0)).value)
    with pytest.raises(ValueError, match="without rows"):
        anytime_mean(np.ones(2), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="shapes"):
        anytime_mean(np.ones(2), np.ones(3))


def test_units_that_always_lose_together_are_paid_for():
    rng = np.random.default_rng(2)
    units, days = rng.integers(0, 20, 4000), np.repeat(np.arange(20), 200)
    alone = unit_inflation(rng.normal(size=4000), days, units)
    together = unit_inflation(rng.normal(size=4000) + 2 * rng.normal(size=20)[units], days, units)
    assert alone < 2 < together


def test_an_equal_mean_is_ever_called_lower_as_seldom_as_promised():
    """Looked at after every day of six weeks, days correlated by 0.3."""
    rng, wrong, worlds, alpha = np.random.default_rng(3), 0, 300, 0.1
    for _ in range(worlds):
        days, before = [], 0.0
        for draw in rng.normal(size=50):
            before = 0.3 * before + draw
            days.append(before)
        seen = np.array(days[8:])
        wrong += any(anytime_mean(seen[:n], np.ones(n)).high(alpha) < 0 for n in range(4, 43))
    assert wrong <= stats.binom.ppf(0.999, worlds, alpha)


@given(st.integers(0, 300), st.integers(1, 300), alphas)
def test_a_share_lies_between_its_ends(happened, rows, alpha):
    happened = min(happened, rows)
    low, high = share_low(happened, rows, alpha), share_high(happened, rows, alpha)
    assert 0 <= low <= happened / rows <= high <= 1
    assert share_low(happened, rows, alpha / 2) <= low


def test_the_low_end_of_a_share_is_where_the_mixture_reaches_its_limit():
    low = share_low(7, 50, 0.05)
    above = integrate.quad(lambda p: stats.binom.pmf(7, 50, p) * stats.beta.pdf(p, 0.5, 0.5), 0, 1)[
        0
    ]
    assert above / stats.binom.pmf(7, 50, low) == pytest.approx(20, rel=1e-4)


def test_a_share_is_ever_called_higher_as_seldom_as_promised():
    rng, wrong = np.random.default_rng(4), 0
    for _ in range(300):
        seen = np.cumsum(rng.random(800) < 0.02)
        wrong += any(share_low(seen[n], n + 1, 0.1) > 0.02 for n in range(0, 800, 40))
    assert wrong <= stats.binom.ppf(0.999, 300, 0.1)


def test_buckets_that_burst_count_as_fewer_rows():
    rng = np.random.default_rng(5)
    even = rng.binomial(100, 0.1, 200)
    assert overdispersion(even, [100] * 200) < 1.3
    assert overdispersion(np.where(np.arange(200) < 20, 100, 0), [100] * 200) > 50
    assert overdispersion([5], [10]) == overdispersion([0, 0], [10, 10]) == 1


def test_a_failed_split_is_noticed_and_one_as_asked_for_is_not():
    rng = np.random.default_rng(6)
    assert split_evidence([0, 0], [0.9, 0.1]) == pytest.approx(1)
    fair = np.cumsum(rng.random(20_000) < 0.1)
    assert all(
        split_evidence([n + 1 - fair[n], fair[n]], [0.9, 0.1]) < 1000 for n in range(0, 20_000, 200)
    )
    assert split_evidence([9_300, 700], [0.9, 0.1]) > 1000
    with pytest.raises(ValueError, match="sum to 1"):
        split_evidence([1, 1], [0.5, 0.6])
    two, three = (
        split_evidence(c, w) for c, w in (([60, 40], [0.5, 0.5]), ([60, 20, 20], [0.5, 0.25, 0.25]))
    )
    assert two > 0
    assert three > 0


@given(st.floats(0.05, 0.95), st.integers(1, 30))
def test_the_evidence_against_a_split_averages_one(share, units):
    """Its mean over what a split as asked for gives, one look."""
    mean = sum(
        stats.binom.pmf(k, units, share) * split_evidence([units - k, k], [1 - share, share])
        for k in range(units + 1)
    )
    assert mean == pytest.approx(1, rel=1e-6)
