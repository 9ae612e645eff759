"""How good the served predictions were, once their labels are known.

Above `monitor.quality`. Joins served predictions with labels; a label counts only from its
`known_at` on, so that a replay sees at each time what was known then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import duckdb

    from monitor.config import MonitorConfig
    from monitor.profile import Window

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Performance:
    """Metrics of one window.

    Attributes:
        metrics: By name: `auc`, `accuracy`, `log_loss` (nats); `auc` only with both classes.
        labelled: Predictions whose label was known.
        positives: Labels that are 1 among them.
        window: The window, by request time; its rows are the predictions, labelled or not.
    """

    metrics: Mapping[str, float]
    labelled: int
    positives: int
    window: Window


def measure(
    con: duckdb.DuckDBPyConnection,
    served_files: Sequence[Path],
    label_files: Sequence[Path],
    window: Window,
    as_of: datetime,
    config: MonitorConfig,
    *,
    model_version: str | None = None,
) -> Performance | None:
    """Measure the predictions requested in `window` against the labels known by `as_of`.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        served_files: Snapshots or served-log files that hold the window.
        label_files: Label files; of several labels for a request the latest known counts.
        window: By request time.
        as_of: Knowledge time.
        config: The monitor; `performance.min_labels` is the least for a figure.
        model_version: Only this version's predictions; None means all.

    Returns:
        The metrics; None with fewer labels than asked for, or if `config.performance` is None.
    """
    if config.performance is None or not served_files:
        return None
    values: dict[str, Any] = {
        "served": sorted(map(str, served_files)),
        "start": window.start,
        "end": window.end,
    }
    version = ""
    if model_version is not None:
        version = " AND model_version = $version"
        values["version"] = model_version
    predicted = f"""
        SELECT request_id, arg_min(prediction, request_time) AS prediction
        FROM read_parquet($served, union_by_name = true)
        WHERE request_time >= $start AND request_time < $end
          AND prediction IS NOT NULL AND NOT isnan(prediction){version}
        GROUP BY request_id"""
    if not label_files:
        return None
    values |= {"labels": sorted(map(str, label_files)), "as_of": as_of}
    query = f"""
        WITH predicted AS ({predicted}), known AS (
            SELECT request_id, arg_max(label, known_at) AS label
            FROM read_parquet($labels, union_by_name = true)
            WHERE known_at <= $as_of AND label IS NOT NULL AND NOT isnan(label)
            GROUP BY request_id
        )
        SELECT prediction, label FROM predicted LEFT JOIN known USING (request_id)
        ORDER BY request_id"""  # sums of floats depend on the order
    table = con.sql(query, params=values).to_arrow_table()
    both = table.drop_null()
    if both.num_rows < config.performance.min_labels:
        return None
    prediction, label = (both[name].to_numpy() for name in ("prediction", "label"))
    truth = label > 0.5  # noqa: PLR2004 - a label is 0 or 1
    metrics = {"accuracy": accuracy(truth, prediction), "log_loss": log_loss(truth, prediction)}
    positives = int(truth.sum())
    if 0 < positives < len(truth):
        metrics["auc"] = auc(truth, prediction)
    return Performance(metrics, len(truth), positives, replace(window, rows=table.num_rows))


def auc(truth: npt.NDArray[np.bool_], prediction: Floats) -> float:
    """Return the area under the ROC curve, 0 to 1; ties count half. Needs both classes.

    Reference: Mann and Whitney (1947), Ann. Math. Statist. 18:50 (U, from ranks).
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    wins = rankdata(prediction)[truth].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def accuracy(truth: npt.NDArray[np.bool_], prediction: Floats) -> float:
    """Return the share of rows on the right side of one half, 0 to 1; one half counts as 1."""
    return float(np.mean((prediction >= 0.5) == truth))  # noqa: PLR2004


def log_loss(truth: npt.NDArray[np.bool_], prediction: Floats) -> float:
    """Return the mean negative log-likelihood in nats, from 0.

    Predictions are kept off 0 and 1 by the smallest relative step of a float64, so that one
    certain and wrong prediction costs 36 nats rather than everything.
    """
    step = float(np.finfo(np.float64).eps)
    certain = np.clip(prediction, step, 1 - step)
    return float(-np.mean(np.log(np.where(truth, certain, 1 - certain))))
