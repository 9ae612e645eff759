"""Models in ONNX against their estimators, on rows that neither has seen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from steadfeast import Fitted, frame
from steadfeast.measures import Task
from steadfeast.pipeline.recipes import Blend, Target, scores
from steadfeast.pipeline.registry import onnx_export
from steadfeast.pipeline.registry.onnx_export import FACTS, LIMIT, ROUNDED, OnnxServing, export

NUMBERS, TEXTS = ("temp", "wind", "hour"), ("carrier", "origin")


def rows(seed: int, count: int = 3000) -> pa.Table:
    """Numbers of different sizes with nulls, a whole number, and texts."""
    rng = np.random.default_rng(seed)
    temp = rng.normal(60, 20, count).round(1)
    return pa.table(
        {
            "temp": pa.array(temp, mask=rng.random(count) < 0.1),
            "wind": rng.gamma(2, 500, count).round(2),
            "hour": rng.integers(0, 24, count),
            "carrier": pa.array(rng.choice(["UA", "DL", "B6"], count)).dictionary_encode(),
            "origin": rng.choice(["EWR", "JFK"], count),
            "late": (temp + 30 * rng.normal(size=count) > 70).astype(int),
            "delay": temp * 3 + rng.normal(size=count) * 10,
            "kind": rng.choice(["a", "b", "c"], count),
        }
    )


TRAINING, UNSEEN = rows(1), rows(2)
EVERY = (*NUMBERS, *TEXTS)


def encoded(last: Any, encoder: Any = None) -> Any:
    """A pipeline that reads columns by name."""
    encoder = encoder or OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return make_pipeline(
        ColumnTransformer(
            [("texts", encoder, list(TEXTS))],
            remainder="passthrough",
            verbose_feature_names_out=False,
        ),
        last,
    )


BINARY = Target(Task.BINARY, "late", (0, 1))
KINDS = Target(Task.MULTICLASS, "kind", ("a", "b", "c"))
VALUE = Target(Task.REGRESSION, "delay", ())
CASES = {
    "boosting with texts": (encoded(HistGradientBoostingClassifier(max_iter=30)), EVERY, BINARY),
    "boosting of numbers": (HistGradientBoostingClassifier(max_iter=30), NUMBERS, BINARY),
    "boosting of a value": (encoded(HistGradientBoostingRegressor(max_iter=30)), EVERY, VALUE),
    "linear": (
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()), NUMBERS, BINARY
    ),
    "ridge": (make_pipeline(SimpleImputer(), StandardScaler(), Ridge()), NUMBERS, VALUE),
    "forest of classes": (
        make_pipeline(SimpleImputer(), RandomForestClassifier(20, max_depth=6)), NUMBERS, KINDS
    ),
    "one-hot": (
        encoded(HistGradientBoostingClassifier(max_iter=20), OneHotEncoder(sparse_output=False)),
        EVERY, BINARY,
    ),
}  # fmt: skip


def fitted(
    model: Any, features: tuple[str, ...], target: Target, table: pa.Table = TRAINING
) -> Any:
    return model.fit(frame(table, features), table[target.label].to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_the_estimator_says(case: str):
    model, features, target = CASES[case]
    fitted(model, features, target)
    files = export(model, features, target, None, TRAINING)
    assert json.loads(files[FACTS])["beyond"] <= ROUNDED
    serving = OnnxServing.read(files, target)
    right = scores(model, UNSEEN, features, target)
    unit = 1.0 if target.task.is_classification else right.std()
    for batch in (UNSEEN, UNSEEN.slice(5, 1)):
        said = serving.predict(batch)
        expected = scores(model, batch, features, target)
        assert said.shape == expected.shape
        assert np.abs(said - expected).max() / unit <= LIMIT
    assert right.std() > 0


def test_a_blend_is_its_parts_weighted():
    """Parts may read other features, and one may not know a class that another does."""
    early = TRAINING.filter(pa.compute.not_equal(TRAINING["kind"], "c"))
    parts = [
        Fitted(
            fitted(RandomForestClassifier(20, max_depth=6), ("wind", "hour"), KINDS),
            ("wind", "hour"),
        ),
        Fitted(fitted(LogisticRegression(max_iter=500), ("hour",), KINDS, early), ("hour",)),
    ]
    blend = Blend(parts, (0.75, 0.25), (1.0, 0.5))
    files = export(blend, blend.features, KINDS, None, TRAINING)
    serving = OnnxServing.read(files, KINDS)
    expected = scores(blend, UNSEEN, blend.features, KINDS)
    assert np.abs(serving.predict(UNSEEN) - expected).max() <= LIMIT


def test_what_differs_or_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch):
    model, features, target = CASES["linear"]
    fitted(model, features, target)

    class Odd(LogisticRegression):
        """A class of one's own, which no converter knows."""

    own = fitted(make_pipeline(SimpleImputer(), Odd()), NUMBERS, BINARY)
    assert export(own, NUMBERS, BINARY, None, TRAINING) == {}
    monkeypatch.setattr(onnx_export, "LIMIT", 1e-12)
    assert export(model, features, target, None, TRAINING) == {}
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if "onnx" in name else name)
    assert export(model, features, target, None, TRAINING) == {}


def test_values_in_double_precision_may_fall_on_the_other_side_of_a_threshold():
    """Rarely: that is a rounding of a feature by 6e-8 of its value, and no other model."""
    rng = np.random.default_rng(5)
    fine = pa.table({"x": rng.uniform(size=20_000), "y": rng.uniform(size=20_000)})
    late = (fine["x"].to_numpy() + rng.normal(size=20_000) / 4 > 0.5).astype(int)
    fine = fine.append_column("late", pa.array(late))
    model = fitted(HistGradientBoostingClassifier(max_iter=150), ("x", "y"), BINARY, fine)
    files = export(model, ("x", "y"), BINARY, None, fine)
    facts = json.loads(files[FACTS])
    said = OnnxServing.read(files, BINARY).predict(fine)
    apart = np.abs(said - scores(model, fine, ("x", "y"), BINARY))
    assert facts["beyond"] == np.mean(apart > LIMIT) <= ROUNDED
    assert facts["difference"] == pytest.approx(apart.max())


def test_a_null_text_is_left_to_the_estimator():
    model, features, target = CASES["boosting with texts"]
    fitted(model, features, target)
    serving = OnnxServing.read(export(model, features, target, None, TRAINING), target)
    place = UNSEEN.column_names.index("origin")
    missing = UNSEEN.slice(0, 2).set_column(place, "origin", pa.array(["EWR", None]))
    assert serving.predict(missing) is None
