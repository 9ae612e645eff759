"""Gates: what a challenger must reach before it may become the champion.

Above `runs`. Arrays and tables in, gates out; no I/O, clock or globals. `data_gates` judges
the examples before anything is trained on them, `model_gates` the challenger after. Every gate
is measured and reported, also after one has failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steadfeast.pipeline.config import GatesConfig

_BOTH_CLASSES = 2


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The rows that champion and challenger are judged on, and the challenger's answers.

    Attributes:
        times: Event times, `datetime64[us]` in UTC, shape (rows,).
        labels: 0 or 1, shape (rows,).
        scores: The challenger's probability of class 1, shape (rows,).
        contract: The contract that the rows were built under.
    """

    times: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    contract: str


@dataclass(frozen=True, slots=True)
class Champion:
    """The live model as it does on the held-out rows.

    Attributes:
        version: Its version in the registry.
        scores: Its probability of class 1 for every held-out row; None when it cannot read
            them.
        unreadable: Why it cannot, when it cannot.
        contract: The contract that it was trained under.
        trained_before: It has seen no example from this time on.
    """

    version: str
    scores: np.ndarray | None
    unreadable: str
    contract: str
    trained_before: datetime


def metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return the metrics of probabilities `scores` of class 1 on `labels`, shapes (rows,).

    `auc` is the area under the ROC curve, 0 to 1; `accuracy` the share right at a probability
    of one half; `log_loss` the mean negative log-likelihood in nats, 0 or more, smaller is
    better. Labels hold both classes, as `data_gates` has checked.
    """
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "accuracy": float(accuracy_score(labels, scores > 1 / 2)),
        "log_loss": float(log_loss(labels, scores, labels=[0, 1])),
    }


def data_gates(
    train: pa.Table, holdout: pa.Table, features: Sequence[str], label: str, config: GatesConfig
) -> list[pb.Gate]:
    """Judge the examples: enough of them, of both classes, and no feature without any value."""
    gates = [
        pb.Gate(
            name="holdout_rows",
            passed=holdout.num_rows >= config.min_rows,
            value=holdout.num_rows,
            limit=config.min_rows,
            detail=f"{holdout.num_rows} labelled rows held out, {train.num_rows} to train on",
        )
    ]
    for part, table in (("train", train), ("holdout", holdout)):
        found = sorted(pc.unique(table.column(label).cast(pa.float64())).to_pylist())
        gates.append(
            pb.Gate(
                name=f"{part}_classes",
                passed=found == [0, 1],
                value=len(found),
                limit=_BOTH_CLASSES,
                detail=f"{label} is {', '.join(f'{value:g}' for value in found) or 'never known'}",
            )
        )
        empty = [name for name in features if table.num_rows and _is_empty(table.column(name))]
        gates.append(
            pb.Gate(
                name=f"{part}_features",
                passed=not empty,
                value=len(empty),
                limit=0,
                detail=f"without any value: {', '.join(empty)}" if empty else "all have values",
            )
        )
    return gates


def model_gates(rows: HeldOut, champion: Champion | None, config: GatesConfig) -> list[pb.Gate]:
    """Judge the challenger, on its own and against the champion on the same rows.

    Rows that the champion was trained on flatter it, so it is compared on later ones when at
    least `min_rows` with both classes are left, and on all otherwise, which can only make
    promotion harder; the detail says which.

    Args:
        rows: The held-out rows, of both classes.
        champion: None for a first model, which has only the absolute limit to reach.
        config: The limits.
    """
    value = metrics(rows.labels, rows.scores)[config.metric]
    gates = [
        pb.Gate(
            name="minimum",
            passed=value >= config.minimum,
            value=value,
            limit=config.minimum,
            metric=config.metric,
            detail=f"{config.metric} {value:.4f} on {len(rows.labels)} held-out rows",
        )
    ]
    if champion is None:
        return gates
    if champion.scores is None:
        gates.append(
            pb.Gate(
                name="no_regression",
                passed=False,
                detail=f"champion {champion.version} cannot be compared: {champion.unreadable}; "
                "promote by hand",
            )
        )
        return gates
    fair, how = _fair_rows(rows, champion, config.min_rows)
    ours = metrics(rows.labels[fair], rows.scores[fair])[config.metric]
    theirs = metrics(rows.labels[fair], champion.scores[fair])[config.metric]
    limit = theirs - config.max_regression
    if champion.contract != rows.contract:
        how += f"; it was trained under contract {champion.contract[:12]}, not this one"
    gates.append(
        pb.Gate(
            name="no_regression",
            passed=ours >= limit,
            value=ours,
            limit=limit,
            champion=theirs,
            metric=config.metric,
            detail=f"{config.metric} {ours:.4f} against {theirs:.4f} of champion "
            f"{champion.version} on {int(fair.sum())} rows, {how}",
        )
    )
    return gates


def refusal(gates: Sequence[pb.Gate]) -> str:
    """Return in one line why `gates` refuse, empty if all passed."""
    return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates if not gate.passed)


def _fair_rows(rows: HeldOut, champion: Champion, min_rows: int) -> tuple[np.ndarray, str]:
    """Return which rows to compare on, and in words what the champion has seen of them."""
    boundary = np.datetime64(champion.trained_before.astimezone(UTC).replace(tzinfo=None), "us")
    unseen = rows.times >= boundary
    seen = int(np.sum(~unseen))
    if not seen:
        return unseen, "none of which it was trained on"
    if unseen.sum() >= min_rows and len(np.unique(rows.labels[unseen])) == _BOTH_CLASSES:
        return unseen, f"without {seen} that it may have been trained on"
    return np.ones_like(unseen), f"{seen} of which it may have been trained on"


def _is_empty(column: pa.ChunkedArray) -> bool:
    """Whether every value is null or NaN."""
    return bool(pc.all(pc.is_null(column, nan_is_null=True)).as_py())
