"""Limits are measured on stacks of windows; one window after the other gives the same limits.

The loops here are the definitions: each window against the rest, each shift by itself.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as sp

from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift.calibration import Series, _directions, calibrate, calibrate_latest
from steadfeast.monitor.drift.distances import STATISTICS, Statistic
from steadfeast.monitor.drift.thresholds import SHIFTS, distance, distances
from steadfeast.monitor.profiles.binning import ColumnEdges, Kind, edges_of
from steadfeast.monitor.profiles.profile import Profile, profile

DAYS, ROWS = 35, 400
CONFIG = MonitorConfig(service="s", model="m")
every = pytest.mark.parametrize("chosen", STATISTICS.values(), ids=STATISTICS)


def world() -> dict[str, tuple[ColumnEdges, Series, Profile]]:
    """Return a continuous, a zero-inflated and a categorical column, each with a gap in it."""
    rng = np.random.default_rng(5)
    days = []
    for day in range(DAYS):
        mean = 0.1 * rng.standard_normal() + 0.1 * math.sin(2 * math.pi * day / 7)
        rain = np.where(rng.random(ROWS) < 0.9, 0.0, rng.exponential(1, ROWS))
        kinds = rng.choice(list("aabbbcd"), ROWS)
        columns = {
            "normal": pa.array(rng.normal(mean, 1, ROWS), mask=rng.random(ROWS) < 0.02),
            "rain": pa.array(rain),
            "kind": pa.array(["new"] * 3 + kinds.tolist()[3:] if day == 9 else kinds.tolist()),
        }
        table = pa.table(columns)
        days.append(table.slice(0, 0) if day == 20 else table)
    edges = edges_of(pa.concat_tables(days[1:]), days[0].column_names)
    profiles = [profile(day.to_batches(), edges) for day in days]
    whole = sum(profiles[1:], profiles[0])
    weekdays = np.arange(DAYS) % 7
    return {
        name: (one, Series.of(name, profiles, weekdays), whole)
        for name, one in edges.columns.items()
    }


WORLD = world()
columns = pytest.mark.parametrize("name", WORLD)


def compared(name, length):
    """Return each window's counts, and those of all other days: of its weekdays, if of a day."""
    _, series, _ = WORLD[name]
    pairs = []
    for start in range(DAYS - length + 1):
        inside = series.counts[start : start + length]
        others = [i for i in range(DAYS) if not start <= i < start + length]
        outside = series.counts[others].sum(axis=0)
        if length == 1:
            same = [i for i in others if series.weekdays[i] == series.weekdays[start]]
            # Of as many rows as the days that it is made of.
            outside = series.counts[same].sum(axis=0).astype(float)
        if inside[:, :-1].sum() and outside[:-1].sum():
            pairs.append((inside.sum(axis=0), outside))
    return pairs


def loops(name, chosen, pairs):
    """Return curve, mean of squares, and what counting adds: the definitions."""
    edges, _, whole = WORLD[name]
    column = whole.columns[name]
    at = edges.positions(column.minimum, column.maximum)
    rows = float(np.median([inside[:-1].sum() for inside, _ in pairs]))
    ends = sp.norm.ppf(np.cumsum(column.counts)[:-1] / column.counts.sum())
    curve = []
    for shift in SHIFTS:
        sides = []
        for way in (-1, 1):
            share = np.diff(sp.norm.cdf(ends + way * shift), prepend=0, append=1)
            sides.append(distance(chosen, edges, column.counts, rows * share, at))
        curve.append(max([np.mean(sides), *curve[-1:]]))
    hair = 1e-12 * max(curve[-1], 1e-12)
    curve = [one + i * hair for i, one in enumerate(curve)]

    def squared(left, right):
        return np.interp(distance(chosen, edges, left, right, at), curve, SHIFTS) ** 2

    mean = np.mean([squared(outside[:-1], inside[:-1]) for inside, outside in pairs])
    drawn = np.random.default_rng(0).multinomial(
        int(rows), column.counts / column.counts.sum(), size=128
    )
    counting = [squared(column.counts, draw) for draw in drawn]
    return curve, mean, (np.mean(counting) + 4 * np.std(counting)) * rows


@every
@columns
def test_a_stack_of_windows_is_measured_as_one_after_the_other(name, chosen):
    edges, _, whole = WORLD[name]
    at = edges.positions(whole.columns[name].minimum, whole.columns[name].maximum)
    inside, outside = (np.array(side)[:, :-1] for side in zip(*compared(name, 7), strict=True))
    expected = [
        distance(chosen, edges, left, right, at)
        for left, right in zip(outside, inside, strict=True)
    ]
    found = distances(chosen, edges, outside, inside, at)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-14)
    one = distances(chosen, edges, outside[0], inside, at)
    assert one[0] == pytest.approx(expected[0], rel=1e-9, abs=1e-14)


