"""Cron lines against a walk over every minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import assume, given
from hypothesis import strategies as st

from steadfeast.monitor.config.cron import first, latest, parse

MINUTE = timedelta(minutes=1)
MONDAY = datetime(2024, 1, 1, tzinfo=UTC)


def numbers(low: int, high: int):
    """Fields and what they mean, made together."""
    one = st.integers(low, high)
    span = st.tuples(one, one).map(sorted)
    step = st.integers(1, 7)
    return st.one_of(
        st.just(("*", set(range(low, high + 1)))),
        one.map(lambda n: (str(n), {n})),
        st.lists(one, min_size=2, max_size=3).map(lambda many: (",".join(map(str, many)), {*many})),
        span.map(lambda s: (f"{s[0]}-{s[1]}", set(range(s[0], s[1] + 1)))),
        step.map(lambda s: (f"*/{s}", set(range(low, high + 1, s)))),
    )


@st.composite
def lines(draw):
    """A cron line, and whether it names a minute, by the manual page of cron."""
    (minute, minutes), (hour, hours) = draw(numbers(0, 59)), draw(numbers(0, 23))
    month, months = draw(numbers(1, 12))
    day, days = "*", set(range(1, 32))
    weekday, weekdays = "*", set(range(7))
    if draw(st.booleans()):
        day, days = draw(numbers(1, 31))
        assume(min(days) <= 28 or months != {2})
        assume(min(days) <= 30 or months & {1, 3, 5, 7, 8, 10, 12})
    else:
        weekday, weekdays = draw(numbers(0, 7))
        weekdays = {number % 7 for number in weekdays}

    def names(at: datetime) -> bool:
        return (
            at.minute in minutes
            and at.hour in hours
            and at.month in months
            and at.day in days
            and at.isoweekday() % 7 in weekdays
        )

    return f"{minute} {hour} {day} {month} {weekday}", names


@given(line=lines(), start=st.integers(0, 500_000), minutes=st.integers(0, 3000))
def test_the_last_time_is_what_a_walk_finds(line, start, minutes):
    text, names = line
    after = MONDAY + start * MINUTE + timedelta(seconds=start % 60)
    until = after + minutes * MINUTE
    at, found = after.replace(second=0) + MINUTE, []
    while at <= until:
        found += [at] if names(at) else []
        at += MINUTE
    assert latest(text, after, until) == (found[-1] if found else None)
    if found:
        assert first(text, after) == found[0]


@given(line=lines(), start=st.integers(0, 500_000))
def test_times_are_those_of_another_scheduler(line, start):
    """APScheduler's, which reads every field but the day of the week in the same way."""
    minute, hour, day, month, weekday = line[0].split()
    assume(weekday == "*")
    trigger = CronTrigger(minute=minute, hour=hour, day=day, month=month, timezone=UTC)
    after = MONDAY + start * MINUTE
    expected = trigger.get_next_fire_time(None, after + timedelta(microseconds=1))
    assert first(line[0], after) == expected


def test_days_of_the_week_are_those_of_cron():
    """0 and 7 are Sunday."""
    for field, day in (("0", 7), ("7", 7), ("1", 1), ("sun", 7), ("MON", 1), ("6", 6)):
        assert first(f"0 3 * * {field}", MONDAY).isoweekday() == day
    assert first("0 3 * * 5-7", MONDAY + timedelta(days=5)).isoweekday() == 6


def test_a_leap_day_is_found_over_years():
    until = datetime(2027, 6, 1, tzinfo=UTC)
    assert latest("0 3 29 2 *", MONDAY, until) == datetime(2024, 2, 29, 3, tzinfo=UTC)
    assert latest("0 3 29 2 *", MONDAY + timedelta(days=90), until) is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 3 * *", "4 fields"),
        ("0 3 1 * 1", "write one of them"),
        ("0 3 30 2 *", "Bad day-of-month"),
        ("0 3 * * 8", "Bad day-of-week"),
        ("0 3 * * 5-3", "Bad day-of-week"),
        ("0 3 * * x!", "Bad day-of-week"),
        ("61 3 * * *", "Bad minute"),
        ("a 3 * * *", "Bad minute"),
    ],
)
def test_what_is_no_cron_line_is_refused(line, problem):
    with pytest.raises(ValueError, match=problem):
        parse(line)
