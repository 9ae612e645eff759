"""How far days stray: memory and tails are recovered, and what is promised is kept.

Worlds are drawn here, by other code than what is tested; their truth is known.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sp

from steadfeast.monitor.drift import persistence
from steadfeast.monitor.drift.false_alarms import (
    Comparison,
    Promise,
    decisive,
    episodes,
    scale,
    wandering,
)

FEATURES, PAST, AHEAD = 12, 56, 365
FLOOR = np.full(FEATURES, 0.15)


def comparison(past=PAST, ahead=AHEAD):
    days = np.arange(past + ahead)
    design = (days[:, None] % 7 == np.arange(7)).astype(float)
    known = design[:past]
    return Comparison(known, np.linalg.pinv(known), design[past:])


def remembering(rng, memory, days, sd=0.05, features=FEATURES):
    """Days that remember the day before, one after the other."""
    found = [sd * rng.standard_normal(features)]
    for _ in range(days - 1):
        new = np.sqrt(1 - memory**2) * sd * rng.standard_normal(features)
        found.append(memory * found[-1] + new)
    return np.array(found).T


def measured(days, how, promise, floor=FLOOR):
    left = how.residuals(days[:, : len(how.past)])
    spread = scale(left / np.sqrt(1 - how.leverage))
    return wandering(left, spread, np.zeros(len(days)), how, floor, promise)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.8, 0.9])
def test_memory_is_what_it_is_though_few_days_hide_it(memory):
    """Few days show too little of it; the mean of six references is within .08."""
    how, found, plain = comparison(), [], []
    for seed in range(6):
        days = remembering(np.random.default_rng(seed), memory, PAST)
        left = how.residuals(days)
        plain.append(np.mean((left[:, 1:] * left[:, :-1]).sum(1) / (left**2).sum(1)))
        found.append(measured(days, how, Promise(4, 18, 365)).memory.mean())
    assert np.mean(found) == pytest.approx(memory, abs=0.08)
    if memory > 0.7:
        assert np.mean(plain) < memory - 0.04


@pytest.mark.parametrize(
    "world",
    [
        lambda rng: 0.05 * rng.standard_normal((FEATURES, PAST + AHEAD)),
        lambda rng: 0.03 * rng.standard_t(3, (FEATURES, PAST + AHEAD)),
        lambda rng: remembering(rng, 0.8, PAST + AHEAD),
        lambda rng: remembering(rng, 0.9, PAST + AHEAD),
        lambda rng: np.repeat(0.05 * rng.standard_normal((2, PAST + AHEAD)), FEATURES // 2, axis=0),
    ],
    ids=["independent", "heavy tails", "memory .8", "memory .9", "groups"],
)
def test_both_promises_are_kept(world):
    """Ten years: no more is told than a Poisson count of what was promised explains."""
    how, told, standing, years = comparison(), 0, 0, 10
    promise = Promise(4, 18, 365)
    for seed in range(years):
        days = world(np.random.default_rng([seed, 7]))
        found = measured(days, how, promise)
        effects = how.beyond(days[:, :PAST], days[:, PAST:])
        limit = np.maximum(FLOOR, found.multiple * found.spread)[:, None]
        single = decisive(limit, FLOOR[:, None], (found.farthest * found.spread)[:, None])
        times = np.abs(effects) / limit
        far = np.abs(effects) > single
        times = np.where(far, np.maximum(times, 7.01), np.minimum(times, 7))
        begun, stands = episodes(np.sign(effects) * times)
        told += np.count_nonzero(begun.any(axis=0))
        standing += np.count_nonzero(stands.any(axis=0))
    assert told <= sp.poisson.isf(1e-6, 4 * years)
    # Days stand in runs of about a week: so many runs are what chance decides.
    assert standing / 7 <= sp.poisson.isf(1e-6, 18 * years / 7)


def test_what_is_promised_and_what_is_known_decide_how_wide_limits_are():
    days = remembering(np.random.default_rng(3), 0.9, 365 + AHEAD)

    def limit(promise, past):
        found = measured(days[:, -past - AHEAD :], comparison(past), promise)
        return float(np.median(found.multiple * found.spread))

    usual = limit(Promise(4, 18, 365), 56)
    assert limit(Promise(0.5, 2, 365), 56) > usual > limit(Promise(4, 18, 365), 365)


def test_few_days_pool_what_features_have_in_common():
    """Features alike come out alike; features that differ by a factor of ten keep their own."""
    rng, how = np.random.default_rng(5), comparison(21)
    alike = 0.05 * rng.standard_normal((40, 21))
    floor = np.full(40, 0.15)
    promise = Promise(4, 18, 365)
    found = measured(alike, how, promise, floor).spread
    assert np.log(found).std() < 0.1
    mixed = alike * np.where(np.arange(40) % 2, 10.0, 1.0)[:, None]
    found = measured(mixed, how, promise, floor).spread
    assert 7 < np.median(found[1::2]) / np.median(found[::2]) < 14


def test_the_same_days_give_the_same_limits():
    days = remembering(np.random.default_rng(1), 0.5, PAST)
    one, two = (measured(days, comparison(), Promise(4, 18, 365)) for _ in range(2))
    assert (one.multiple == two.multiple).all()
    assert one.farthest == two.farthest


def test_a_feature_that_never_moves_needs_no_more_than_its_floor():
    found = measured(np.zeros((FEATURES, PAST)), comparison(), Promise(4, 18, 365))
    assert (found.multiple * found.spread < 1e-3).all()


def test_many_features_at_once_are_judged_as_each_by_itself():
    """Step by step, by the functions that the policy calls."""
    rng = np.random.default_rng(2)
    ratios = rng.standard_t(2, (30, 80)) + np.repeat(rng.choice([0, 0, 2], (30, 8)), 10, axis=1)
    begun, stands = episodes(ratios)
    for feature in range(30):
        is_open = False
        for day in range(80):
            recent = ratios[feature, max(0, day - persistence.LOOKBACK + 1) : day + 1].tolist()
            before = is_open
            is_open = persistence.stays_open(recent) if before else persistence.opens(recent)
            assert stands[feature, day] == is_open
            assert begun[feature, day] == (is_open and not before)
