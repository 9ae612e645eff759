"""Cron lines: the times that one names, in UTC.

Bottom of `monitor`, beside `endpoints`; `schema` checks lines here and `decisions` asks what has
come. The fields are those of every cron: minute, hour, day of the month, month, day of the week,
where 0 and 7 are Sunday. A line that restricts both kinds of day is refused, because crons do not
agree on what it means.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

FIELDS = 5
_MICROSECOND = timedelta(microseconds=1)


def parse(line: str) -> None:
    """Refuse what is no cron line.

    Raises:
        ValueError: It is none, or restricts both kinds of day, or names no day that there is.
    """
    fields = line.split()
    if len(fields) != FIELDS:
        raise ValueError(f"{line!r} has {len(fields)} fields; a cron line has {FIELDS}")
    if fields[2] != "*" and fields[4] != "*":
        raise ValueError(f"{line!r} names a day of the month and of the week; write one of them")
    try:
        CronSim(line, datetime(2024, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(f"{line!r} is no cron line: {error}") from error


def latest(line: str, after: datetime, until: datetime) -> datetime | None:
    """Return the last time that `line` names in (after, until]; None when there is none."""
    at = next(CronSim(line, until + _MICROSECOND, reverse=True), None)
    return at if at is not None and at > after else None


def first(line: str, after: datetime) -> datetime | None:
    """Return the first time that `line` names after `after`."""
    return next(CronSim(line, after), None)
