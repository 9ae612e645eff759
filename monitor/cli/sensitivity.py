"""What a monitor's limits buy: the smallest changes that they would see. Below `cli`; pure.

From the limits alone, no rows are needed: a shift is beyond its limit half of the time when it is
at it, and nine times in ten when it is one and a quarter of what days and counting add beyond.
Checked by simulation in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from steadfeast.monitor.drift import NAMES, extended, parts, shares_of
from steadfeast.monitor.profiles import ORDERED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Reference
    from steadfeast.monitor.sources import Source

_NINE_IN_TEN = 1.2816
_WIDE, _NAMED = 1.5, 8


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What would be seen of one feature.

    Attributes:
        feature: Its name.
        kind: How it is profiled.
        statistic: What measures its distance.
        limit: For a bucket with as many rows as the reference's, in standard deviations; None where
            the reference is too short.
        usual: How far the reference's own buckets went, likewise.
        memory: Correlation of one bucket with the next, 0 to 1.
        unit: Of the next two: "sd", a shift of a normal feature; or "share", of the rows that
            change their category.
        smallest: Smallest lasting change that nine times in ten is told within a week, or within
            seven buckets of more than a day.
        at_once: Smallest change that is told after a single bucket.
        unseen: Smallest share of rows, all of a sudden beyond the reference's high tail or in
            categories that it lacks, that is beyond its limit; None where none is, as in weather,
            whose every week has brought such values.
        nulls: Smallest rise in the share of nulls, likewise.
    """

    feature: str
    kind: str
    statistic: str
    limit: float | None
    usual: float | None
    memory: float | None
    unit: str
    smallest: float | None
    at_once: float | None
    unseen: float | None
    nulls: float | None


def measured(
    reference: Path | Source, config: MonitorConfig, name: str, *, quiet: bool
) -> list[Sensitivity]:
    """Calibrate, with a progress bar on a terminal, and say what it buys.

    Args:
        reference: Manifest of a training set; or the source whose stretch `config` names.
        config: The monitor.
        name: Its name.
        quiet: Draw nothing.

    Raises:
        UserError: See `build_reference` and `reference_from_stretch`.
    """
    import duckdb
    from rich.console import Console
    from rich.progress import Progress

    from steadfeast.monitor.drift import build_reference
    from steadfeast.monitor.references import reference_from_stretch

    with (
        duckdb.connect() as con,
        Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar,
    ):
        what = reference.parent.name if isinstance(reference, Path) else config.subject
        task = bar.add_task(f"{name}: reading {what}", total=None)

        def tell(done: int, many: int) -> None:
            bar.update(task, description=f"{name}: calibrating", completed=done, total=many)

        con.execute("SET enable_progress_bar = false")  # one bar is enough
        if isinstance(reference, Path):
            found = build_reference(con, reference, config, tell=tell)
        else:
            found = reference_from_stretch(con, reference, config, tell=tell)
    return sensitivities(found, config)


def sensitivities(reference: Reference, config: MonitorConfig) -> list[Sensitivity]:
    """Return what each feature's limits would see, in the reference's order."""
    return [_of(reference, name, config) for name in reference.features]


def table(found: Sequence[Sensitivity], name: str, config: MonitorConfig) -> Table:
    """Return them as a table for a terminal."""
    from rich.table import Table

    title = (
        f"{name}: {config.false_alarms_per_year:g} false notifications a year, "
        f"{config.false_alarm_days_per_year:g} days with a false alarm standing"
    )
    made = Table(title=title, box=None)
    for head in ("feature", "statistic"):
        made.add_column(head)
    for head in (
        *("usual, sd", "limit, sd", "memory"),
        *("smallest change seen", "told at once", "new values", "nulls"),
    ):
        made.add_column(head, justify="right")
    for one in found:
        if one.limit is None:
            made.add_row(one.feature, one.statistic, "", "none", *[""] * 5)
            continue
        made.add_row(
            one.feature,
            one.statistic,
            f"{one.usual:.2g}",
            f"{one.limit:.2g}",
            f"{one.memory:.2f}",
            _amount(one.smallest, one.unit),
            _amount(one.at_once, one.unit),
            _amount(one.unseen, "share"),
            _amount(one.nulls, "share"),
        )
    return made


def advice(found: Sequence[Sensitivity], config: MonitorConfig) -> str:
    """Say how to read the table and what to do next."""
    text = (
        "A lasting shift in sd, or the share of rows that change their category, that nine times "
        "in ten is told within a week: when 4 of the last 5 buckets are beyond the limit on one "
        f"side. Less than {config.smallest_change:g} sd is never drift: smallest_change says so."
    )
    short = [
        one.feature
        for one in found
        if one.limit is not None and one.limit > _WIDE * config.smallest_change
    ]
    if short:
        text += (
            f"\nLimits of {_listed(short)} are wider, because days remember the day before: in "
            "so few days slow wandering looks like drift. A longer reference narrows them, and "
            "so does a calendar that explains what differs."
        )
    blind = [one.feature for one in found if one.limit is None]
    if blind:
        text += f"\nNo limit for {_listed(blind)}: the reference has no values, or is too short."
    return text


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _of(reference: Reference, name: str, config: MonitorConfig) -> Sensitivity:
    edges, threshold = reference.edges.columns[name], reference.thresholds.get(name)
    unit = "sd" if edges.kind in ORDERED else "share"
    if threshold is None:
        nothing = [None] * 4
        return Sensitivity(
            name, str(edges.kind), config.statistic, None, None, None, unit, *nothing
        )
    counts = extended(reference.profile.columns[name])
    start = reference.window.end
    _, likes = reference.usual(name, (start,), config)
    limit = threshold.limit(threshold.rows, likes)
    sampling = 1 / threshold.rows + 1 / likes
    half = math.sqrt(max(limit**2 - threshold.counting * sampling / 2, 0.0))
    smallest = half + _NINE_IN_TEN * math.sqrt(threshold.by_distance.spread**2 + sampling)
    shares, bins = threshold.shares, edges.bins
    rows = np.full(bins + len(NAMES), threshold.rows)
    allowed = shares.allowed(parts(shares_of(counts), shares.ends), likes, rows)
    tail = edges.kind in ORDERED and shares.ends.high < bins
    return Sensitivity(
        feature=name,
        kind=str(edges.kind),
        statistic=threshold.statistic,
        limit=limit,
        usual=threshold.by_distance.farthest,
        memory=threshold.memory,
        unit=unit,
        smallest=_in(unit, smallest),
        at_once=_in(unit, threshold.decisive(limit, threshold.by_distance)),
        unseen=_possible(allowed[bins + 1] if tail else allowed[bins - 1]),
        nulls=_possible(allowed[-1]),
    )


def _in(unit: str, shift: float) -> float:
    """Return a shift as it is, or as the share of a normal feature's rows that it moves."""
    return shift if unit == "sd" else float(2 * special.ndtr(shift / 2) - 1)


def _possible(share: float) -> float | None:
    """Return a share of rows; None where more than all of them would have to change."""
    return float(share) if share < 1 else None


def _amount(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.2g} sd" if unit == "sd" else f"{100 * value:.2g} %"
