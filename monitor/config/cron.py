"""Cron lines: the times that one names, in UTC.

Bottom of `monitor`, beside `endpoints`; `config` checks lines here and `evaluation` asks what has
come. The fields are those of every cron: minute, hour, day of the month, month, day of the week,
where 0 and 7 are Sunday. A line that restricts both kinds of day is refused, because crons do not
agree on what it means.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from apscheduler.triggers.cron import CronTrigger

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SOONEST = timedelta(minutes=1)
FIELDS = 5

_EPOCH_YEAR, _CYCLE_YEARS = 1970, 400


def parse(line: str) -> CronTrigger:
    """Return what `line` means.

    Raises:
        ValueError: It is no cron line, or restricts both kinds of day, or never comes.
    """
    fields = line.split()
    if len(fields) != FIELDS:
        raise ValueError(f"{line!r} has {len(fields)} fields; a cron line has {FIELDS}")
    minute, hour, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise ValueError(f"{line!r} names a day of the month and of the week; write one of them")
    trigger = CronTrigger(
        minute=minute,
        hour=hour,
        day=day,
        month=month,
        day_of_week=_weekdays(weekday),
        timezone=UTC,
    )
    if trigger.get_next_fire_time(None, datetime(2024, 1, 1, tzinfo=UTC)) is None:
        raise ValueError(f"{line!r} names no day that there is")
    return trigger


def latest(line: str, after: datetime, until: datetime) -> datetime | None:
    """Return the last time that `line` names in (after, until]; None when there is none."""
    trigger, span = _parsed(line), _SOONEST
    while True:
        # From the end backwards, twice as far each time: a month of minutes is not walked.
        begin = max(after, until - span)
        at = _next(trigger, begin)
        if at is not None and at <= until:
            break
        if begin == after:
            return None
        span *= 2
    while (later := _next(trigger, at)) is not None and later <= until:
        at = later
    return at


def first(line: str, after: datetime) -> datetime | None:
    """Return the first time that `line` names after `after`."""
    return _next(_parsed(line), after)


@lru_cache(maxsize=256)
def _parsed(line: str) -> CronTrigger:
    return parse(line)


def _next(trigger: CronTrigger, after: datetime) -> datetime | None:
    # APScheduler knows no time before 1970; the calendar, days of the week too, repeats itself.
    shift = _CYCLE_YEARS if after.year < _EPOCH_YEAR else 0
    start = after.replace(year=after.year + shift) + timedelta(microseconds=1)
    at: datetime | None = trigger.get_next_fire_time(None, start)
    return at if at is None or not shift else at.replace(year=at.year - shift)


def _weekdays(field: str) -> str:
    """Return a field of days of the week by their names: APScheduler counts from Monday.

    Raises:
        ValueError: It is none.
    """
    if field == "*":
        return field
    return ",".join(dict.fromkeys(name for part in field.split(",") for name in _span(part)))


def _span(part: str) -> list[str]:
    names = {name: number for number, name in enumerate(_DAYS[:7])}
    match = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?", part.lower())
    if match is None:
        raise ValueError(f"{part!r} is no day of the week")
    begin, end, step = match[1], match[2], int(match[3] or 1)
    if begin == "*":
        begin, end = "0", "6"
    low, high = (
        names[one] if one in names else int(one) if one.isdigit() else len(_DAYS)
        for one in (begin, end or begin)
    )
    if not low <= high < len(_DAYS) or step == 0:
        raise ValueError(f"{part!r} is no day of the week: 0 to 7, or sun to sat")
    return [_DAYS[number] for number in range(low, high + 1, step)]
