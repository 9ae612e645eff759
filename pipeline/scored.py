"""What a model said about rows that it was not trained on, kept for whoever watches it.

Above `validate`. One Parquet file a run: the held-out rows of the training set with a column
`prediction`, and in the file's metadata how much the model leans on each feature. The monitor
reads it by the run's `scored_uri`: it is what predictions look like when nothing has drifted,
what calibrates the estimate of performance before labels are in, and what ranks a drift.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.recipe import scores
from pipeline.validate import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

PREDICTION = "prediction"
IMPORTANCE = b"steadfeast.importance"
LOWER_IS_BETTER = frozenset({"log_loss"})
MOST_ROWS = 4_000
SHUFFLES = 2


def importance(
    estimator: Any, table: pa.Table, features: Sequence[str], label: str, metric: str
) -> dict[str, float]:
    """Return by how much `metric` gets worse when a feature's values are shuffled, per feature.

    0 where it does not get worse. Correlated features stand in for each other, so each may look
    less important than both are together. At most `MOST_ROWS` evenly spread rows are looked at;
    seeded by nothing but a constant.

    Reference: Breiman (2001), Mach. Learn. 45:5, sec. 10.

    Args:
        estimator: Fitted, with `predict_proba`.
        table: Rows that it was not trained on, with both classes.
        features: The columns that it reads.
        label: The column that holds 0 or 1.
        metric: A name of `validate.metrics`.
    """
    step = -(-table.num_rows // MOST_ROWS)
    rows = table.take(pa.array(range(0, table.num_rows, max(step, 1)), pa.int64()))
    truth = rows.column(label).cast(pa.float64()).to_numpy().astype(int)
    if len(np.unique(truth)) < 2:  # noqa: PLR2004 - both classes, or there is no figure
        return {}
    rng = np.random.default_rng(0)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0

    def figure(given: pa.Table) -> float:
        return sign * metrics(truth, scores(estimator, given, features))[metric]

    whole = figure(rows)
    found = {}
    for name in features:
        place, column = rows.column_names.index(name), rows.column(name)
        worse = [
            whole
            - figure(
                rows.set_column(place, name, column.take(pa.array(rng.permutation(len(column)))))
            )
            for _ in range(SHUFFLES)
        ]
        found[name] = max(0.0, float(np.mean(worse)))
    return found


def write(
    path: Path, held_out: pa.Table, predictions: np.ndarray, important: Mapping[str, float]
) -> None:
    """Write the held-out rows with their predictions, by rename; again changes nothing."""
    table = held_out.append_column(PREDICTION, pa.array(predictions, pa.float64()))
    table = table.replace_schema_metadata({IMPORTANCE: json.dumps(dict(important)).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(table, aside, compression="zstd")
    aside.rename(path)
