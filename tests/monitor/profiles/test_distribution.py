"""Distributions against a count of the rows, done again with plain Python."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.distribution import MOST_BARS, MOST_GROUPS, distributions
from steadfeast.monitor.profiles.profile import profile

NUMBERS = st.lists(
    st.one_of(st.none(), st.just(0.0), st.floats(allow_infinity=True), st.integers(-5, 5)),
    min_size=1,
    max_size=200,
).map(lambda values: [None if value is None else float(value) for value in values])


def compared(reference: list, current: list, kind: pa.DataType):
    tables = [pa.table({"f": pa.array(values, kind)}) for values in (reference, current)]
    edges = edges_of(tables[0], ["f"])
    sides = [profile(table.to_batches(), edges) for table in tables]
    return distributions(sides[0], sides[1])


@settings(max_examples=60)
@given(NUMBERS, NUMBERS)
def test_bars_are_all_of_the_rows(reference, current):
    """Each side's shares add up to 1, nulls and NaN are their own, and bars are bounded."""
    [found] = compared(reference, current, pa.float64())
    assert math.isclose(sum(bar.reference for bar in found.bars), 1)
    assert math.isclose(sum(bar.current for bar in found.bars), 1)
    assert len(found.bars) <= MOST_BARS
    labels = [bar.label for bar in found.bars]
    assert len(set(labels)) == len(labels)
    assert all(labels)
    shares = {bar.label: bar for bar in found.bars}
    nulls = sum(value is None for value in reference) / len(reference)
    assert shares["null"].reference == pytest.approx(nulls) if nulls else True


def test_a_point_mass_and_its_neighbours():
    """Zero is a group of its own; what is counted is what the labels say."""
    rain = [0.0] * 900 + [i / 100 for i in range(1, 101)]
    [found] = compared(rain, [0.0] * 50 + [5.0] * 50, pa.float64())
    shares = {bar.label: (bar.reference, bar.current) for bar in found.bars}
    assert shares["0"] == (0.9, 0.5)
    last = found.bars[-1]
    low = float(last.label.removeprefix("over "))
    assert last.reference == pytest.approx(sum(value > low for value in rain) / 1000)
    assert last.current == 0.5


def test_categories_keep_their_names_and_the_new_ones_show():
    names = [name for i, name in enumerate("abcdefghijklmnopqrst") for _ in range(20 - i)]
    [found] = compared(names, ["a", "zebra", "zebra", None], pa.string())
    shares = {bar.label: bar.current for bar in found.bars}
    assert shares["a"] == 0.25
    assert shares["not in the reference"] == 0.5
    assert shares["null"] == 0.25
    assert found.bars[0].label == "a"  # the most frequent first
    rest = next(bar for bar in found.bars if bar.label.endswith("rarer ones"))
    assert rest.label == f"{20 - (MOST_GROUPS - 2)} rarer ones"


def test_what_a_category_is_called_takes_no_bars_name():
    [found] = compared(["null", "NaN", None], ["null"], pa.string())
    assert {bar.label for bar in found.bars} == {"null (2)", "NaN (2)", "null"}


def test_without_a_window_there_is_no_current_side():
    table = pa.table({"f": pa.array([1.0, 2.0])})
    edges = edges_of(table, ["f"])
    reference = profile(table.to_batches(), edges)
    for current in (None, profile([], edges)):
        [found] = distributions(reference, current)
        assert found.rows == 0
        assert {bar.current for bar in found.bars} == {None}


def test_times_are_written_as_dates():
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 29)] * 4
    [found] = compared(days, days, pa.timestamp("us", tz="UTC"))
    assert any("2024-01-" in bar.label for bar in found.bars)
