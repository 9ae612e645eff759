"""Two versions on the same rows, none of which either of them was fitted on.

Above `version`. Which rows are new to a version depends on which of its fits is asked. What serves
is new to rows later than its training set, or whose label became known after it. The fit that was
judged is new to the hold-out too; what it said there is kept. The fits that serve are compared
where there are rows for that, else the judged ones. The interval is the gates' own: paired, by
blocks of time (see `steadfeast.measures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.featurestore.errors import ErasedError, ManifestError, UserError
from steadfeast.featurestore.training import TrainingSet
from steadfeast.measures import Measure, MeasureError, OneClassError, compared, measures_of
from steadfeast.pipeline.gates import HeldOut
from steadfeast.pipeline.training import judged_by, new_to, split, times_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import pandas as pd

    from steadfeast.measures import Floats
    from steadfeast.pipeline.config import ModelConfig
    from steadfeast.pipeline.registry import LoadedModel
    from steadfeast.pipeline.reports.version import Described

TIME = "event_timestamp"
Fit = Literal["serving", "judged"]
Verdict = Literal["better", "worse", "undecided"]


class ComparisonError(UserError):
    """Two versions cannot be compared, with what would help."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of both versions, on the same rows.

    Attributes:
        metric: Its name.
        a: Of the first version.
        b: Of the second.
        difference: By how much the second is better; below 0 it is worse, whichever way the
            measure counts.
        low: Lower end of the difference's interval; None if the rows cannot tell.
        high: Upper end.
        verdict: `better` or `worse` is the second if the interval does not hold 0.
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two versions come to on the same rows.

    Attributes:
        rows: How many.
        blocks: Blocks of time that they fall into.
        start: Event time of the first.
        end: Of the last.
        fits: Which fit of each: `serving`, or `judged` where what serves has seen the rows.
        confidence: Of each interval by itself.
        measures: The task's, then those of the gates.
    """

    rows: int
    blocks: int
    start: datetime
    end: datetime
    fits: tuple[Fit, Fit]
    confidence: float
    measures: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """A version with what it takes to predict.

    Attributes:
        described: The version.
        model: The same, loaded.
        features: Its features for rows of the entities file, by the definitions that it was
            trained under.
    """

    described: Described
    model: LoadedModel
    features: Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True)
class _Chosen:
    rows: pa.Table
    fits: tuple[Fit, Fit]
    judged: tuple[Floats, Floats]


def compare(
    sides: tuple[Side, Side],
    bases: Iterable[pa.Table],
    config: ModelConfig,
    as_of: datetime,
    folder: Path,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two versions of one model on rows that are new to both.

    Args:
        sides: The two.
        bases: Rows to look among, as `examples` gives them; the first that have `min_rows` rows
            new to both are taken.
        config: How the model is retrained.
        as_of: What was known then: rows whose labels were not all known by it are left out.
        folder: Where measures of one's own are.
        confidence: Of each interval, between 0 and 1.

    Raises:
        ComparisonError: They predict different things, or too few rows are new to both.
    """
    a, b = sides
    target = b.model.facts.target
    if (a.model.facts.target.task, a.model.facts.target.label) != (target.task, target.label):
        raise ComparisonError(
            f"{a.described.title} predicts {_aim(a)}, {b.described.title} predicts {_aim(b)}: "
            "no measure is of both"
        )
    chosen = _choose(sides, bases, config, as_of)
    rows = chosen.rows
    said = [
        target.aligned(
            side.model.predict(_beside(rows, side.features(rows))) if fit == "serving" else judged,
            side.model.facts.target.classes,
        )
        for side, fit, judged in zip(sides, chosen.fits, chosen.judged, strict=True)
    ]
    table = _beside(rows, b.features(rows))
    keys = () if b.described.manifest is None else b.described.manifest.keys
    times = times_of(rows)
    held = HeldOut(table, target.sample(table, said[1]), times, tuple(keys))
    own = [judged_by(gate, folder).measure for gate in config.judged_by]
    measures = measures_of(target.task, *(one for one in own if one is not None))
    clusters = held.clusters()
    first, last = (times.min().item(), times.max().item())
    return Comparison(
        rows=len(held),
        blocks=len(np.unique(clusters[0])),
        start=first,
        end=last,
        fits=chosen.fits,
        confidence=confidence,
        measures=tuple(_measured(measures, held, said[0], clusters, confidence)),
    )


