"""Limits are measured on stacks of buckets; one bucket after the other gives the same limits.

The loops here are the definitions: each day against its weekdays, each shift by itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift.calendar import Calendar
from steadfeast.monitor.drift.calibration import calibrate
from steadfeast.monitor.drift.detector import detect
from steadfeast.monitor.drift.distances import STATISTICS, Statistic, psi
from steadfeast.monitor.drift.reference import reference_of
from steadfeast.monitor.drift.shares import extended
from steadfeast.monitor.drift.thresholds import distance, distances
from steadfeast.monitor.profiles.binning import ColumnEdges, ColumnKind, Edges, edges_of
from steadfeast.monitor.profiles.profile import Profile, Window, profile, total
from support.drift_world import DAY, T0
from support.normal_world import judge, made, normal_days, normal_edges

if TYPE_CHECKING:
    from datetime import datetime

DAYS, ROWS = 35, 400
CONFIG = MonitorConfig(service="s", model="m")
every = pytest.mark.parametrize("chosen", STATISTICS.values(), ids=STATISTICS)


def world() -> tuple[Edges, list[tuple[datetime, Profile]]]:
    """Return a continuous, a zero-inflated and a categorical column, with a day missing."""
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
        days.append(pa.table(columns))
    edges = edges_of(pa.concat_tables(days[1:]), days[0].column_names)
    profiles = [profile(day.to_batches(), edges) for day in days]
    return edges, [(T0 + i * DAY, one) for i, one in enumerate(profiles) if i != 20]


EDGES, FOUND = world()
columns = pytest.mark.parametrize("name", EDGES.columns)


def compared(name):
    """Return the counts of each day, and those of the other days of its weekday."""
    days = {start: extended(one.columns[name]) for start, one in FOUND}
    return [
        (now, sum(one for at, one in days.items() if at.weekday() == day.weekday() and at != day))
        for day, now in days.items()
    ]


@every
@columns
def test_a_stack_of_buckets_is_measured_as_one_after_the_other(name, chosen):
    edges = EDGES.columns[name]
    at = edges.positions(None, None)
    inside, outside = (np.array(side)[:, :-1] for side in zip(*compared(name), strict=True))
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
def test_bins_that_are_empty_in_some_buckets_do_not_matter(stack, chosen):
    edges = ColumnEdges(
        ColumnKind.NUMERIC, cuts=(0.0, 1.0, 2.0, 3.0, 4.0), groups=(0, 1, 2, 3, 4, 5)
    )
    at = np.arange(6.0)
    expected = [distance(chosen, edges, stack[0], one, at) for one in stack]
    found = distances(chosen, edges, stack[0], stack, at)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every
@columns
def test_how_far_the_reference_went_is_what_loops_give(name, chosen):
    """The largest distance of a day to the others of its weekday, as the shift that gives it."""
    edges = EDGES.columns[name]
    config = CONFIG.model_copy(update={"statistic": chosen.name})
    _, limits = calibrate(FOUND, EDGES, config)
    if chosen.ordered and name == "kind":
        chosen = STATISTICS["total_variation"]
    at = edges.positions(None, None)
    # What a day is compared with is as many days as there are others; weights are even.
    values = [
        distance(chosen, edges, was[:-1] * len(FOUND) / 34, now[:-1], at)
        for now, was in compared(name)
    ]
    found = limits[name]
    assert found.statistic == chosen.name
    assert found.buckets == DAYS - 1
    assert found.by_distance.farthest == pytest.approx(found.effect(max(values)), rel=0.02)
    assert found.value(found.effect(max(values))) == pytest.approx(max(values), rel=0.02)


def test_what_is_expected_of_a_day_is_the_mean_of_its_weekday():
    expected, _ = calibrate(FOUND, EDGES, CONFIG)
    calendar = Calendar(DAY, CONFIG.calendar, expected.terms)
    assert expected.terms == ("weekday",)
    for ahead in range(7):
        day = T0 + (DAYS + ahead) * DAY
        shares, rows = expected.of("kind", calendar.design([day]))
        same = [one for at, one in FOUND if at.weekday() == day.weekday()]
        mean = np.mean([one.columns["kind"].counts / ROWS for one in same], axis=0)
        assert shares[:-1] == pytest.approx(mean, abs=1e-9)
        assert rows == pytest.approx(len(same) * ROWS)


@pytest.mark.parametrize(("days", "calibrated"), [(3, False), (4, True), (20, True)])
def test_too_short_a_reference_gives_no_limit_rather_than_a_guess(days, calibrated):
    edges = normal_edges(1)
    reference = made(edges, normal_days(edges, days, 1000, jitter=0.05))
    assert ("c0" in reference.thresholds) is calibrated
    [verdict] = judge(reference, normal_days(edges, 1, 1000, jitter=0.05, seed=2)[0], days)
    assert (verdict.level == "insufficient_data") is not calibrated
    assert ("too short" in verdict.reason) is not calibrated


def test_a_gap_in_the_reference_is_no_bucket():
    edges = normal_edges(1)
    days = normal_days(edges, 30, 1000, jitter=0.05)
    series = [(T0 + (i if i < 15 else i + 300) * DAY, one) for i, one in enumerate(days)]
    reference = reference_of(series, edges, CONFIG)
    assert reference.thresholds["c0"].buckets == 30
    assert reference.quietest == 0


@pytest.mark.parametrize("jitter", [0.03, 0.1])
def test_the_spread_that_is_measured_is_that_of_the_days(jitter):
    edges = normal_edges(20)
    reference = made(edges, normal_days(edges, 56, 1_000_000, jitter=jitter, week=0, seed=9))
    found = [one.by_shift.spread for one in reference.thresholds.values()]
    assert np.mean(found) == pytest.approx(jitter, rel=0.15)


@every
def test_every_statistic_reads_a_shift_as_the_shift_that_it_is(chosen):
    """A day of a normal feature moved by one sd: whatever the unit, that is what is read."""
    edges = normal_edges(1)
    calm = normal_days(edges, 56, 1000, jitter=0.03, week=0, seed=3)
    reference = made(edges, calm, name=chosen.name)
    found = reference.thresholds["c0"]
    config = CONFIG.model_copy(update={"statistic": chosen.name})
    [moved] = normal_days(edges, 1, 1000, jitter=0, week=0, seed=4, shift=1.0)
    [verdict] = judge(reference, moved, 56, config)
    assert found.statistic == verdict.statistic == chosen.name
    assert found.effect(verdict.value) == pytest.approx(1, rel=0.15)
    assert verdict.ratio == pytest.approx(
        found.effect(verdict.value) / found.effect(verdict.threshold), rel=1e-6
    )
    assert (verdict.side, verdict.ratio > 1) == (1, True)


def test_fewer_rows_raise_the_limit_by_what_counting_adds():
    edges = normal_edges(1)
    reference = made(edges, normal_days(edges, 56, 1000, jitter=0.03, seed=5))
    found = reference.thresholds["c0"]
    limits = [found.limit(rows) for rows in (10**9, 7000, 1400, 350)]
    assert limits == sorted(limits)
    assert limits[0] == pytest.approx(max(found.floor, found.by_distance.most))
    # No drift at all, 350 rows: chi-square(9) / 350 and the floor; hardly ever above.
    rng = np.random.default_rng(6)
    whole, column = reference.profile.columns["c0"].counts, edges.columns["c0"]
    drawn = [rng.multinomial(350, whole / whole.sum()) for _ in range(500)]
    values = [psi(column.coarse(whole), column.coarse(one)) for one in drawn]
    assert np.mean([found.effect(one) > limits[3] for one in values]) <= 0.01


def test_a_reference_with_a_trend_counts_it_as_noise():
    edges = normal_edges(1)
    flat = made(edges, normal_days(edges, 60, 1000, jitter=0.05, seed=1))
    days = [normal_days(edges, 1, 1000, jitter=0, seed=i, shift=i / 30)[0] for i in range(60)]
    rising = made(edges, days)
    assert rising.thresholds["c0"].limit(1000) > 5 * flat.thresholds["c0"].limit(1000)


def test_the_first_days_of_the_month_are_found_where_they_differ():
    edges = normal_edges(3)
    days = normal_days(edges, 56, 3000, jitter=0.03, seed=8)
    assert made(edges, days).expected[0].terms == ("weekday",)
    first = [i for i in range(56) if (T0 + i * DAY).day <= 3]
    moved = normal_days(edges, 56, 3000, jitter=0.03, seed=8, shift=0.3)
    for i in first:
        days[i] = moved[i]
    reference = made(edges, days)
    assert reference.expected[0].terms == ("weekday", "month start")
    start = next(i for i in range(56, 90) if (T0 + i * DAY).day == 1)
    found = judge(reference, moved[0], start)
    assert all(one.level == "ok" for one in found)


def test_a_feature_that_is_the_calendar_is_judged_by_whole_windows():
    edges = edges_of(pa.table({"day": np.arange(7000) % 7}), ["day"])
    tables = [pa.table({"day": np.full(1000, i % 7)}) for i in range(56)]
    reference = made(edges, [profile(one.to_batches(), edges) for one in tables])
    assert reference.thresholds["day"].whole_window
    # A day that holds a little of the next one is no drift of the week.
    late = [np.where(np.arange(1000) < 40, i % 7, (i - 1) % 7) for i in range(57, 64)]
    days = [profile(pa.table({"day": one}).to_batches(), edges) for one in late]
    end = T0 + 63 * DAY
    whole = total(days, edges)
    window = Window(end - 7 * DAY, end, whole.rows)
    [verdict] = detect(reference, whole, window, CONFIG, bucket=(end - DAY, days[-1]))
    assert (verdict.level, verdict.window) == ("ok", window)


def test_a_statistic_that_takes_one_bucket_at_a_time_is_asked_one_at_a_time():
    """As a user's own is: one function of two vectors, without bins that nobody is in."""
    seen = []

    def largest_gap(reference, current):
        seen.append(reference.shape)
        assert ((reference + current) > 0).all()
        return float(abs(reference / reference.sum() - current / current.sum()).max())

    edges = EDGES.columns["kind"]
    inside, outside = (np.array(side)[:, :-1] for side in zip(*compared("kind"), strict=True))
    found = distances(Statistic("gap", largest_gap), edges, outside, inside, np.arange(edges.bins))
    assert len(seen) == len(found) == len(inside)
    assert all(len(shape) == 1 for shape in seen)
