"""Which times a table has rows of, and which of them can be believed.

Beside `quarantine`. One row with a wrong date must not move the clock: a monitor that replays a
table takes its latest row for now, and one row of the year 2031 would make thousands of empty
buckets due. So rows are grouped by time, and a group that lies apart from all others and holds
next to nothing is put aside, as is one that lies ahead of the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

APART = timedelta(days=2)
"""Rows that are further apart in time than this belong to two groups."""
FEWEST_ROWS, FEWEST_OF_A_DAY = 10, 0.02
"""A group counts with so many rows, and with such a share of an ordinary day's."""
AHEAD = timedelta(days=1)
"""How far ahead of the wall clock a group may begin: zones and forecasts of tomorrow."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows without a gap of `APART` between them.

    Attributes:
        first: Least event time.
        last: Greatest.
        rows: How many.
    """

    first: datetime
    last: datetime
    rows: int

    @property
    def days(self) -> float:
        """Length in days, a day at least."""
        return max(1.0, (self.last - self.first) / _DAY)


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return spans in order of time, those less than `APART` from each other as one."""
    groups: list[Span] = []
    for span in sorted(spans, key=lambda one: one.first):
        if groups and span.first - groups[-1].last <= APART:
            before = groups[-1]
            last = max(before.last, span.last)
            groups[-1] = Span(before.first, last, before.rows + span.rows)
        else:
            groups.append(span)
    return groups


def believed(spans: Iterable[Span], now: datetime | None = None) -> list[Span]:
    """Return the groups of `spans` whose times can be believed, in order of time.

    The largest always is: of a table of few rows nothing is put aside for being few.

    Args:
        spans: Of all parts of a table.
        now: Wall clock; None asks it.
    """
    groups = joined(spans)
    horizon = (now or datetime.now(UTC)) + AHEAD
    # A table that is simulated wholly ahead of the clock is taken as it is.
    groups = [one for one in groups if one.first <= horizon] or groups
    if not groups:
        return []
    largest = max(groups, key=lambda one: one.rows)
    least = min(FEWEST_ROWS, median(one.rows for one in groups) / 2)
    least = max(least, FEWEST_OF_A_DAY * largest.rows / largest.days)
    return [one for one in groups if one is largest or one.rows >= least]


def inside(span: Span, groups: Sequence[Span]) -> bool:
    """Say whether a span lies in one of the groups."""
    return any(group.first <= span.first and span.last <= group.last for group in groups)
