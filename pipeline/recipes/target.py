"""What a model is to predict: the task, and what the label's values mean.

Above `recipe` and `blend`. Labels may be of any type. Scores come back in the form that
`steadfeast.measures` reads: the probability of the positive class, a probability per class, or a
value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import UserError
from steadfeast.measures import Sample, Task
from steadfeast.pipeline.recipes.blend import Blend
from steadfeast.pipeline.recipes.recipe import frame, limited

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from steadfeast.measures import Floats

TWO = 2
MOST_CLASSES = 200
SHOWN = 5


class LabelsError(UserError):
    """The labels are not what the task asks for.

    Attributes:
        label: Name of the label column.
    """

    def __init__(self, label: str, problem: str) -> None:
        self.label = label
        super().__init__(f"label {label}: {problem}")


class ScoresError(UserError):
    """An estimator's answers cannot be used.

    Attributes:
        estimator: Name of its class.
    """

    def __init__(self, estimator: Any, problem: str) -> None:
        self.estimator = type(estimator).__name__
        super().__init__(f"{self.estimator}: {problem}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a model is to predict.

    Attributes:
        task: The kind of prediction.
        label: Name of the label column.
        classes: Values of the label, in the order of the scores; of a binary task the positive
            one is last. Empty where labels are numbers.
        group: Column whose rows are ranked among each other; empty if it is no ranking.
    """

    task: Task
    label: str
    classes: tuple[Any, ...] = ()
    group: str = ""

    @classmethod
    def of(
        cls,
        table: pa.Table,
        label: str,
        task: Task,
        *,
        positive: Any = None,
        group: str | None = None,
    ) -> Target:
        """Read from the examples what the label's values are.

        A label of one class only is no error here: a gate says so.

        Raises:
            LabelsError: The labels are not of the task.
        """
        if group is not None and group not in table.column_names:
            raise LabelsError(
                label, f"group {group!r} is no column of the examples: {table.column_names}"
            )
        column = table.column(label)
        if not task.is_classification:
            if not _is_number(column.type):
                raise LabelsError(
                    label,
                    f"is {column.type}, and task {task} needs numbers; "
                    "for classes set task: binary or task: multiclass",
                )
            return cls(task, label, (), group or "")
        return cls(task, label, _classes(column, label, task, positive))

    def truth(self, table: pa.Table) -> Floats:
        """Return the labels as the measures read them, shape (rows,)."""
        column = table.column(self.label)
        if not self.task.is_classification:
            return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
        codes = pc.index_in(_plain(column), value_set=pa.array(self.classes, _plain(column).type))
        if codes.null_count:
            new = pc.unique(_plain(column).filter(pc.is_null(codes))).to_pylist()
            raise LabelsError(self.label, f"has values that are no class: {shown(new)}")
        return np.asarray(codes.to_numpy(), np.float64)

    def sample(self, table: pa.Table, prediction: Floats) -> Sample:
        """Return rows and their predictions as the measures read them."""
        columns = {
            name: table.column(name).to_numpy(zero_copy_only=False)
            for name in table.column_names
            if name != self.label
        }
        if self.group:
            columns["groups"] = columns[self.group].astype(str)
        return Sample(self.truth(table), prediction, columns)

    def aligned(self, prediction: Floats, classes: Sequence[Any]) -> Floats:
        """Return predictions of a model of `classes` in the form and order of this target.

        A class that the model does not know has the probability 0.
        """
        if not self.task.is_classification or tuple(classes) == self.classes:
            return prediction
        scores = prediction
        if prediction.ndim == 1:
            scores = np.column_stack([1 - prediction, prediction])
        places = {value: place for place, value in enumerate(classes)}
        columns = [
            scores[:, places[value]] if value in places else np.zeros(len(scores))
            for value in self.classes
        ]
        if self.task is Task.BINARY:
            return np.asarray(columns[-1])
        return np.column_stack(columns)


