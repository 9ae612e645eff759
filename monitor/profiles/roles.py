"""What a column is, recognised on the reference: a feature, or what only looks like one.

Beside `derived`; `binning` asks before it cuts a column. An identifier, a counter that only grows,
or a month is far from its reference on every later day, and nothing has happened. Such a column is
left out by name, and watched by what makes sense of it: whether it is unique, how old it is,
whether it is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]

EXACT = 2**53
"""Whole numbers above it have neighbours that are the same as floats."""
FEW = 200
"""Distinct values up to which whole numbers may be codes."""
EMPTY_SHARE = 0.95
FEWEST = 100
"""Values from which on something can be recognised."""
_SAME = 0.99
"""Share of rows in which a column says the date for it to be part of the calendar."""
_MONOTONE, _FALLS, _RISES = 0.99, 0.002, 0.2
_TREND_DAYS, _TREND_SD, _TREND_FIT, _TREND_MEMORY = 14, 0.5, 0.9, 0.5
_BY_CHANCE = 20
"""Equal pairs to expect among as many random numbers of the range; then none is no chance."""
_DAY = 86_400_000_000
_NAMED = re.compile(r"(^|_)(id|uuid|guid|key|hash|no|number)$|[a-z]Id$|ID$")
_DATED = re.compile(r"(^|_)(year|quarter|month|week|day|date|yearmonth)($|_|of)", re.IGNORECASE)
_FORMATS = ("%Y-%m-%d", "%Y%m%d", "%Y-%m", "%Y%m", "%Y", "%B", "%b", "%d", "%m", "%d.%m.%Y")


class Role(StrEnum):
    """What a column is."""

    FEATURE = "feature"
    CONSTANT = "constant"
    EMPTY = "empty"
    IDENTIFIER = "identifier"
    GROWING = "growing"
    TIME = "time"
    CALENDAR = "calendar"
    TEXT = "text"
    EMBEDDING = "embedding"
    PARTS = "parts"
    UNWATCHED = "unwatched"


WATCHED_BY = {
    Role.FEATURE: "its values",
    Role.CONSTANT: "the share of rows with another value",
    Role.EMPTY: "the share of rows with a value",
    Role.IDENTIFIER: "whether it names one row each; its values are not compared",
    Role.GROWING: "whether it is there; its values grow by construction and are not compared",
    Role.TIME: "its age at the event time",
    Role.CALENDAR: "whether it is there; its values are the date's and are not compared",
    Role.TEXT: "its length and its pattern",
    Role.EMBEDDING: "its length, its norm and its distance from the reference's centre",
    Role.PARTS: "what is computed of it",
    Role.UNWATCHED: "whether it is there; values of this type cannot be compared",
}
LEFT_OUT = frozenset({Role.IDENTIFIER, Role.GROWING, Role.CALENDAR, Role.UNWATCHED})
"""Columns whose values are not compared."""


@dataclass(frozen=True, slots=True)
class WatchedColumn:
    """How one column is watched, for people.

    Attributes:
        name: Its name.
        role: What it is.
        watched_by: By what, in words.
        features: The features that are compared of it; empty where none is.
    """

    name: str
    role: Role
    watched_by: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known of the rows of a column.

    Attributes:
        micros: Event time of each row, microseconds since 1970; None where it is not known.
        entities: Number of each row's entity; None without keys.
    """

    micros: Integers | None = None
    entities: Integers | None = None


def number_role(name: str, column: Any, values: Floats, rows: Surroundings) -> Role:
    """Return what a column of numbers is.

    Args:
        name: Of the column.
        column: Array or chunked array with nulls.
        values: The values that are not null, as floats.
        rows: What is known of the rows, nulls included.
    """
    there = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    finite = np.isfinite(values)
    if len(column) >= FEWEST and finite.sum() <= (1 - EMPTY_SHARE) * len(column):
        return Role.EMPTY
    micros = None if rows.micros is None else rows.micros[there][finite]
    entities = None if rows.entities is None else rows.entities[there][finite]
    values, role = values[finite], Role.FEATURE
    constant = bool((values == values[:1]).all())
    if len(values) < FEWEST:
        return role
    if micros is not None and _calendar_number(name, values, micros, constant=constant):
        role = Role.CALENDAR
    elif constant:
        role = Role.CONSTANT
    elif _whole(column.type, values) and _identifies(name, column, values, micros):
        role = Role.IDENTIFIER
    elif micros is not None and _grows(values, micros, entities):
        role = Role.GROWING
    return role


