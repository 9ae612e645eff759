"""When a drift begins and ends, case by case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.monitor.drift.persistence import DECISIVE, LOOKBACK, crept, opens, stays_open

ratios = st.lists(st.none() | st.floats(-20, 20), max_size=12)


@pytest.mark.parametrize(
    ("recent", "begun"),
    [
        ([], False),
        ([0.5] * 30, False),
        ([4.6], False),
        ([0.2, 0.1, 4.6, 0.3], False),
        ([1.2, 1.1, 1.3], False),
        ([1.2, 1.1, 0.9, 1.3, 1.1], True),
        ([1.2, -1.1, 1.3, -1.2, 1.1], False),
        ([-1.2, -1.1, -1.3, -1.2], True),
        ([4.0, 0.2, 4.0], True),
        ([4.0, 0.2, 0.2, 4.0], False),
        ([0.1, 0.1, 8.0], True),
        ([0.1, 0.1, -8.0], True),
        ([1.2, None, 1.1, 1.3, 1.4], True),
        ([None] * 5, False),
    ],
)
def test_a_drift_begins_when_it_lasts_or_is_large(recent, begun):
    assert opens(recent) is begun


@pytest.mark.parametrize(
    ("recent", "goes_on"),
    [
        ([1.2] * 5, True),
        ([1.2, 1.2, 0.1, 0.1, 0.1], True),
        ([1.2, 1.2, 0.1, 0.1, 0.1, 0.1], False),
        ([0.9, 0.1, 0.1, 0.1, 0.9], True),
        ([0.7] * 5, False),
        ([None] * 5, True),
        ([0.1, 0.1, 0.1, None, None], True),
    ],
)
def test_it_ends_when_it_is_far_from_its_limit(recent, goes_on):
    assert stays_open(recent) is goes_on


@given(ratios)
def test_what_opens_stays_open_and_sides_are_alike(recent):
    if opens(recent):
        assert stays_open(recent)
    turned = [None if one is None else -one for one in recent]
    assert opens(turned) == opens(recent)
    assert stays_open(turned) == stays_open(recent)


@given(ratios, st.floats(DECISIVE + 0.01, 100), st.sampled_from([1, -1]))
def test_nothing_before_it_can_hide_a_decisive_bucket(recent, ratio, side):
    assert opens([*recent, side * ratio])


@given(ratios, ratios)
def test_only_the_last_buckets_count(before, recent):
    if len(recent) >= LOOKBACK:
        assert opens([*before, *recent]) == opens(recent)
        assert stays_open([*before, *recent]) == stays_open(recent)


@pytest.mark.parametrize(
    ("recent", "slowly"),
    [
        ([0.1, -0.1] * 5 + [1.5, 1.4, 1.6, 1.5], False),
        ([0.3 + 0.06 * day for day in range(14)], True),
        ([-0.3 - 0.06 * day for day in range(14)], True),
        ([9.0], False),
        ([], False),
    ],
)
def test_a_season_creeps_and_a_break_jumps(recent, slowly):
    assert crept(recent) is slowly
