"""Charts: what is drawn is where the numbers are."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.monitor.web.charts import LARGE, SPARK, Contest, contests, figures, number, ratios

START = datetime(2013, 3, 1, tzinfo=UTC)
values = st.lists(st.none() | st.floats(0, 1e6) | st.just(math.nan), max_size=40)


def history(ratios_):
    return [(START + timedelta(days=i), ratio) for i, ratio in enumerate(ratios_)]


@given(values)
def test_points_are_inside_the_box_and_on_their_side_of_the_limit(ratios_):
    for box in (SPARK, LARGE):
        chart = ratios(history(ratios_), box)
        drawn = [one for one in ratios_ if one is not None and math.isfinite(one)]
        assert len(chart.points) == len(drawn)
        assert chart.path.count("M") + chart.path.count("L") == len(drawn)
        for point, ratio in zip(chart.points, drawn, strict=True):
            assert box.x0 <= point.x <= box.x1
            assert box.y1 <= point.y <= box.y0
            assert point.bad == (ratio > 1)
            assert point.y <= chart.limit if ratio >= 1 else point.y >= chart.limit


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=40), st.none() | st.floats(-1e6, 1e6))
def test_a_linear_axis_holds_every_value_and_what_was_expected(drawn, expected):
    chart = figures(history(drawn), expected=expected)
    ys = [point.y for point in chart.points] + ([] if expected is None else [chart.limit])
    assert all(LARGE.y1 - 0.1 <= y <= LARGE.y0 + 0.1 for y in ys)
    assert not any(point.bad for point in chart.points)


runs = st.lists(
    st.tuples(st.floats(-1e6, 1e6), st.none() | st.floats(-1e6, 1e6), st.booleans()), min_size=1
)


@given(runs)
def test_what_was_not_promoted_is_marked(measured):
    chart = contests(
        [
            Contest(START + timedelta(days=i), *one, outcome="promoted" if one[2] else "refused")
            for i, one in enumerate(measured)
        ]
    )
    assert [not point.bad for point in chart.points] == [promoted for _, _, promoted in measured]
    assert all(LARGE.y1 - 0.1 <= point.y <= LARGE.y0 + 0.1 for point in chart.points)
    champions = [champion for _, champion, _ in measured if champion is not None]
    assert chart.beside.count("M") + chart.beside.count("L") == len(champions)


def test_the_summary_of_runs_says_how_the_last_one_ended():
    first = Contest(START, 0.73, None, promoted=True, outcome="promoted")
    assert contests([first]).summary == "0.73, promoted on 1 Mar 2013."
    refused = Contest(START + timedelta(days=30), 0.701, 0.744, promoted=False, outcome="refused")
    assert contests([first, refused]).summary == (
        "0.701 against 0.744 of the champion, refused on 31 Mar 2013; of 2 runs 1 not promoted."
    )


def test_a_window_without_a_value_breaks_the_line():
    assert ratios(history([0.5, None, 2.0, 3.0])).path.count("M") == 2


def test_the_summary_says_since_when():
    chart = ratios(history([2.0, 0.5, 1.5, 3.0]))
    assert chart.summary == (
        "3 on 4 Mar 2013; 0.5 to 3 over 4 windows since 1 Mar 2013; "
        "over the limit since 3 Mar 2013."
    )
    assert ratios(history([0.2, 0.4])).summary.endswith("; within the limit.")
    assert ratios([]).summary == ratios(history([None])).summary
    assert figures(history([0.7]), expected=0.75).summary.endswith("; 0.75 when trained.")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.08, "0.08"),
        (6.4, "6.4"),
        (51955.4, "51955"),
        (1e-6, "1.00e-06"),
        (2.5e7, "2.50e+07"),
        (99.99, "100"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@given(st.floats(-1e300, 1e300))
def test_numbers_keep_their_value_to_three_digits(value):
    assert float(number(value)) == pytest.approx(value, rel=6e-3)
