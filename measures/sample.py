"""Rows with what was true and what was predicted. Bottom of `measures`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[Any]


class Task(StrEnum):
    """What a model predicts."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"
    RANKING = "ranking"

    @property
    def is_classification(self) -> bool:
        """Whether predictions are probabilities of classes."""
        return self in (Task.BINARY, Task.MULTICLASS)


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows with what was true and what was predicted.

    Attributes:
        truth: Shape (rows,), float64. Binary: 1 for the positive class, else 0. Multiclass: the
            place of the class. Regression: the value. Ranking: the relevance.
        prediction: Float64. Binary: the probability of the positive class, shape (rows,).
            Multiclass: one probability per class, shape (rows, classes). Otherwise shape (rows,).
        columns: More columns that a measure may ask for by name, shape (rows,) each. A ranking
            has `groups`: rows with one value of it are ranked among each other.
    """

    truth: Array
    prediction: Array
    columns: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: Array) -> Sample:
        """Return the rows that `rows` selects, a mask or indices."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Sample(self.truth[rows], self.prediction[rows], columns)

    def predicting(self, prediction: Array) -> Sample:
        """Return the same rows with another model's predictions."""
        return replace(self, prediction=np.asarray(prediction, np.float64))