def _measured(
    measures: Sequence[Measure],
    held: HeldOut,
    theirs: Floats,
    clusters: Sequence[Any],
    confidence: float,
) -> Iterator[Difference]:
    for measure in measures:
        try:
            estimate = compared(measure, held.sample, theirs, clusters)
            a, b = measure.value(held.sample.predicting(theirs)), measure.value(held.sample)
        except (OneClassError, MeasureError):
            continue
        low, high = estimate.interval(confidence)
        verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
        yield Difference(measure.name, a, b, estimate.value, _finite(low), _finite(high), verdict)


def _choose(
    sides: tuple[Side, Side], bases: Iterable[pa.Table], config: ModelConfig, as_of: datetime
) -> _Chosen:
    """Return the rows that both can be judged on fairly, and by which fit of each."""
    most = 0
    for base in bases:
        if not base.num_rows:
            continue
        end = np.datetime64(split(base, config, as_of).end.replace(tzinfo=None), "us")
        rows = base.filter(pa.array(times_of(base) < end))
        serving = [new_to(rows, side.model.facts.as_of, side.model.facts.trained_before)
                   for side in sides]  # fmt: skip
        judged = [_judged(side, rows) for side in sides]
        options: dict[Fit, list[np.ndarray]] = {
            "serving": serving,
            "judged": [~np.isnan(_first(one)) for one in judged],
        }
        fits: tuple[Fit, Fit]
        for fits in (
            ("serving", "serving"),
            ("serving", "judged"),
            ("judged", "serving"),
            ("judged", "judged"),
        ):
            both = options[fits[0]][0] & options[fits[1]][1]
            most = max(most, int(both.sum()))
            if both.sum() >= config.min_rows:
                chosen = rows.filter(pa.array(both))
                return _Chosen(chosen, fits, (judged[0][both], judged[1][both]))
    a, b = (side.described.title for side in sides)
    raise ComparisonError(
        f"only {most} labelled rows are new to both {a} and {b}, and {config.min_rows} are needed "
        "(min_rows): wait for newer labels, or lower it"
    )


def _judged(side: Side, rows: pa.Table) -> Floats:
    """Return what the judged fit said of `rows` where it had not seen them; NaN elsewhere."""
    described = side.described
    classes = side.model.facts.target.classes
    nothing = np.full((rows.num_rows, len(classes)) if len(classes) > 2 else rows.num_rows, np.nan)  # noqa: PLR2004 - one score stands for two
    try:
        training = TrainingSet.load(described.manifest_path)
    except (ManifestError, ErasedError):
        return nothing
    if described.scored_path is None or not described.scored_path.is_file():
        return nothing
    scored = pq.read_table(described.scored_path)
    on = [name for name in (TIME, *training.manifest.keys) if name in rows.column_names]
    known, asked = _numbered(training.table, on), _numbered(rows, on)
    known["row"] = np.where(scored["held_out"].to_numpy(), np.arange(len(known)), -1)
    found = asked.merge(known, on=[*on, "nth"], how="left")["row"].fillna(-1).to_numpy(int)
    names = [f"prediction_{value}" for value in classes] if nothing.ndim > 1 else ["prediction"]
    columns = np.column_stack([scored[name].to_numpy() for name in names])
    said = np.where((found >= 0)[:, None], columns[found], np.nan)
    return said if nothing.ndim > 1 else said[:, 0]


def _numbered(table: pa.Table, on: list[str]) -> pd.DataFrame:
    """Return the columns `on`, and `nth`, which tells rows of the same values apart."""
    rows: pd.DataFrame = table.select(on).to_pandas()
    rows["nth"] = rows.groupby(on, dropna=False).cumcount()
    return rows


def _beside(rows: pa.Table, features: pa.Table) -> pa.Table:
    for name, column in zip(features.column_names, features.columns, strict=True):
        rows = rows.append_column(name, column)
    return rows


def _first(said: Floats) -> Floats:
    return said if said.ndim == 1 else said[:, 0]


def _aim(side: Side) -> str:
    target = side.model.facts.target
    return f"{target.label} ({target.task})"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
