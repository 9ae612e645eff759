"""What a bucket is compared with: its like in the reference, by the calendar.

Above `monitor.config`, below `monitor.drift.calibration`. Pure.

What a bucket of the reference looks like is a sum of what the calendar explains: its day of the
week, its hour, whether it is a holiday, one of the first days of a month or of a kind that the
user declared, the phase of a second season, and, with a reference of a year, the time of the year.
Each of these is a few columns of a design matrix, and the shares of a feature's bins on them are a
least squares fit. So eight Mondays are what a Monday is compared with, and fewer than three of a
kind are no likes at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.config import CalendarConfig, public_holidays

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

Floats = npt.NDArray[np.float64]

FEWEST = 3
"""Buckets, or days of smaller buckets, of one kind that make a like."""

HOUR, WEEKDAY, YEAR, SEASON = "hour", "weekday", "year", "season"
HOLIDAY, MONTH_START = "holiday", "month start"
_REGULAR = (HOUR, WEEKDAY, SEASON, YEAR)
_DAY, _YEAR = timedelta(days=1), timedelta(days=365.25)
_WHOLE_YEAR = timedelta(days=330)
_FIRST_DAYS = 3
_HARMONICS = (1, 2)


@dataclass(frozen=True, slots=True)
class Calendar:
    """What of the calendar a reference tells apart.

    Attributes:
        bucket: Length of one.
        config: What the user declared.
        terms: The names of what is told apart; of declared kinds of days, their names.
    """

    bucket: timedelta
    config: CalendarConfig
    terms: tuple[str, ...] = ()

    @classmethod
    def of(cls, bucket: timedelta, config: CalendarConfig, starts: Sequence[datetime]) -> Calendar:
        """Return what a reference of buckets that start at `starts` can tell apart.

        Of the first days of the month only where the user said how many there are: whether they
        are unlike others is for the reference to say.
        """
        blank = cls(bucket, config)
        days = len({start // _DAY for start in (one - EPOCH for one in starts)})
        span = starts[-1] - starts[0] + bucket
        terms = []
        for term in _REGULAR:
            if (term == YEAR and span < _WHOLE_YEAR) or (term == HOUR and bucket >= _DAY):
                continue
            if term == SEASON and (config.season is None or span < FEWEST * config.season):
                continue
            if term == WEEKDAY and (bucket > _DAY or days < 7 * FEWEST):
                continue
            columns = blank._columns(term, starts)
            if (
                term in {SEASON, YEAR}
                or columns[:, columns.any(axis=0)].sum(axis=0).min() >= FEWEST
            ):
                terms.append(term)
        for kind in blank.kinds:
            many = sum(blank.kind(start) == kind for start in starts)
            if many >= FEWEST and (kind != MONTH_START or config.month_start is not None):
                terms.append(kind)
        return cls(bucket, config, tuple(terms))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of days that are unlike others, whether or not they are in `terms`."""
        first = () if self.config.month_start == 0 or self.bucket > _DAY else (MONTH_START,)
        return (*([HOLIDAY] if self.config.country else []), *self.config.days, *first)

    def kind(self, start: datetime) -> str:
        """Return which of `kinds` a bucket is of; empty for an ordinary one."""
        for name, periods in self.config.days.items():
            if any(one.start <= start < one.end for one in periods):
                return name
        country, where = self.config.country, self.config.subdivision
        if country and start.date() in public_holidays(country, where, start.year):
            return HOLIDAY
        first = _FIRST_DAYS if self.config.month_start is None else self.config.month_start
        return MONTH_START if start.day <= first and MONTH_START in self.kinds else ""

    def unlike(self, start: datetime) -> str:
        """Return of which kind a bucket is that has no likes in the reference; empty if it has."""
        kind = self.kind(start)
        undeclared = kind == MONTH_START and self.config.month_start is None
        return "" if undeclared or kind in self.terms else kind

    def design(self, starts: Sequence[datetime]) -> Floats:
        """Return one row per bucket, and a column for each thing that it may be."""
        columns = [self._columns(term, starts) for term in self.terms]
        return np.concatenate([np.ones((len(starts), 1)), *columns], axis=1)

    def _columns(self, term: str, starts: Sequence[datetime]) -> Floats:
        if term not in _REGULAR:
            return np.array([[self.kind(start) == term] for start in starts], np.float64)
        since = [start - EPOCH for start in starts]
        weekday = np.array([one // _DAY for one in since]) % 7
        if term == WEEKDAY:
            return np.asarray(weekday[:, None] == np.arange(7), np.float64)
        if term == HOUR:
            hour = np.array([one % _DAY // timedelta(hours=1) for one in since])
            free = np.isin(weekday, _WEEKEND)
            return np.asarray((hour + 24 * free)[:, None] == np.arange(48), np.float64)
        length = _YEAR if term == YEAR else self.config.season or _YEAR
        turn = 2 * np.pi * np.array([one / length for one in since])
        return np.stack([f(k * turn) for k in _HARMONICS for f in (np.cos, np.sin)], axis=1)


_WEEKEND = (2, 3)
"""Days since 1970, modulo 7: Saturday and Sunday."""
