"""A reference completed by what its model said: predictions, what they are worth, what they need.

Above `monitor.calibrate`. A training set does not say what the model predicts. The pipeline does,
by the file that `scored_uri` of a run names: the rows of the training set with `prediction`, and
with `held_out` where the model was not trained on the row. From all of them comes the reference of
the predictions themselves, watched like a feature from then on; from the held-out ones the
expected figures, the estimator of performance, and each feature's importance.

Known limit: of rows that it was trained on a model is surer than it will be. That shows far less
than weeks differ from each other (on the flights a PSI of .07 between the held-out week and the
others, which are apart by .02 to .34 among themselves), and a hold-out alone has too few weeks to
tell what is usual.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import featurestore
from featurestore.errors import UserError
from monitor.bins import Edges, edges_of
from monitor.calibrate import (
    PREDICTION,
    TIME,
    build_reference,
    by_bucket,
    read_columns,
    reference_of,
)
from monitor.estimate import fit
from monitor.measures import measures_for
from monitor.performance import measured
from monitor.profile import Profile
from monitor.segments import segmented
from monitor.statistics import statistic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import duckdb

    from monitor.calibrate import Reference
    from monitor.config import MonitorConfig
    from monitor.profile import ColumnProfile

HELD_OUT = "held_out"
IMPORTANCE = b"steadfeast.importance"


class ScoredError(UserError):
    """A file of scored rows cannot be used.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


def reference_from(
    con: duckdb.DuckDBPyConnection,
    manifest_path: Path,
    config: MonitorConfig,
    *,
    scored: Path | None = None,
    model_version: str = "",
    performance: Mapping[str, float] | None = None,
) -> Reference:
    """Build a reference of a training set and, if there are any, of its model's scored rows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        manifest_path: `manifest.json` of the training set.
        config: The monitor.
        scored: Parquet file of rows with `prediction`; None leaves out all that needs it.
        model_version: Version of the model that was trained on the training set.
        performance: That model's metrics on its hold-out, as the run tells them; what the run
            does not tell is measured on the scored rows.

    Raises:
        UserError: The training set or the scored rows cannot be used.
    """
    # The predictions share the budget of false alarms with the features.
    reference = build_reference(
        con,
        manifest_path,
        config,
        model_version=model_version,
        performance=performance,
        beside=0 if scored is None else 1,
    )
    data = manifest_path.with_name("data.parquet")
    if scored is None:
        return segmented(con, reference, data, config)
    label = featurestore.Manifest.load(manifest_path).label
    table = _read(scored, label)
    edges = edges_of(table, (PREDICTION,))
    in_order = read_columns(con, scored, (PREDICTION,), in_order=True)
    said = reference_of(
        list(by_bucket(in_order, edges, config.bucket)),
        edges,
        config,
        statistic(config.statistic),
        beside=len(reference.features),
    )
    merged = Edges({**reference.edges.columns, **edges.columns})
    expected: dict[str, float] = {}
    estimator = None
    if config.performance is not None:
        measures = measures_for(config.performance.metric)
        unseen = table.filter(table[HELD_OUT]) if HELD_OUT in table.column_names else table
        both = unseen.select([PREDICTION, "label"]).drop_null()
        if both.num_rows:
            truth, prediction = both["label"].to_numpy(), both[PREDICTION].to_numpy()
            expected, _ = measured(measures, truth, prediction)
        estimator = fit(unseen, merged, measures[0].task)
    # Scored rows may be too few to tell weekdays apart where the training set does.
    days = {i: one.columns for i, one in enumerate(said.weekdays if reference.weekdays else ())}
    no_columns: Mapping[str, ColumnProfile] = {}
    whole = replace(
        reference,
        edges=merged,
        profile=Profile(
            merged,
            reference.profile.rows,
            {**reference.profile.columns, **said.profile.columns},
            {**reference.profile.types, **said.profile.types},
        ),
        thresholds={**reference.thresholds, **said.thresholds},
        calibration={**reference.calibration, **said.calibration},
        latest={**reference.latest, **(said.latest if days or not said.weekdays else {})},
        weekdays=tuple(
            Profile(merged, one.rows, {**one.columns, **days.get(i, no_columns)}, one.types)
            for i, one in enumerate(reference.weekdays)
        ),
        performance={**expected, **reference.performance},
        scored_uri=str(scored),
        importance=_importance(scored),
        estimator=estimator,
    )
    return segmented(con, whole, data, config)


def own(batches: Iterable[pa.RecordBatch], model_version: str) -> Iterator[pa.RecordBatch]:
    """Yield rows of the served log, with a prediction only where this version made it.

    After a promotion a window holds what two models said. What the former one said is neither
    null nor drift: the rows are given without that column.
    """
    for batch in batches:
        names = batch.schema.names
        if not model_version or PREDICTION not in names or "model_version" not in names:
            yield batch
            continue
        mine = pc.fill_null(pc.equal(batch.column("model_version"), model_version), False)
        if pc.all(mine).as_py() is not False:
            yield batch
            continue
        yield batch.filter(mine)
        yield batch.filter(pc.invert(mine)).drop_columns([PREDICTION])


def _read(path: Path, label: str | None) -> pa.Table:
    """Return the scored rows, with the label as `label`."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ScoredError(path, f"cannot be read as Parquet: {error}") from error
    missing = [name for name in (TIME, PREDICTION) if name not in table.column_names]
    if HELD_OUT in table.column_names and table.schema.field(HELD_OUT).type != pa.bool_():
        raise ScoredError(path, f"{HELD_OUT} is {table.schema.field(HELD_OUT).type}, not bool")
    if missing or not table.num_rows:
        what = f"no column {' and '.join(missing)}" if missing else "no rows"
        raise ScoredError(path, f"has {what}")
    prediction = table[PREDICTION].cast(pa.float64())
    known = pa.nulls(table.num_rows, pa.float64())
    if label is not None and label in table.column_names:
        known = table[label].cast(pa.float64())
        if label != "label":
            table = table.drop_columns([label])
    kept = table.drop_columns(
        [name for name in (PREDICTION, "label") if name in table.column_names]
    )
    return kept.append_column(PREDICTION, prediction).append_column("label", known)


def _importance(path: Path) -> dict[str, float]:
    """Return what the file says of each feature's importance; empty when it says nothing."""
    text = (pq.read_schema(path).metadata or {}).get(IMPORTANCE)
    if text is None:
        return {}
    try:
        found = {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ScoredError(path, f"{IMPORTANCE.decode()} is no object of numbers") from error
    if not all(math.isfinite(value) and value >= 0 for value in found.values()):
        raise ScoredError(path, f"{IMPORTANCE.decode()} holds a number below 0, or none")
    return found
