"""How good the served predictions were, once their labels are known.

Above `steadfeast.measures` and `monitor.drift.data_quality`. Joins served predictions with
labels; a label counts only from its `known_at` on, so that a replay sees at each time what was
known then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from steadfeast.featurestore.served_log import damaged
from steadfeast.featurestore.tables import identifier
from steadfeast.measures import (
    HALF,
    Measure,
    MeasureError,
    OneClassError,
    Sample,
    Task,
    measure_named,
    measures_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from steadfeast.monitor.config import MonitorConfig, PerformanceConfig
    from steadfeast.monitor.profiles import Window

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Performance:
    """Metrics of one window.

    Attributes: metrics: By name of `steadfeast.measures`; those that the labels allow,
    so `roc_auc` only with both classes. labelled: Predictions whose label was known. positives:
    Labels that are 1 among them; None for a regressor. window: The window, by request time; its
    rows are the predictions, labelled or not. intervals: Ends of each metric's interval of 95
    %, where it has one.
    """

    metrics: Mapping[str, float]
    labelled: int
    positives: int | None
    window: Window
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def predictions(
    con: duckdb.DuckDBPyConnection,
    served_files: Sequence[Path],
    label_files: Sequence[Path],
    window: Window,
    as_of: datetime,
    *,
    model_version: str | None = None,
    columns: Sequence[str] = (),
) -> pa.Table:
    """Return what was predicted for the requests of `window`, one row a request, in a fixed order.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        served_files: Snapshots or served-log files that hold the window.
        label_files: Label files; of several labels for a request the latest known counts.
        window: By request time.
        as_of: Knowledge time.
        model_version: Only this version's predictions; None means all.
        columns: More columns of the served log to read; one that is not there is null.

    Returns:
        Columns `prediction`, `label` (null while unknown) and `columns`. A file that is gone or
        damaged has no rows; the log names a damaged one.
    """
    joined = partial(
        _joined, con, window=window, as_of=as_of, model_version=model_version, columns=columns
    )
    try:
        return joined(served_files, label_files)
    except duckdb.Error:
        whole = _whole((*served_files, *label_files))
        if len(whole) == len({*served_files, *label_files}):
            raise
    return joined(
        [one for one in served_files if one in whole], [one for one in label_files if one in whole]
    )


def _whole(files: Iterable[Path]) -> set[Path]:
    """Return the files that can be read; the log names those that are damaged."""
    there = {one for one in files if one.exists()}
    broken = damaged(there)
    for path, problem in broken.items():
        log.error("damaged_file_left_out", path=str(path), reason=problem)
    return there - set(broken)


def _joined(
    con: duckdb.DuckDBPyConnection,
    served_files: Sequence[Path],
    label_files: Sequence[Path],
    *,
    window: Window,
    as_of: datetime,
    model_version: str | None,
    columns: Sequence[str],
) -> pa.Table:
    """Do what `predictions` says of files that can all be read."""
    schema = [("prediction", pa.float64()), ("label", pa.float64())]
    blank = pa.schema([*schema, *((name, pa.string()) for name in columns)])
    if not served_files:
        return blank.empty_table()
    served = "read_parquet($served, union_by_name = true)"
    values: dict[str, Any] = {"served": sorted(map(str, served_files))}
    described = con.execute(f"DESCRIBE SELECT * FROM {served}", values).fetchall()
    there = {row[0] for row in described}
    if "prediction" not in there:
        return blank.empty_table()
    version = ""
    values |= {"start": window.start, "end": window.end}
    if model_version is not None:
        version = " AND model_version = $version"
        values["version"] = model_version
    quoted = [identifier(name) for name in columns]
    asked = "".join(
        f", arg_min({name}, request_time) AS {name}" if column in there else f", NULL AS {name}"
        for column, name in zip(columns, quoted, strict=True)
    )
    known = "SELECT NULL::VARCHAR AS request_id, NULL::DOUBLE AS label LIMIT 0"
    if label_files:
        values |= {"labels": sorted(map(str, label_files)), "as_of": as_of}
        known = """SELECT request_id, arg_max(label, known_at) AS label
            FROM read_parquet($labels, union_by_name = true)
            WHERE known_at <= $as_of AND label IS NOT NULL AND NOT isnan(label)
            GROUP BY request_id"""
    query = f"""
        WITH predicted AS (
            SELECT request_id, arg_min(prediction, request_time)::DOUBLE AS prediction{asked}
            FROM {served}
            WHERE request_time >= $start AND request_time < $end
              AND prediction IS NOT NULL AND NOT isnan(prediction){version}
            GROUP BY request_id
        ), known AS ({known})
        SELECT predicted.* EXCLUDE (request_id), label::DOUBLE AS label
        FROM predicted LEFT JOIN known USING (request_id)
        ORDER BY request_id"""  # sums of floats depend on the order
    return con.sql(query, params=values).to_arrow_table()


def judge(rows: pa.Table, window: Window, config: MonitorConfig) -> Performance | None:
    """Return the metrics of what `predictions` gave.

    Returns:
        None with fewer labels than asked for, or if `config.performance` is None.
    """
    if config.performance is None:
        return None
    usable = pc.and_(pc.is_valid(rows["prediction"]), pc.is_valid(rows["label"]))
    both = rows.select(["prediction", "label"]).filter(usable)
    if both.num_rows < config.performance.min_labels:
        return None
    prediction, truth = (both[name].to_numpy() for name in ("prediction", "label"))
    task, measures = figures_of(config.performance)
    columns = {
        name: rows[name].filter(usable).to_numpy(zero_copy_only=False)
        for name in measures[-1].columns
        if name in rows.column_names
    }
    metrics, intervals = measured(measures, Sample(truth, prediction, columns))
    positives = int((truth > HALF).sum()) if task is Task.BINARY else None
    whole = replace(window, rows=rows.num_rows)
    return Performance(metrics, both.num_rows, positives, whole, intervals)


def figures_of(config: PerformanceConfig) -> tuple[Task, tuple[Measure, ...]]:
    """Return a monitor's task and the measures of it, one of the user's own last.

    Raises:
        NotFoundError: There is no such measure.
        MeasureError: It cannot be used.
    """
    chosen = measure_named(config.metric)
    task = config.task
    if task is None:
        task = Task.BINARY if chosen.suits(Task.BINARY) else min(chosen.tasks)
    if not chosen.suits(task):
        known = ", ".join(one.name for one in measures_of(task))
        raise MeasureError(config.metric, f"is none of task {task}; these are: {known}")
    return task, measures_of(task, chosen)


def measured(
    measures: Sequence[Measure], sample: Sample
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Return each measure's value and interval; what these rows have no value for is left out."""
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for one in measures:
        try:
            with np.errstate(all="ignore"):
                value, ends = one.value(sample), one.ends(sample)
        except OneClassError:
            continue
        except (
            ValueError,
            ArithmeticError,
            MeasureError,
        ) as error:  # of a function of the user's own
            log.warning("measure_failed", measure=one.name, reason=str(error))
            continue
        if math.isfinite(value):
            values[one.name] = float(value)
            if all(map(math.isfinite, ends)):
                intervals[one.name] = (float(ends[0]), float(ends[1]))
    return values, intervals
