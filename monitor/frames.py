"""Two data frames compared as the monitor compares a window with its reference.

Above `drift`. The same profiles, statistics and calibration as the daemon's, on what is in memory;
nothing is stored. Limits come from how the reference's own days differ from each other, so they
need to know when each row was. Without that, distances are given and no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from steadfeast.featurestore import notebook
from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.config import MonitorConfig
from steadfeast.monitor.drift import (
    Level,
    by_bucket,
    detect,
    distances_alone,
    reference_of,
    statistic,
)
from steadfeast.monitor.profiles import EVENT_TIMES, Profile, Window, edges_of, profile, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from steadfeast.monitor.drift import Reference, Verdict

_AT = EVENT_TIMES[0]
_DAY = timedelta(days=1)


class FramesError(UserError):
    """Two data frames cannot be compared, with what would help."""


@dataclass(frozen=True, slots=True)
class DriftReport:
    """How far the columns of one data frame are from those of another.

    Attributes:
        verdicts: One per feature, the worst first, as the monitor gives them. Where nothing could
            be calibrated `threshold` is None and `level` is `insufficient_data`.
        calibrated: Whether limits are known.
        rows: Of the reference, and of what is compared with it.
        days: Days over their own limit, and days judged, per feature; empty without limits.
        notes: What is not known or not compared, one sentence each.
    """

    verdicts: tuple[Verdict, ...]
    calibrated: bool
    rows: tuple[int, int]
    days: dict[str, tuple[int, int]]
    notes: tuple[str, ...]

    @property
    def drifted(self) -> tuple[str, ...]:
        """The features beyond their limits; none where limits are not known."""
        return tuple(one.feature for one in self.verdicts if one.level is Level.DRIFT)

    def to_pandas(self) -> pd.DataFrame:
        """Return a row per feature: statistic, value, threshold, level, days over and judged."""
        import pandas as pd  # noqa: PLC0415 - slow to import, and not needed by the daemon

        return pd.DataFrame([self._row(one) for one in self.verdicts])

    def __repr__(self) -> str:
        """Say what drifted in one line."""
        return notebook.line("DriftReport", *self._facts())

    def _repr_html_(self) -> str:
        rows = [list(self._row(one).values()) for one in self.verdicts]
        heads = list(self._row(self.verdicts[0])) if self.verdicts else []
        tables = [notebook.table(heads, rows)] if rows else []
        if self.notes:
            tables.append(notebook.whole_lines(self.notes))
        return notebook.card("Drift report", self._facts(), *tables)

    def _facts(self) -> list[str]:
        drifted = self.drifted
        said = "limits are not known"
        if self.calibrated:
            said = f"{len(drifted)} of {notebook.plural(len(self.verdicts), 'feature')} drifted"
        before, now = self.rows
        names = notebook.first(drifted) if drifted else ""
        return [said, names, f"{before:,} reference rows", f"{now:,} current rows"]

    def _row(self, one: Verdict) -> dict[str, Any]:
        over, judged = self.days.get(one.feature, (None, None))
        level = one.level.value
        if one.level is Level.INSUFFICIENT_DATA and one.value is not None:
            level = "unknown"
        return {
            "feature": one.feature,
            "verdict": level,
            "statistic": one.statistic,
            "value": one.value,
            "limit": one.threshold,
            "days over": over,
            "days judged": judged,
            "what": one.reason,
        }


def compare(
    reference: Any,
    current: Any,
    *,
    time: str | None = None,
    columns: Sequence[str] | None = None,
    keys: Sequence[str] = (),
    personal: Sequence[str] = (),
    statistic: str = "psi",
    min_rows: int = 200,
    false_alarms_per_year: float = 4,
) -> DriftReport:
    """Compare two data frames, column by column, and say what drifted.

    Args:
        reference: What is usual: a pandas or Polars data frame, or an Arrow table.
        current: What is compared with it.
        time: Column with the time of each row, in both; without a zone it is UTC. With it the
            limits are calibrated on the reference's own days, of which it needs four and should
            have many; without it only distances are given.
        columns: Which to compare; all of the reference's when absent, but `time` and `keys`.
        keys: Columns that name entities.
        personal: Columns whose values are somebody's, so that none is shown.
        statistic: Name of the distance; see `monitor.statistic` in the configuration.
        min_rows: Rows with a value that a comparison needs.
        false_alarms_per_year: That the limits allow, of days judged one by one, over all columns.

    Raises:
        FramesError: One of the two is empty or no table, or `time` is no time.
        NotFoundError: A column or the statistic does not exist.

    Example:
        steadfeast.compare(january, february, time="event_timestamp")
    """
    before, after = _table(reference, "reference"), _table(current, "current")
    names = _columns(before, columns, time, (*keys, *personal), keys)
    config = _config(statistic, min_rows, false_alarms_per_year)
    if time is not None:
        before, after = _by_time(before, time, "reference"), _by_time(after, time, "current")
    edges = edges_of(before, names, personal, keys=keys)
    notes = _notes(before, after, edges.columns, names)
    if time is None:
        found = reference_of([(EPOCH, profile(before.to_batches(), edges))], edges, config)
        notes.append(
            "Limits are not known without the time of each row: how far ordinary days lie from "
            "each other cannot be seen. Name the column: compare(..., time=...)."
        )
        window = Window(EPOCH, EPOCH + _DAY, after.num_rows)
        verdicts = distances_alone(found, profile(after.to_batches(), edges), window, config)
        return _report(verdicts, found, after, {}, notes)
    found = reference_of(list(by_bucket(before.to_batches(), edges, _DAY)), edges, config)
    daily = list(by_bucket(after.to_batches(), edges, _DAY))
    window = Window(daily[0][0], daily[-1][0] + _DAY, after.num_rows)
    whole = total((one for _, one in daily), edges)
    if window.start < found.window.end and found.window.start < window.end:
        notes.append("The two overlap in time: what both hold cannot drift.")
    if not found.thresholds:
        notes.append(
            "Limits are not known: the reference spans too few days to see how far ordinary days "
            "lie from each other; it needs four, and should have many."
        )
        verdicts = distances_alone(found, whole, window, config)
        return _report(verdicts, found, after, {}, notes)
    # An empty last day, so that what is judged is the whole window, by the calendar of its days.
    last = (daily[-1][0], Profile.empty(edges))
    verdicts = detect(found, whole, window, config, bucket=last)
    return _report(verdicts, found, after, _days(found, daily, config), notes)


def _report(
    verdicts: Sequence[Verdict],
    reference: Reference,
    after: pa.Table,
    days: dict[str, tuple[int, int]],
    notes: Sequence[str],
) -> DriftReport:
    rows = (reference.profile.rows, after.num_rows)
    calibrated = any(one.threshold is not None for one in verdicts)
    kept = [one for one in verdicts if reference.edges.columns[one.feature].bins]
    return DriftReport(tuple(kept), calibrated, rows, days, tuple(notes))


def _days(
    reference: Reference, daily: Sequence[tuple[Any, Profile]], config: MonitorConfig
) -> dict[str, tuple[int, int]]:
    """Return feature -> days over the limit, and days judged, each by itself."""
    found: dict[str, tuple[int, int]] = {}
    for start, one in daily:
        window = Window(start, start + _DAY, one.rows)
        for verdict in detect(reference, one, window, config, bucket=(start, one)):
            over, judged = found.get(verdict.feature, (0, 0))
            is_judged = verdict.level is not Level.INSUFFICIENT_DATA
            found[verdict.feature] = (over + (verdict.level is Level.DRIFT), judged + is_judged)
    return found


def _notes(before: pa.Table, after: pa.Table, watched: Any, names: Sequence[str]) -> list[str]:
    notes = []
    gone = [name for name in names if name not in after.column_names]
    new = [name for name in after.column_names if name not in before.column_names]
    apart = [
        name for name in names if name in watched and not watched[name].bins and name not in gone
    ]
    for which, what in (
        (gone, "Not in the current rows"),
        (new, "Not in the reference, so not compared"),
        (apart, "Not compared as they stand (identifiers, growing by construction, or no values)"),
    ):
        if which:
            notes.append(f"{what}: {', '.join(which)}.")
    return notes


def _table(given: Any, what: str) -> pa.Table:
    """Return a data frame as an Arrow table."""
    table = given
    if not isinstance(given, pa.Table):
        try:
            if hasattr(given, "iloc"):  # pandas, whose index is no column
                table = pa.Table.from_pandas(given, preserve_index=False)
            else:
                table = pa.table(given)
        except (TypeError, ValueError, pa.ArrowException) as error:
            kind = type(given).__name__
            raise FramesError(f"{what} ({kind}) is no table: {error}") from error
    if not table.num_rows:
        raise FramesError(f"{what} has no rows")
    return table


def _columns(
    table: pa.Table,
    columns: Sequence[str] | None,
    time: str | None,
    named: Sequence[str],
    keys: Sequence[str],
) -> list[str]:
    for name in (*(columns or ()), *named):
        if name not in table.column_names:
            raise NotFoundError("column of the reference", name, table.column_names)
    if columns is not None:
        return list(columns)
    return [name for name in table.column_names if name != time and name not in keys]


def _by_time(table: pa.Table, time: str, what: str) -> pa.Table:
    """Return rows in the order of time, with it in the column that the monitor reads."""
    if time not in table.column_names:
        raise NotFoundError(f"column of {what}", time, table.column_names)
    column = table.column(time)
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise FramesError(
            f"column {time} of {what} is {column.type}, not a time; convert it, as with "
            "pandas.to_datetime(..., utc=True)"
        )
    if column.null_count:
        raise FramesError(f"column {time} of {what} is null in {column.null_count} rows")
    stamps = column.cast(pa.timestamp("us"), safe=False) if column.type != _UTC else column
    table = table.append_column(_AT, stamps.cast(_UTC))
    return table.take(pc.sort_indices(table, sort_keys=[(_AT, "ascending")]))


_UTC = pa.timestamp("us", tz="UTC")


def _config(name: str, min_rows: int, false_alarms_per_year: float) -> MonitorConfig:
    """Return the configuration of a monitor that would look at the same."""
    statistic(name)
    try:
        return MonitorConfig.model_validate(
            {
                "source": {"files": "frames", "timestamp": "time"},
                "reference": {"from": "1970-01-01", "to": "1970-01-02"},
                "statistic": name,
                "min_rows": min_rows,
                "false_alarms_per_year": false_alarms_per_year,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise FramesError(f"{field}: {first['msg']}") from error
