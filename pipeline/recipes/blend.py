"""The weighted mean of several fits of one recipe, as one estimator.

Above `recipe`. What it is made of and why: `pipeline.training.blending`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.pipeline.recipes.recipe import Fitted


class Blend:
    """Fits of one recipe on different stretches, whose predictions are averaged.

    Args:
        parts: The fits. Each reads its own features and may lack a class that others know.
        weights: What each counts; they add up to 1.
        shares: The newest part of what was known that each was fitted on, from 0 to 1.

    Attributes:
        parts: Likewise.
        weights: Likewise.
        shares: Likewise.
        classes_: Classes that any of them knows, in order; empty of numbers.
        features: Columns that any of them reads, in order.
    """

    def __init__(
        self, parts: Sequence[Fitted], weights: Sequence[float], shares: Sequence[float]
    ) -> None:
        self.parts, self.weights, self.shares = tuple(parts), tuple(weights), tuple(shares)
        self.features = tuple(dict.fromkeys(name for one in self.parts for name in one.features))
        known = {value for one in self.parts for value in _classes(one)}
        self.classes_ = np.array(sorted(known))

    def predict(self, rows: Any) -> Any:
        """Return the mean of the values, or the likeliest class, for a frame of rows."""
        if len(self.classes_):
            return self.classes_[self.predict_proba(rows).argmax(axis=1)]
        said = [one.estimator.predict(rows[list(one.features)]) for one in self.parts]
        return np.tensordot(self.weights, said, 1)

    def predict_proba(self, rows: Any) -> Any:
        """Return the mean probabilities for a frame of rows, shape (rows, classes)."""
        total = np.zeros((len(rows), len(self.classes_)))
        for one, weight in zip(self.parts, self.weights, strict=True):
            places = np.searchsorted(self.classes_, np.array(_classes(one)))
            total[:, places] += weight * one.estimator.predict_proba(rows[list(one.features)])
        return total


def _classes(fitted: Fitted) -> list[Any]:
    if fitted.classes is not None:
        return list(fitted.classes)
    return list(np.asarray(getattr(fitted.estimator, "classes_", ())).tolist())
