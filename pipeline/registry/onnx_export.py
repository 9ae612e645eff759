"""The same model in ONNX, for serving: made and checked where it was trained, run where it serves.

Beside `formats`, below `registry`. scikit-learn takes milliseconds for a row, most of it for checks
and tables; ONNX Runtime takes microseconds. What serves is only ever exchanged for what says the
same: a model is exported where its library can be, compared with the estimator on every row of its
training set, and left out where more than a thousandth of them differ by more than `LIMIT`.
"""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from steadfeast.measures import Task
from steadfeast.pipeline.recipes import Blend, Fitted, frame, own_classes, scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from steadfeast.measures import Floats
    from steadfeast.pipeline.recipes import Target

log = logging.getLogger(__name__)

LIMIT = 1e-4
"""Largest difference on a training row: of a probability, or of a value in standard deviations of
the estimator's values."""
ROUNDED = 0.001
"""Share of training rows that may differ by more: ONNX reads single precision, so that a value
within its rounding of a tree's threshold may fall on the other side."""
FACTS = "serving.json"
_BATCH = 8192
_EXPORTING = Lock()


class _Part(NamedTuple):
    """One fit of a blend, or the only one.

    Attributes:
        content: The ONNX file.
        features: Columns that it reads, in order.
        texts: Those of them that are text.
        classes: What the columns of its probabilities mean; empty of a value.
        weight: What it counts.
        together: Whether it reads one array of numbers, and not an input per column.
    """

    content: bytes
    features: tuple[str, ...]
    texts: tuple[str, ...]
    classes: tuple[Any, ...]
    weight: float
    together: bool


class OnnxServing:
    """A model's parts in ONNX Runtime, ready to predict; safe to share between threads."""

    def __init__(self, parts: Sequence[_Part], target: Target) -> None:
        import onnxruntime  # noqa: PLC0415 - an extra

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._target = target
        self._parts = [
            (
                one,
                onnxruntime.InferenceSession(
                    one.content, options, providers=["CPUExecutionProvider"]
                ),
                [
                    one.classes.index(value) if value in one.classes else None
                    for value in target.classes
                ],
            )
            for one in parts
        ]

    @classmethod
    def read(cls, files: Mapping[str, bytes], target: Target) -> Self | None:
        """Return what `export` wrote; None where it wrote nothing, or ONNX Runtime is not here."""
        if FACTS not in files or find_spec("onnxruntime") is None:
            return None
        parts = [
            _Part(
                files[_name(place)],
                tuple(one["features"]),
                tuple(one["texts"]),
                tuple(one["classes"]),
                one["weight"],
                one["together"],
            )
            for place, one in enumerate(json.loads(files[FACTS])["parts"])
        ]
        return cls(parts, target)

    def predict(self, table: pa.Table) -> Floats | None:
        """Return what `recipes.scores` would; None where a text is null, which ONNX has not."""
        columns: dict[str, Any] = {}
        for part, _, _ in self._parts:
            for name in part.features:
                if name not in columns:
                    columns[name] = _column(table.column(name), text=name in part.texts)
                if columns[name] is None:
                    return None
        total: Any = 0.0
        for part, session, places in self._parts:
            if part.together:
                feed = {"rows": np.hstack([columns[name] for name in part.features])}
            else:
                feed = {name: columns[name] for name in part.features}
            said = np.asarray(session.run(None, feed)[-1], np.float64)
            total = total + part.weight * self._scored(said, places)
        return np.asarray(total)

    def _scored(self, said: Any, places: Sequence[int | None]) -> Any:
        if not self._target.task.is_classification:
            return said.reshape(len(said))
        if self._target.task is Task.BINARY:
            last = places[-1]
            return np.zeros(len(said)) if last is None else said[:, last]
        return np.column_stack(
            [np.zeros(len(said)) if place is None else said[:, place] for place in places]
        )


