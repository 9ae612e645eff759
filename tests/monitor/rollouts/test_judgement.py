"""What is said of a challenger, and in which order evidence counts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.measures import AnytimeMean
from steadfeast.monitor.rollouts import (
    Budget,
    Counts,
    Evidence,
    Limits,
    Verdict,
    judge,
    paired,
    split,
)

BUDGET = Budget()
LIMITS = Limits(0.005, errors=0.005, disagreement=0.2, estimated_drop=0.05, labels=2000)


def seen(value: float, error: float = 0.001, blocks: float = 20) -> Evidence:
    return Evidence(paired=AnytimeMean(value, error, blocks), labels=5000, days=20)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.02, 0.001, Verdict.BETTER),
        (0.0, 0.001, Verdict.NOT_WORSE),
        (0.0, 0.02, Verdict.UNDECIDED),
        (-0.007, 0.0015, Verdict.WORSE),
        (-0.02, 0.001, Verdict.HARMFUL),
        (-0.004, 0.0002, Verdict.NOT_WORSE),
    ],
)
def test_the_interval_against_the_margin_decides(value, error, verdict):
    found = judge(seen(value, error), LIMITS, BUDGET)
    assert found.verdict is verdict
    assert found.low < value < found.high
    assert "margin 0.005" in found.reason


def test_undecided_says_what_it_needs_and_that_is_enough():
    found = judge(seen(0.0, 0.003), LIMITS, BUDGET)
    assert found.verdict is Verdict.UNDECIDED
    assert f"about {found.more_days:.0f} more days" in found.reason
    times = 1 + found.more_days / 20
    later = Evidence(paired=AnytimeMean(0.0, 0.003 / math.sqrt(times), 20 * times), labels=9000)
    assert judge(later, LIMITS, BUDGET).verdict is Verdict.NOT_WORSE
    on_the_limit = judge(seen(-0.005, 0.003), LIMITS, BUDGET)
    assert on_the_limit.verdict is Verdict.UNDECIDED


def test_too_few_labels_never_promote_and_may_go_back():
    few = replace(seen(0.02), labels=100)
    assert judge(few, LIMITS, BUDGET).verdict is Verdict.UNDECIDED
    assert judge(few, LIMITS, BUDGET).reason.startswith("100 of 2000 labels")
    assert judge(replace(seen(-0.02), labels=100), LIMITS, BUDGET).verdict is Verdict.HARMFUL


def test_labels_that_cannot_be_judged_decide_nothing():
    found = judge(replace(seen(-0.02), withheld="labels are late"), LIMITS, BUDGET)
    assert found.verdict is Verdict.UNDECIDED
    assert found.reason == "labels are late"


def test_a_failed_split_voids_everything():
    broken = replace(seen(0.02), units=(9_300, 700), weights=(0.9, 0.1))
    found = judge(broken, LIMITS, BUDGET)
    assert found.verdict is Verdict.INVALID
    assert "9300 and 700 units where 9000 and 1000" in found.reason
    fair = replace(broken, units=(9_010, 990))
    assert judge(fair, LIMITS, BUDGET).verdict is Verdict.BETTER


def test_a_challenger_that_errors_out_goes_back_after_three_answers():
    champion = Counts([1], [1000])
    counts = [judge(Evidence(errors=(champion, Counts([n], [n]))), LIMITS, BUDGET) for n in (1, 4)]
    assert [one.verdict for one in counts] == [Verdict.UNDECIDED, Verdict.HARMFUL]


def test_what_is_slow_for_both_is_nobodys_fault():
    both = (Counts([300], [1000]), Counts([30], [100]))
    alone = (Counts([2], [1000]), Counts([30], [100]))
    assert judge(Evidence(slow=both), LIMITS, BUDGET).verdict is Verdict.UNDECIDED
    assert judge(Evidence(slow=alone), LIMITS, BUDGET).verdict is Verdict.HARMFUL


@given(st.floats(-0.5, 0.5), st.floats(1e-6, 1), st.integers(0, 400))
def test_evidence_without_labels_never_promotes(value, error, differ):
    evidence = Evidence(
        disagreement=Counts([differ], [1000]), estimated=AnytimeMean(value, error, 30)
    )
    assert judge(evidence, LIMITS, BUDGET).verdict in (Verdict.UNDECIDED, Verdict.HARMFUL)


@given(st.floats(-0.05, 0.05), st.floats(1e-5, 0.05), st.floats(4, 100))
def test_a_larger_budget_goes_back_no_later(value, error, blocks):
    strict = judge(seen(value, error, blocks), LIMITS, Budget(0.1)).verdict
    loose = judge(seen(value, error, blocks), LIMITS, Budget(2)).verdict
    assert loose.goes_back or not strict.goes_back


def test_a_paired_difference_is_sharper_than_a_split_and_both_find_the_truth():
    rng, rows, days = np.random.default_rng(0), 20_000, 40
    day = rng.integers(0, days, rows)
    units = rng.integers(0, 500, rows)
    hard = 0.2 * rng.normal(size=days)[day] + 0.5 * rng.normal(size=rows)
    champion, challenger = hard + 0.02, hard + 0.01 * rng.normal(size=rows)
    both = paired(champion - challenger, day, units)
    arm = units % 10 == 0
    apart = split(np.where(arm, challenger, champion), arm, day, units)
    assert both.value == pytest.approx(0.02, abs=0.002)
    assert abs(apart.value - 0.02) < 4 * apart.error
    assert both.error < apart.error / 10


def test_a_split_is_the_naive_weighted_mean_of_the_days():
    rng = np.random.default_rng(1)
    losses, arm, day = rng.normal(size=600), rng.random(600) < 0.3, np.repeat(np.arange(6), 100)
    arm[day == 5] = False
    total = weight = 0.0
    for one in range(5):
        old, new = losses[(day == one) & ~arm], losses[(day == one) & arm]
        share = len(old) * len(new) / (len(old) + len(new))
        total, weight = total + share * (old.mean() - new.mean()), weight + share
    found = split(losses, arm, day)
    assert found.value == pytest.approx(total / weight)
    assert found.blocks <= 5


@pytest.mark.parametrize("margin", [0.0, -1.0, math.inf, math.nan])
def test_a_margin_that_decides_nothing_is_refused(margin):
    with pytest.raises(ValueError, match="margin is"):
        Limits(margin)


@pytest.mark.parametrize(
    ("name", "value"),
    [("false_rollbacks_per_year", 0), ("rollouts_per_year", -1), ("false_promotion", 0.7)],
)
def test_a_budget_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        Budget(**{name: value})
