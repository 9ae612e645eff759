"""Broken data: what must stop a retraining rather than start one.

Above `monitor.detect`. Nulls, columns, ages and volumes; no distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import duckdb

    from monitor.calibrate import Reference
    from monitor.config import MonitorConfig
    from monitor.profile import Profile, Window
    from monitor.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Figures:
    """Plain figures of one column in one window.

    Attributes:
        feature: Name of the column.
        rows: Rows in which it was there.
        nulls: Nulls.
        null_share: 0 to 1; None without rows.
        nans: NaN; not nulls.
        infinities: Infinite values.
        mistyped: Rows of a type that cannot be compared with the reference.
        unseen: Rows with a category, or a value outside the range, that the reference lacks.
        minimum: Smallest finite value; None without one.
        maximum: Largest finite value.
        mean: Of the finite values; None without one.
        sd: Standard deviation of the finite values.
    """

    feature: str
    rows: int
    nulls: int
    null_share: float | None
    nans: int
    infinities: int
    mistyped: int
    unseen: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    sd: float | None


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old one feature view's values were when they were served.

    Attributes:
        view: Name of the feature view.
        latest: Latest event timestamp among the values; None if there was no value.
        median_age_seconds: Median age at request time; a request that found nothing counts as
            infinitely old. None when more than half found nothing.
    """

    view: str
    latest: datetime | None
    median_age_seconds: float | None


class IncidentKind(StrEnum):
    """What is broken."""

    NULL_BURST = "null_burst"
    STALE = "stale"
    SCHEMA = "schema"
    MISSING_DATA = "missing_data"


@dataclass(frozen=True, slots=True)
class Incident:
    """One thing that is broken in one window.

    Attributes:
        kind: What.
        subject: The feature, the feature view, or the feature service.
        value: What was measured: a share, seconds, rows. None where nothing could be.
        limit: What it was compared with, in the same unit.
        summary: One line for a person.
    """

    kind: IncidentKind
    subject: str
    value: float | None
    limit: float
    summary: str


def figures(profile: Profile) -> list[Figures]:
    """Return the figures of every watched column, in the profile's order."""
    raise NotImplementedError


def freshness(con: duckdb.DuckDBPyConnection, snapshot: Snapshot) -> list[Freshness]:
    """Measure every feature view of a snapshot from its `<view>__event_timestamp` column."""
    raise NotImplementedError


def incidents(
    reference: Reference | None,
    current: Profile,
    freshness: Sequence[Freshness],
    config: MonitorConfig,
    window: Window,
) -> list[Incident]:
    """Say what is broken in `current`; an empty list is good news.

    Meant for the newest bucket rather than the whole window: a day without values is an
    incident that day, not once it has filled a week.
    """
    raise NotImplementedError