def export(
    estimator: Any,
    features: Sequence[str],
    target: Target,
    classes: Sequence[Any] | None,
    rows: pa.Table,
) -> dict[str, bytes]:
    """Return the files of the same model in ONNX; none where there is no such model.

    Args:
        estimator: Fitted.
        features: Columns that it reads.
        target: What it predicts.
        classes: What the columns of its probabilities mean; None takes its own `classes_`.
        rows: That both are compared on.
    """
    if find_spec("skl2onnx") is None or find_spec("onnxruntime") is None or not rows.num_rows:
        return {}
    fits, weights = [Fitted(estimator, tuple(features), classes=classes)], [1.0]
    if isinstance(estimator, Blend):
        fits, weights = list(estimator.parts), list(estimator.weights)
    try:
        parts = [_converted(one, weight, rows) for one, weight in zip(fits, weights, strict=True)]
    except Exception as error:  # noqa: BLE001 - of converters of other libraries, for any reason
        why = str(error).partition("\n")[0][:200]
        log.info("served by the estimator itself, which is slower than ONNX: %s", why)
        return {}
    serving = OnnxServing(parts, target)
    differences = _differences(serving, estimator, features, target, classes, rows)
    beyond = float((differences > LIMIT).mean()) if differences.size else 1.0
    if beyond > ROUNDED:
        log.warning(
            "served by the estimator itself, which is slower than ONNX: there %.1f %% of rows "
            "would differ by over %g",
            100 * beyond,
            LIMIT,
        )
        return {}
    facts = {
        "limit": LIMIT,
        "beyond": beyond,
        "difference": float(differences.max()),
        "rows": rows.num_rows,
        "parts": [
            {
                "features": one.features,
                "texts": one.texts,
                "classes": one.classes,
                "weight": one.weight,
                "together": one.together,
            }
            for one in parts
        ],
    }
    files = {_name(place): one.content for place, one in enumerate(parts)}
    return {FACTS: json.dumps(facts).encode(), **files}


def _differences(
    serving: OnnxServing,
    estimator: Any,
    features: Sequence[str],
    target: Target,
    classes: Sequence[Any] | None,
    rows: pa.Table,
) -> Floats:
    right: list[Any] = []
    said: list[Any] = []
    for start in range(0, rows.num_rows, _BATCH):
        batch = rows.slice(start, _BATCH)
        fast = serving.predict(batch)
        if fast is None:  # a batch that the estimator itself will answer
            continue
        said.append(fast)
        right.append(scores(estimator, batch, features, target, classes))
    if not said:
        return np.zeros(0)
    expected = np.concatenate(right)
    unit = 1.0 if target.task.is_classification else float(expected.std()) or 1.0
    apart = np.abs(np.concatenate(said) - expected).reshape(len(expected), -1)
    return np.asarray(apart.max(axis=1)) / unit


def _converted(fitted: Fitted, weight: float, rows: pa.Table) -> _Part:
    from skl2onnx import to_onnx  # noqa: PLC0415 - an extra, and seconds
    from skl2onnx.common.data_types import (  # noqa: PLC0415
        FloatTensorType,
        StringTensorType,
    )

    features = tuple(fitted.features)
    given = frame(rows.slice(0, 1), features)
    texts = tuple(name for name in features if given[name].dtype == object)
    own = own_classes(fitted.estimator, fitted.classes)
    options = {id(fitted.estimator): {"zipmap": False}} if own else None
    apart = [
        (name, (StringTensorType if name in texts else FloatTensorType)([None, 1]))
        for name in features
    ]
    with _plain_attributes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = to_onnx(fitted.estimator, initial_types=apart, options=options)
            together = False
        except Exception:
            if texts:
                raise
            matrix = [("rows", FloatTensorType([None, len(features)]))]
            model = to_onnx(fitted.estimator, initial_types=matrix, options=options)
            together = True
    return _Part(model.SerializeToString(), features, texts, own, weight, together)


@contextmanager
def _plain_attributes() -> Iterator[None]:
    """Have skl2onnx hand plain numbers to onnx.

    Its tree converters (1.20) hand over numpy's scalars and booleans, which onnx since 1.20 takes
    no more.
    """
    from skl2onnx.common._container import ModelComponentContainer as Container  # noqa: PLC0415

    given = Container.add_node

    def add_node(
        self: Any, kind: str, inputs: Any, outputs: Any, *more: Any, **attributes: Any
    ) -> Any:
        plain = {name: _plain(value) for name, value in attributes.items()}
        return given(self, kind, inputs, outputs, *more, **plain)

    with _EXPORTING:
        Container.add_node = add_node
        try:
            yield
        finally:
            Container.add_node = given


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _column(column: Any, *, text: bool) -> Any:
    """Return a column as ONNX reads it, shape (rows, 1); None for a text that is null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if text:
        return None if column.null_count else column.to_numpy().astype(object).reshape(-1, 1)
    values = column.cast(pa.float64(), safe=False).to_numpy()
    with np.errstate(over="ignore"):
        return values.astype(np.float32).reshape(-1, 1)


def _name(place: int) -> str:
    return f"serving.{place}.onnx"
