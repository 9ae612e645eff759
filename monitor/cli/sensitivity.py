"""What a monitor's limits buy: the smallest changes that they would see. Below `cli`; pure.

From the calibration alone, no rows are needed: a shift adds its square to the squared distance
that a calm feature has anyway, and is over the limit half of the time when the sum is at it, nine
times in ten when it is one and a quarter of the feature's own deviations beyond. Checked by
simulation in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import special

from steadfeast.monitor.drift.shares import extended
from steadfeast.monitor.drift.thresholds import latest_length
from steadfeast.monitor.profiles.binning import ORDERED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from steadfeast.monitor.config.schema import MonitorConfig
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.drift.thresholds import Calibration
    from steadfeast.monitor.sources.source import Source

_NINE_IN_TEN = 1.2816
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What would be seen of one feature.

    Attributes:
        feature: Its name.
        kind: How it is profiled.
        statistic: What measures its distance.
        limit: For a window with as many rows as the reference's, in the statistic's unit; None
            where the reference is too short.
        floor: Least shift that is worth an alarm, in standard deviations.
        unit: Of the next two: "sd", a shift of a normal feature; or "share", of the rows that
            change their category.
        day: Smallest change that nine times in ten is over the limit in the first full last part
            of a window (a day of a week); None where there is no limit for that.
        week: Smallest change that nine times in ten opens an episode within a week.
        unseen: Smallest share of rows, all of a sudden beyond the reference's high tail or in
            categories that it lacks, that is over the limit at once; None where none is, as
            in weather, whose every week has brought such values.
        nulls: Smallest rise in the share of nulls, likewise.
    """

    feature: str
    kind: str
    statistic: str
    limit: float | None
    floor: float | None
    unit: str
    day: float | None
    week: float | None
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

    from steadfeast.monitor.drift.reference import build_reference
    from steadfeast.monitor.references.training_set import reference_from_stretch

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

    last = "a day" if latest_length(config) == timedelta(days=1) else str(latest_length(config))
    made = Table(title=f"{name}: {config.false_alarms_per_year:g} false alarms a year", box=None)
    for head in ("feature", "statistic"):
        made.add_column(head)
    for head in ("limit", "floor, sd", f"seen in {last}", "in a week", "new values", "nulls"):
        made.add_column(head, justify="right")
    for one in found:
        if one.limit is None:
            made.add_row(one.feature, one.statistic, "none", *[""] * 5)
            continue
        made.add_row(
            one.feature,
            one.statistic,
            f"{one.limit:.3g}",
            "" if one.floor is None else f"{one.floor:.2g}",
            _amount(one.day, one.unit),
            _amount(one.week, one.unit),
            _amount(one.unseen, "share"),
            _amount(one.nulls, "share"),
        )
    return made


def advice(found: Sequence[Sensitivity], config: MonitorConfig) -> str:
    """Say how to read the table and what to do next."""
    episode = config.episode
    text = (
        "A shift in sd, or the share of rows that change their category, that nine times in ten "
        f"is over the limit. An episode opens when {episode.k} of {episode.n} windows are over. "
        "For earlier alarms raise false_alarms_per_year; for a feature that sees too little, take "
        "a longer reference or a shorter bucket, or choose another statistic."
    )
    blind = [one.feature for one in found if one.limit is None]
    if blind:
        listed = ", ".join(blind)
        text += f"\nNo limit for {listed}: the reference has no values, or is too short."
    return text


def _of(reference: Reference, name: str, config: MonitorConfig) -> Sensitivity:
    edges = reference.edges.columns[name]
    window, latest = reference.calibration.get(name), reference.latest.get(name)
    ordered = edges.kind in ORDERED
    unit = "sd" if ordered else "share"
    if window is None:
        return Sensitivity(
            name, str(edges.kind), config.statistic, None, None, unit, None, None, None, None
        )
    # The k-th window that is over, at the latest a week after the change, holds this much of it.
    covered = min(1.0, max(0.0, (_WEEK - (config.episode.k - 1) * config.bucket) / config.window))
    weekly = [_seen(window, _NINE_IN_TEN) / covered] if covered else []
    if latest is not None:
        weekly.append(_seen(latest, 0.0))  # one look of two is enough among seven
    quick = latest or window
    counts = extended(reference.profile.columns[name])
    allowed = _allowed(quick, counts)
    bins = edges.bins
    return Sensitivity(
        feature=name,
        kind=str(edges.kind),
        statistic=window.statistic,
        limit=window.limit(window.rows),
        floor=window.floor,
        unit=unit,
        day=None if latest is None else _in(unit, _seen(latest, _NINE_IN_TEN)),
        week=_in(unit, min(weekly)) if weekly else None,
        unseen=_possible(
            allowed[bins + 1] if ordered and quick.looks.high < bins else allowed[bins - 1]
        ),
        nulls=_possible(allowed[-1]),
    )


def _seen(limits: Calibration, quantile: float) -> float:
    """Return the shift that is over the limit, in standard deviations."""
    at = limits.shift(limits.limit(limits.rows))
    half = math.sqrt(max(at**2 - limits.mean, 0.0))
    # No direction has a larger share of the squares than the root of the sum of their squares.
    largest = limits.varying / math.sqrt(limits.directions)
    return half + quantile * math.sqrt(limits.mean * largest)


def _allowed(limits: Calibration, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    looks = limits.looks
    bins, usable = len(counts) - 1, counts[:-1].sum()
    parts = np.array(
        [*counts[:-1], counts[: looks.low].sum(), counts[looks.high : bins].sum(), counts[-1]]
    )
    rows = np.full(bins + 3, usable, dtype=np.float64)
    rows[-1] = counts.sum()
    return looks.allowed(parts / rows, rows, np.full(bins + 3, limits.rows))


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
