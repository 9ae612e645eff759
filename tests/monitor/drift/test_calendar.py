"""Which buckets are alike: weekdays, hours, holidays, first days of months, seasons."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pydantic import ValidationError

from steadfeast.monitor.config.calendar import CalendarConfig
from steadfeast.monitor.drift.calendar import Calendar

DAY = timedelta(days=1)
T0 = datetime(2024, 1, 1, tzinfo=UTC)
PLAIN = CalendarConfig()


def starts(days, bucket=DAY, first=T0):
    return [first + i * bucket for i in range(days * (DAY // bucket))]


@pytest.mark.parametrize(
    ("days", "bucket", "terms"),
    [
        (20, DAY, ()),
        (21, DAY, ("weekday",)),
        (56, DAY, ("weekday",)),
        (365, DAY, ("weekday", "year")),
        (28, timedelta(hours=1), ("hour", "weekday")),
        (70, timedelta(days=7), ()),
    ],
)
def test_a_reference_tells_apart_what_it_has_three_of(days, bucket, terms):
    made = [T0 + i * bucket for i in range(days * DAY // bucket)]
    assert Calendar.of(bucket, PLAIN, made).terms == terms


def test_a_bucket_is_compared_with_its_weekday_and_hour():
    made = starts(28, timedelta(hours=1))
    calendar = Calendar.of(timedelta(hours=1), PLAIN, made)
    design = calendar.design(made)
    busy = np.array([10.0 * (one.weekday() == 2) + one.hour for one in made])
    fitted = design @ np.linalg.pinv(design) @ busy
    assert fitted == pytest.approx(busy, abs=1e-6)


def test_holidays_are_those_of_the_country():
    config = CalendarConfig(country="US")
    made = starts(60)
    calendar = Calendar.of(DAY, config, made)
    # New Year, Martin Luther King and Presidents' Day.
    assert [one.date().isoformat() for one in made if calendar.kind(one) == "holiday"] == [
        "2024-01-01",
        "2024-01-15",
        "2024-02-19",
    ]
    assert "holiday" in calendar.terms
    assert calendar.unlike(datetime(2024, 7, 4, tzinfo=UTC)) == ""
    late = Calendar.of(DAY, config, starts(30, first=datetime(2024, 3, 2, tzinfo=UTC)))
    assert late.unlike(datetime(2024, 7, 4, tzinfo=UTC)) == "holiday"
    assert late.unlike(datetime(2024, 7, 5, tzinfo=UTC)) == ""


def test_days_are_what_the_user_declares():
    config = CalendarConfig(
        days={"sale": [{"from": "2024-01-10", "to": "2024-01-13"}]}, month_start=2
    )
    calendar = Calendar.of(DAY, config, starts(56))
    kinds = [calendar.kind(one) for one in starts(33)]
    assert [i + 1 for i, kind in enumerate(kinds) if kind == "sale"] == [10, 11, 12]
    assert [i + 1 for i, kind in enumerate(kinds) if kind == "month start"] == [1, 2, 32, 33]
    assert calendar.terms == ("weekday", "sale", "month start")
    assert Calendar(DAY, CalendarConfig(month_start=0)).kinds == ()


def test_a_second_season_has_a_phase():
    config = CalendarConfig(season="14d")
    made = starts(56)
    calendar = Calendar.of(DAY, config, made)
    wave = np.array([np.cos(2 * np.pi * (i + 3) / 14) for i in range(100)])
    design = calendar.design(made)
    ahead = calendar.design(starts(100))
    assert ahead @ np.linalg.pinv(design) @ wave[:56] == pytest.approx(wave, abs=1e-3)
    assert "season" not in Calendar.of(DAY, config, starts(41)).terms


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"country": "XX"}, "XX"),
        ({"country": "US", "subdivision": "ZZ"}, "ZZ"),
        ({"subdivision": "CA"}, "needs a country"),
        ({"season": "0d"}, "longer"),
    ],
)
def test_what_no_calendar_knows_is_said(given, text):
    with pytest.raises(ValidationError, match=text):
        CalendarConfig.model_validate(given)