def scores(
    estimator: Any,
    table: pa.Table,
    features: Sequence[str],
    target: Target,
    classes: Sequence[Any] | None = None,
) -> Floats:
    """Return what an estimator predicts for each row of `table`, as the measures read it.

    Native threads are limited to one: on few cores the waiting costs more than the work.

    Args:
        estimator: Fitted.
        table: The rows.
        features: The columns that it reads.
        target: What it predicts.
        classes: What the columns of its probabilities mean; None takes its own `classes_`.

    Raises:
        ScoresError: It gives no probabilities, or of classes that are not the target's.
    """
    rows = frame(table, features)
    with limited(1):
        if not isinstance(estimator, Blend):
            return _scored(estimator, rows, target, classes)
        said = [  # rows are read once for all parts: a request of one row waits for little else
            _scored(one.estimator, rows[list(one.features)], target, one.classes)
            for one in estimator.parts
        ]
    return np.asarray(np.tensordot(estimator.weights, said, 1))


def _scored(
    estimator: Any, rows: pd.DataFrame, target: Target, classes: Sequence[Any] | None
) -> Floats:
    given = rows if _reads_names(estimator, list(rows.columns)) else rows.to_numpy()
    if not target.task.is_classification:
        return np.asarray(estimator.predict(given), np.float64).reshape(len(rows))
    probabilities = np.asarray(estimator.predict_proba(given), np.float64)
    own = own_classes(estimator, classes)
    strange = [value for value in own if value not in target.classes]
    if strange or probabilities.ndim != TWO or probabilities.shape[1] != len(own):
        raise ScoresError(
            estimator,
            f"gives {probabilities.shape[-1]} scores of classes {shown(own)}; label "
            f"{target.label} has {shown(target.classes)}. If the recipe encodes the labels, give "
            "Fitted(..., classes=[...]) in the order of its scores",
        )
    places = {value: place for place, value in enumerate(own)}
    columns = [
        probabilities[:, places[value]] if value in places else np.zeros(len(rows))
        for value in target.classes
    ]
    return np.asarray(columns[-1] if target.task is Task.BINARY else np.column_stack(columns))


def own_classes(estimator: Any, classes: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return what the columns of an estimator's probabilities mean, as plain values."""
    values: Iterable[Any] = (
        classes if classes is not None else np.asarray(getattr(estimator, "classes_", ())).tolist()
    )
    return tuple(value.item() if isinstance(value, np.generic) else value for value in values)


def shown(values: Iterable[Any]) -> str:
    """Return a few values as text, and how many there are beyond them."""
    every = list(values)
    text = ", ".join(repr(value) for value in every[:SHOWN])
    return f"{text} and {len(every) - SHOWN:,} more" if len(every) > SHOWN else text or "none"


def _classes(column: pa.ChunkedArray, label: str, task: Task, positive: Any) -> tuple[Any, ...]:
    distinct = pc.unique(_plain(column)).drop_null()
    found = distinct.to_pylist()
    most = TWO if task is Task.BINARY else MOST_CLASSES
    if len(found) > most:
        number = "; for a number set task: regression" if _is_number(column.type) else ""
        several = "set task: multiclass" if len(found) <= MOST_CLASSES else ""
        asked = "two values" if task is Task.BINARY else f"at most {MOST_CLASSES} values"
        raise LabelsError(
            label,
            f"task {task} needs {asked}, and there are {len(found):,}: {shown(sorted(found))}"
            f"{'; ' if several else ''}{several}{number}",
        )
    classes = sorted(found)
    if positive is not None:
        if classes and positive not in classes:
            quoted = "; write texts in quotes" if isinstance(classes[0], str) else ""
            problem = f"positive is {positive!r}; the values are {shown(classes)}{quoted}"
            raise LabelsError(label, problem)
        classes.sort(key=lambda value: value == positive)
    return tuple(classes)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _is_number(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(is_kind(kind) for is_kind in kinds)


def _reads_names(estimator: Any, features: Sequence[str]) -> bool:
    """Whether it was fitted on named columns; on bare arrays, it is given bare arrays."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        names = getattr(estimator, "feature_names_", None)  # CatBoost
    return names is not None and list(names) == list(features)
