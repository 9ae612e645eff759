"""How good predictions are before their labels are in: an estimate, to be held against the truth.

Above `monitor.profiles.profile` and `steadfeast.measures`. Fitted once on rows that the
live model had not seen when it scored them, with their labels; then applied to windows without any.

*Classifiers.* Scores are turned into chances by a calibration fitted on those rows. If a row of
score p is of class 1 with chance c(p), the expected confusion, the expected order of pairs and
the expected log loss of a window follow from its scores alone.

*Regressors.* The loss of a row is modelled as a sum of one term per column, by the column's
bin, the prediction among them. The mean of a sum needs nothing of a window but how many rows are
in each bin: its profile, which is there anyway.

Both see what the features and the scores show, and nothing else: when the same features begin to
mean something else (concept drift), the estimate stays where it was. That is why it is scored
against the truth, later, and why it raises no retraining by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import isotonic_regression

from steadfeast.measures import HALF, RELIABILITY_BINS, Floats, Task
from steadfeast.monitor.profiles import places_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from steadfeast.monitor.profiles import Edges, Profile

MOST_KNOTS = 500

ESTIMATED = (
    "roc_auc",
    "accuracy",
    "f1",
    "log_loss",
    "calibration_error",
    "root_mean_squared_error",
    "mean_absolute_error",
)
"""The measures that can be estimated before labels are in."""

_FEWEST_ROWS = 50
"""Of a step of the calibration, or a fifth of all."""
_ROUNDS = 40
_RATE = 0.3
_SHRINKAGE = 20.0


@dataclass(frozen=True, slots=True)
class Loss:
    """The mean of a loss, as a constant and a term per column and bin of it.

    Attributes:
        base: In the loss's unit.
        terms: Per column, one term per bin, and a last one for rows without a value.
    """

    base: float
    terms: Mapping[str, tuple[float, ...]]

    def mean(self, profile: Profile) -> float:
        """Return the mean over the rows that `profile` has counted; at least 0."""
        value = self.base
        for name, terms in self.terms.items():
            column = profile.columns[name]
            if column.rows:
                rows = np.append(column.counts, column.rows - column.usable)
                value += float(np.dot(rows, terms)) / column.rows
        return max(0.0, value)


@dataclass(frozen=True, slots=True)
class Estimator:
    """What turns a window without labels into figures of merit.

    Attributes:
        task: What the model predicts.
        rows: Labelled rows that it was fitted on.
        scores: Of a classifier: scores, ascending.
        chances: The chance of class 1 at each of them; straight lines in between.
        absolute: Of a regressor: the absolute error.
        squared: The squared error.
    """

    task: Task
    rows: int
    scores: tuple[float, ...] = ()
    chances: tuple[float, ...] = ()
    absolute: Loss | None = None
    squared: Loss | None = None

    def estimate(self, predictions: Floats, profile: Profile) -> dict[str, float]:
        """Return the expected figures of a window by name; those that can be estimated.

        Args:
            predictions: Of the window, shape (rows,).
            profile: Of the window, over the edges that this was fitted on.
        """
        if not len(predictions):
            return {}
        if self.task is Task.BINARY:
            return expected(predictions, np.interp(predictions, self.scores, self.chances))
        if self.absolute is None or self.squared is None:
            return {}
        root = float(np.sqrt(self.squared.mean(profile)))
        return {
            "root_mean_squared_error": root,
            "mean_absolute_error": self.absolute.mean(profile),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Estimator:
        """Return what `to_json` was called on."""
        losses = {
            name: None
            if data[name] is None
            else Loss(
                data[name]["base"],
                {column: tuple(terms) for column, terms in data[name]["terms"].items()},
            )
            for name in ("absolute", "squared")
        }
        return cls(
            Task(data["task"]),
            data["rows"],
            tuple(data["scores"]),
            tuple(data["chances"]),
            **losses,
        )


def fit(table: pa.Table, edges: Edges, task: Task) -> Estimator | None:
    """Fit an estimator on labelled rows that the model was not trained on.

    Args:
        table: Columns `prediction` and `label`, and of regressors those of `edges`.
        edges: Binning of the columns that a window's profile will have.
        task: What the model predicts.

    Returns:
        None when there is nothing to fit on: no labels, or only one class; or it is a task that
        nothing is estimated for.
    """
    known = pc.and_(pc.is_valid(table["prediction"]), pc.is_valid(table["label"]))
    table = table.filter(known)
    prediction, truth = (table[name].to_numpy() for name in ("prediction", "label"))
    finite = np.isfinite(prediction) & np.isfinite(truth)
    if not finite.any():
        return None
    prediction, truth = prediction[finite], truth[finite]
    if task not in (Task.BINARY, Task.REGRESSION):
        return None
    if task is Task.REGRESSION:
        kept = table.filter(pa.array(finite))
        present = set(kept.column_names)
        places = {
            name: places_of(kept[name], one)
            for name, one in edges.columns.items()
            if one.bins and name in present
        }
        sizes = {name: edges.columns[name].bins + 1 for name in places}
        off = np.abs(prediction - truth)
        return Estimator(
            task,
            len(truth),
            absolute=_additive(off, places, sizes),
            squared=_additive(off * off, places, sizes),
        )
    is_one = truth > HALF
    if is_one.all() or not is_one.any():
        return None
    scores, chances = _calibration(prediction, is_one)
    return Estimator(task, len(truth), scores, chances)


def expected(scores: Floats, chances: Floats) -> dict[str, float]:
    """Return the figures that a classifier has on average, if labels follow `chances`.

    Args:
        scores: What the model says, 0 to 1, shape (rows,).
        chances: The chance that each row is of class 1, shape (rows,).

    Reference: Bialek et al. (2024), arXiv:2401.08348 (M-CBPE: the expected confusion matrix).
    """
    said = scores >= HALF
    true_ones, false_ones = float(chances[said].sum()), float((1 - chances[said]).sum())
    missed, rows = float(chances[~said].sum()), len(scores)
    certain = np.clip(scores, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    places = np.clip((scores * RELIABILITY_BINS).astype(int), 0, RELIABILITY_BINS - 1)
    gaps = np.bincount(places, scores - chances, RELIABILITY_BINS)
    found = {
        "accuracy": (true_ones + float((1 - chances[~said]).sum())) / rows,
        "log_loss": float(
            -np.mean(chances * np.log(certain) + (1 - chances) * np.log(1 - certain))
        ),
        "calibration_error": float(np.abs(gaps).sum()) / rows,
    }
    if 2 * true_ones + false_ones + missed:
        found["f1"] = 2 * true_ones / (2 * true_ones + false_ones + missed)
    area = _expected_auc(scores, chances)
    return found if area is None else {**found, "roc_auc": area}


def _expected_auc(scores: Floats, chances: Floats) -> float | None:
    """Return the expected share of (1, 0) pairs in the right order; ties count half."""
    _, place = np.unique(scores, return_inverse=True)
    ones = np.bincount(place, chances)
    zeros = np.bincount(place, 1 - chances)
    below = np.cumsum(zeros) - zeros
    # A row makes no pair with itself.
    own = chances * (1 - chances)
    pairs = float(ones.sum() * zeros.sum() - own.sum())
    if pairs <= 0:
        return None
    return float(ones @ below + 0.5 * (ones @ zeros - own.sum())) / pairs


def _calibration(
    prediction: Floats, is_one: npt.NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scores and chances of class 1, never falling: isotonic regression.

    A step is kept as its middle, and lines join the middles. Steps of few rows, as at the very
    ends, would be 0 or 1 by chance: they are pooled with the next.

    Reference: Zadrozny and Elkan (2002), KDD 694.
    """
    order = np.argsort(prediction, kind="stable")
    scores, first, counts = np.unique(prediction[order], return_index=True, return_counts=True)
    weights = counts.astype(np.float64)
    ones = np.add.reduceat(is_one[order].astype(np.float64), first)
    fitted = isotonic_regression(ones / weights, weights=weights)
    starts = _pooled(fitted.blocks[:-1], weights)
    rows = np.add.reduceat(weights, starts)
    middles = np.add.reduceat(scores * weights, starts) / rows
    # Half a row of each class, so that no step is certain.
    chances = (np.add.reduceat(ones, starts) + HALF) / (rows + 1)
    chances = np.maximum.accumulate(chances)
    kept = np.unique(np.linspace(0, len(middles) - 1, MOST_KNOTS).round().astype(int))
    return tuple(middles[kept].tolist()), tuple(chances[kept].tolist())


