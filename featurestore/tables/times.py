"""Between Python's datetimes and the store's microseconds since the epoch, UTC.

Bottom of `featurestore`; integers throughout, since a float's microseconds are not exact.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@overload
def micros(value: datetime) -> int: ...
@overload
def micros(value: None) -> None: ...
def micros(value: datetime | None) -> int | None:
    """Return an instant in microseconds since the epoch; one without a zone is UTC."""
    if value is None:
        return None
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - EPOCH
    return duration(since)


def duration(value: timedelta) -> int:
    """Return a length of time in microseconds."""
    return (value.days * 86400 + value.seconds) * 10**6 + value.microseconds


def instant(value: int) -> datetime:
    """Return the instant, in UTC, that is so many microseconds after the epoch."""
    return EPOCH + timedelta(microseconds=value)
