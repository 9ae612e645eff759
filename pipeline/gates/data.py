"""Gates of the data: what must hold of the examples before a model is fitted on them.

Above `gate`. Tables in, gates out; no I/O, clock or globals. Every gate is judged and reported,
also after one has failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.pipeline.gates.gate import Gate
from steadfeast.pipeline.recipes import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.pipeline.config import ModelConfig
    from steadfeast.pipeline.recipes import Target

_TWO = 2


def data_gates(
    train: pa.Table,
    holdout: pa.Table,
    features: Sequence[str],
    target: Target,
    config: ModelConfig,
    setting: str,
) -> list[Gate]:
    """Judge the examples: enough of them, with labels that differ and features that say anything.

    Args:
        train: Rows that the judged model is to be fitted on.
        holdout: Rows that it is to be judged on.
        features: Columns of both that the service gives.
        target: What is predicted.
        config: How the model is retrained.
        setting: In words, which stretch is held out and what would fill it.
    """
    enough = holdout.num_rows >= config.min_rows
    detail = f"{holdout.num_rows} labelled rows held out, {train.num_rows} to train on"
    gates = [
        Gate(
            "holdout_rows",
            enough,
            holdout.num_rows,
            config.min_rows,
            detail if enough else f"{detail}; {setting}",
        )
    ]
    for part, table in (("train", train), ("holdout", holdout)):
        gates += [_labels(part, table, target), _features(part, table, features)]
    return gates


def _labels(part: str, table: pa.Table, target: Target) -> Gate:
    """Judge whether the labels of a part differ, as every figure needs."""
    found = pc.unique(table.column(target.label)).drop_null().to_pylist()
    name = f"{part}_{'classes' if target.task.is_classification else 'labels'}"
    seen = (
        f"{target.label} is {shown(sorted(found))}" if found else f"{target.label} is never known"
    )
    return Gate(name, len(found) >= _TWO, len(found), _TWO, seen)


def _features(part: str, table: pa.Table, features: Sequence[str]) -> Gate:
    empty = [name for name in features if table.num_rows and _is_empty(table.column(name))]
    detail = f"without any value: {', '.join(empty)}" if empty else "all have values"
    return Gate(f"{part}_features", not empty, len(empty), 0, detail)


def _is_empty(column: pa.ChunkedArray) -> bool:
    """Whether every value is null or NaN."""
    return bool(pc.all(pc.is_null(column, nan_is_null=True)).as_py())