def _pooled(starts: npt.NDArray[np.int64], weights: Floats) -> npt.NDArray[np.int64]:
    """Return the starts of steps that are left when each is to have enough rows."""
    least = min(_FEWEST_ROWS, weights.sum() / 5)
    ends = np.cumsum(weights)
    before = ends[starts] - weights[starts]
    kept = [0]
    for number, rows in enumerate(before[1:], 1):
        if rows - before[kept[-1]] >= least:
            kept.append(number)
    if len(kept) > 1 and ends[-1] - before[kept[-1]] < least:
        kept.pop()
    return starts[kept]


def _additive(
    loss: Floats, places: Mapping[str, npt.NDArray[np.int64]], sizes: Mapping[str, int]
) -> Loss:
    """Fit a sum of terms to `loss` by backfitting with small, shrunken steps.

    Reference: Buehlmann and Yu (2003), J. Am. Stat. Assoc. 98:324 (boosting of componentwise
    smoothers).
    """
    terms = {name: np.zeros(size) for name, size in sizes.items()}
    rows = {name: np.bincount(places[name], minlength=size) for name, size in sizes.items()}
    base = float(loss.mean())
    left = loss - base
    for _ in range(_ROUNDS):
        for name, size in sizes.items():
            step = _RATE * np.bincount(places[name], left, size) / (rows[name] + _SHRINKAGE)
            terms[name] += step
            left = left - step[places[name]]
    # So that the mean over the fitted rows is theirs.
    return Loss(base + float(left.mean()), {name: tuple(t.tolist()) for name, t in terms.items()})