stacks = st.lists(
    st.lists(st.sampled_from([0, 0, 1, 5, 1000]), min_size=6, max_size=6).filter(any),
    min_size=2,
    max_size=6,
).map(np.array)


@every
@given(stack=stacks)
def test_bins_that_are_empty_in_some_windows_do_not_matter(stack, chosen):
    edges = ColumnEdges(Kind.NUMERIC, cuts=(0.0, 1.0, 2.0, 3.0, 4.0), groups=(0, 1, 2, 3, 4, 5))
    at = np.arange(6.0)
    expected = [distance(chosen, edges, stack[0], one, at) for one in stack]
    found = distances(chosen, edges, stack[0], stack, at)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every
@columns
def test_limits_of_a_window_are_those_that_loops_give(name, chosen):
    edges, series, whole = WORLD[name]
    if chosen.ordered and name == "kind":
        chosen = STATISTICS["total_variation"]
    found = calibrate(
        edges, series, whole.columns[name], config=CONFIG, chosen=chosen, alarms_per_year=0.1
    )
    # 34 days with rows are not six weeks: the blocks are of five days.
    curve, mean, sampling = loops(name, chosen, compared(name, DAYS // 6))
    assert found.curve == pytest.approx(curve, rel=1e-9)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.sampling == pytest.approx(sampling, rel=1e-9)


@every
@columns
def test_limits_of_a_day_are_those_that_loops_give(name, chosen):
    edges, series, whole = WORLD[name]
    if chosen.ordered and name == "kind":
        chosen = STATISTICS["total_variation"]
    found = calibrate_latest(
        edges, series, whole.columns[name], config=CONFIG, chosen=chosen, alarms_per_year=0.1
    )
    curve, mean, sampling = loops(name, chosen, compared(name, 1))
    assert found.curve == pytest.approx(curve, rel=1e-9)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.sampling == pytest.approx(sampling, rel=1e-9)


def test_a_statistic_that_takes_one_window_at_a_time_is_asked_one_at_a_time():
    """As a user's own is: one function of two vectors, without bins that nobody is in."""
    seen = []

    def largest_gap(reference, current):
        seen.append(reference.shape)
        assert ((reference + current) > 0).all()
        return float(abs(reference / reference.sum() - current / current.sum()).max())

    edges, _, _ = WORLD["kind"]
    inside, outside = (np.array(side)[:, :-1] for side in zip(*compared("kind", 7), strict=True))
    found = distances(Statistic("gap", largest_gap), edges, outside, inside, np.arange(edges.bins))
    assert len(seen) == len(found) == len(inside)
    assert all(len(shape) == 1 for shape in seen)


@pytest.mark.parametrize(
    ("weights", "directions", "varying"),
    [
        ([1.0], 1, 1),
        ([0.25] * 4, 4, 1),
        # One direction among nine that are always there.
        ([0.5] + [0.5 / 9] * 9, 1.34, 0.61),
    ],
)
def test_three_moments_of_a_sum_of_squares_are_matched(weights, directions, varying):
    """Known for sure, so nothing to correct; the moments are those of draws."""
    weights = np.array(weights)
    found = _directions(weights, 1e9)
    assert found == pytest.approx((directions, varying), rel=0.05)
    d, v = found
    drawn = np.random.default_rng(0).chisquare(1, (400_000, len(weights))) @ weights
    constant = 1 - v + v * np.random.default_rng(1).chisquare(d, 400_000) / d
    for moment in (np.mean, np.var, sp.skew):
        assert moment(constant) == pytest.approx(moment(drawn), rel=0.05)


@pytest.mark.parametrize("many", [1, 3, 9])
def test_few_windows_make_fewer_directions_of_equal_ones_but_not_as_few_as_it_seems(many):
    rng = np.random.default_rng(many)
    found, seen = [], []
    for _ in range(200):
        drawn = np.linalg.svd(rng.standard_normal((11, many)), compute_uv=False) ** 2
        share = drawn / drawn.sum()
        seen.append(np.sum(share**2) ** 3 / np.sum(share**3) ** 2)
        found.append(_directions(share, 11.0)[0])
    assert np.mean(seen) - 1e-9 <= np.mean(found) <= many + 1e-9