def word_role(column: Any, distinct: int, rows: Surroundings) -> Role:
    """Return what a column of text is.

    Args:
        column: Array or chunked array without a dictionary.
        distinct: Different values in it.
        rows: What is known of the rows.
    """
    values = len(column) - column.null_count
    if len(column) < FEWEST:
        return Role.FEATURE
    if values <= (1 - EMPTY_SHARE) * len(column):
        return Role.EMPTY
    if rows.micros is not None and distinct > 1 and _calendar_text(column, rows.micros):
        return Role.CALENDAR
    if distinct == values and values >= FEWEST:
        spaced = pc.sum(pc.match_substring(column, " ")).as_py() or 0
        return Role.TEXT if spaced > values / 2 else Role.IDENTIFIER
    return Role.CONSTANT if distinct == 1 else Role.FEATURE


def exact_codes(column: Any) -> bool:
    """Say whether a column holds few whole numbers, too large to be told apart as floats."""
    kind = column.type
    whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    if not whole or column.null_count == len(column):
        return False
    ends = pc.min_max(column).as_py()
    return bool(max(abs(ends["min"]), abs(ends["max"])) > EXACT)


def _whole(kind: pa.DataType, values: Floats) -> bool:
    if pa.types.is_integer(kind):
        return True
    return bool((values == np.floor(values)).all()) and pa.types.is_decimal(kind)


def _identifies(name: str, column: Any, values: Floats, micros: Integers | None) -> bool:
    distinct = pc.count_distinct(column).as_py()
    if _NAMED.search(name) and distinct > FEW:
        return True
    if distinct < len(values):
        return False
    span = float(values.max() - values.min()) + 1
    many = len(values)
    return (
        max(abs(float(values.min())), abs(float(values.max()))) > EXACT
        or many * many / (2 * span) >= _BY_CHANCE
        or (micros is not None and float(spearmanr(values, micros).statistic) > _MONOTONE)
    )


def _grows(values: Floats, micros: Integers, entities: Integers | None) -> bool:
    """Say whether values only rise: over all rows, for each entity, or day by day."""
    if abs(float(spearmanr(values, micros).statistic)) > _MONOTONE:
        return True
    if entities is not None:
        order = np.lexsort((micros, entities))
        steps = np.diff(values[order])[np.diff(entities[order]) == 0]
        if len(steps) >= FEWEST and np.mean(steps < 0) <= _FALLS and np.mean(steps > 0) >= _RISES:
            return True
    days, numbers = np.unique(micros // _DAY, return_inverse=True)
    if len(days) < _TREND_DAYS:
        return False
    means = np.bincount(numbers, values) / np.bincount(numbers)
    slope, start = np.polyfit(days, means, 1)
    left = means - (slope * days + start)
    spread = float(values.std())
    rise = abs(slope) * float(days[-1] - days[0])
    fit = 1 - left.var() / means.var() if means.var() else 0.0
    memory = float(np.corrcoef(left[1:], left[:-1])[0, 1]) if left.std() else 0.0
    return rise > _TREND_SD * spread and fit > _TREND_FIT and memory < _TREND_MEMORY


def _calendar_number(name: str, values: Floats, micros: Integers, *, constant: bool) -> bool:
    """Say whether values are a part of the date that a few weeks do not go through.

    The hour and the weekday are no such part: a reference has all of them.
    """
    if constant and not _DATED.search(name):
        return False
    dates = pa.array(micros, pa.timestamp("us"))
    year, month = pc.year(dates), pc.month(dates)
    parts = (
        year,
        month,
        pc.quarter(dates),
        pc.iso_week(dates),
        pc.day(dates),
        pc.day_of_year(dates),
        pc.add(pc.multiply(year, 100), month),
        pc.add(pc.multiply(pc.add(pc.multiply(year, 100), month), 100), pc.day(dates)),
    )
    return any(np.mean(values == part.to_numpy(zero_copy_only=False)) >= _SAME for part in parts)


def _calendar_text(column: Any, micros: Integers) -> bool:
    sample = np.linspace(0, len(column) - 1, min(len(column), 200)).astype(int)
    texts = [column[int(i)].as_py() for i in sample]
    times = [datetime.fromtimestamp(int(micros[i]) / 1e6, UTC) for i in sample]
    pairs = [(text, at) for text, at in zip(texts, times, strict=True) if text is not None]
    return bool(pairs) and any(
        sum(text == at.strftime(form) for text, at in pairs) >= _SAME * len(pairs)
        for form in _FORMATS
    )
