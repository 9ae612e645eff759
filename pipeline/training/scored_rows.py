"""What a model said about its training set, kept for whoever watches it.

Above `challenge`. One Parquet file a run: of each row of the training set its time, its label, a
column `prediction`, and a column `held_out` that is true if the model was not trained on the row;
in the file's metadata stands how much the model leans on each feature. The monitor reads it by the
run's `scored_uri`. All rows together are what predictions look like week by week when nothing has
drifted; the held-out ones alone say what the predictions are worth. Neither needs to know whose
row it is or what its features were, so no key and no feature is written: what a person has erased
from the training set is not kept here in another form.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.measures import OneClassError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from steadfeast.measures import Measure
    from steadfeast.pipeline.training.challenge import Model

PREDICTION, HELD_OUT = "prediction", "held_out"
IMPORTANCE = b"steadfeast.importance"
MOST_ROWS = 4_000
SHUFFLES = 2


def importance(model: Model, table: pa.Table, measure: Measure) -> dict[str, float]:
    """Return by how much a measure gets worse when a feature's values are shuffled, per feature.

    0 where it does not get worse. Correlated features stand in for each other, so each may look
    less important than both are together. At most `MOST_ROWS` evenly spread rows are looked at;
    seeded by nothing but a constant.

    Args:
        model: Fitted.
        table: Rows that it was not fitted on.
        measure: What is to get worse.

    Reference: Breiman (2001), Mach. Learn. 45:5, sec. 10.
    """
    step = -(-table.num_rows // MOST_ROWS)
    rows = table.take(pa.array(range(0, table.num_rows, max(step, 1)), pa.int64()))
    rng = np.random.default_rng(0)

    def figure(shuffled: pa.Table) -> float:
        return measure.value(model.target.sample(rows, model.predict(shuffled)))

    try:
        whole = figure(rows)
    except OneClassError:
        return {}
    important = {}
    for name in model.features:
        place, column = rows.column_names.index(name), rows.column(name)
        worse = []
        for _ in range(SHUFFLES):
            shuffled = column.take(pa.array(rng.permutation(len(column))))
            worse.append(measure.drop(whole, figure(rows.set_column(place, name, shuffled))))
        important[name] = max(0.0, float(np.mean(worse)))
    return important


def columns_of(predictions: np.ndarray, classes: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return predictions as columns: a value, or the class by its place and a score per class."""
    if predictions.ndim == 1:
        return {PREDICTION: predictions}
    columns = {PREDICTION: predictions.argmax(axis=1).astype(np.float64)}
    for place, value in enumerate(classes):
        columns[f"{PREDICTION}_{value}"] = predictions[:, place]
    return columns


def write(
    path: Path,
    table: pa.Table,
    predictions: np.ndarray,
    classes: Sequence[Any],
    held_out: np.ndarray,
    important: Mapping[str, float],
) -> None:
    """Write what was said of a training set, by rename; again changes nothing.

    Args:
        path: The file.
        table: Time and label of the training set's rows, and nothing else of them.
        predictions: Of each row, as `steadfeast.measures` reads them.
        classes: What they mean; see `Target.classes`.
        held_out: Whether the model was not trained on the row, shape (rows,).
        important: Of `importance`.
    """
    kept = table
    for name, values in columns_of(predictions, classes).items():
        kept = kept.append_column(name, pa.array(values, pa.float64()))
    kept = kept.append_column(HELD_OUT, pa.array(held_out, pa.bool_()))
    kept = kept.replace_schema_metadata({IMPORTANCE: json.dumps(dict(important)).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(kept, aside, compression="zstd")
    aside.rename(path)
