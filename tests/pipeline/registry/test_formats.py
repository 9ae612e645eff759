"""Every kind of model is read back as it was written, and nothing is unpickled."""

from __future__ import annotations

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pytest
import skl2onnx
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from steadfeast import OnnxModel
from steadfeast.pipeline.registry import MissingLibraryError, UntrustedModelError, formats

ROWS = 240
RNG = np.random.default_rng(0)
NUMBERS = pd.DataFrame(RNG.normal(size=(ROWS, 3)).astype(np.float32), columns=["x", "y", "z"])
PLACES = NUMBERS.to_numpy().argmax(axis=1)
NAMES = np.array(["low", "middle", "high"])[PLACES]
VALUES = NUMBERS["x"].to_numpy() + 10
QUIET = {"verbose": 0, "allow_writing_files": False, "iterations": 5}


def encoded(last):
    """A pipeline as people write it: categories encoded, then a booster."""
    rows = NUMBERS.assign(mood=NAMES)
    columns = make_column_transformer((OrdinalEncoder(), ["mood"]), remainder="passthrough")
    return make_pipeline(columns, last).fit(rows, PLACES), rows


CLASSIFIERS = {
    "xgboost": lambda: (xgboost.XGBClassifier(n_estimators=3).fit(NUMBERS, PLACES), NUMBERS),
    "xgboost, two": lambda: (
        xgboost.XGBClassifier(n_estimators=3).fit(NUMBERS, PLACES == 1),
        NUMBERS,
    ),
    "lightgbm": lambda: (
        lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(NUMBERS, NAMES),
        NUMBERS,
    ),
    "lightgbm, two": lambda: (
        lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(NUMBERS, NAMES == "low"),
        NUMBERS,
    ),
    "catboost": lambda: (catboost.CatBoostClassifier(**QUIET).fit(NUMBERS, NAMES), NUMBERS),
    "pipeline with xgboost": lambda: encoded(xgboost.XGBClassifier(n_estimators=3)),
    "pipeline with lightgbm": lambda: encoded(lightgbm.LGBMClassifier(n_estimators=3, verbose=-1)),
    "pipeline with catboost": lambda: encoded(catboost.CatBoostClassifier(**QUIET)),
    "forest": lambda: (RandomForestClassifier(5).fit(NUMBERS, NAMES), NUMBERS),
    "neighbours": lambda: (KNeighborsClassifier().fit(NUMBERS, NAMES), NUMBERS),
    "calibrated": lambda: (
        CalibratedClassifierCV(LogisticRegression()).fit(NUMBERS, NAMES),
        NUMBERS,
    ),
}
REGRESSORS = {
    "xgboost": lambda: xgboost.XGBRegressor(n_estimators=3).fit(NUMBERS, VALUES),
    "lightgbm": lambda: lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(NUMBERS, VALUES),
    "catboost": lambda: catboost.CatBoostRegressor(**QUIET).fit(NUMBERS, VALUES),
    "histogram": lambda: HistGradientBoostingRegressor(max_iter=5).fit(NUMBERS, VALUES),
    "poisson": lambda: PoissonRegressor().fit(NUMBERS, VALUES),
    "network": lambda: make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(4,), max_iter=3000)
    ).fit(NUMBERS, VALUES),
}


def again(estimator):
    return formats.read(formats.write(estimator), (), "a model")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_says_what_it_said(name):
    made, rows = CLASSIFIERS[name]()
    loaded = again(made)
    np.testing.assert_allclose(
        loaded.predict_proba(rows), made.predict_proba(rows), rtol=1e-6, atol=1e-7
    )
    assert list(loaded.classes_) == list(made.classes_)
    assert not any(b"cpickle" in content.lower() for content in formats.write(made).values())


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_says_what_it_said(name):
    made = REGRESSORS[name]()
    np.testing.assert_allclose(again(made).predict(NUMBERS), made.predict(NUMBERS), rtol=1e-6)


def test_a_ranker_says_what_it_said():
    ranker = xgboost.XGBRanker(n_estimators=3).fit(NUMBERS, PLACES, qid=np.arange(ROWS) // 10)
    np.testing.assert_allclose(again(ranker).predict(NUMBERS), ranker.predict(NUMBERS), rtol=1e-6)


@pytest.mark.parametrize("zipmap", [True, False])
def test_onnx_is_read_back_and_says_what_scikit_learn_says(zipmap):
    made = LogisticRegression().fit(NUMBERS.to_numpy(), NAMES)
    content = skl2onnx.to_onnx(
        made, NUMBERS.to_numpy()[:1], options={"zipmap": zipmap}
    ).SerializeToString()
    loaded = again(OnnxModel(content, classes=made.classes_))
    expected = made.predict_proba(NUMBERS.to_numpy())
    np.testing.assert_allclose(loaded.predict_proba(NUMBERS), expected, atol=1e-5)
    assert list(loaded.predict(NUMBERS)) == list(made.predict(NUMBERS.to_numpy()))


def test_a_file_that_names_another_class_is_not_obeyed():
    files = formats.write(REGRESSORS["xgboost"]())
    files["model.json"] = b'{"type": "Booster", "classes": [], "features": []}'
    with pytest.raises(UntrustedModelError, match="Booster is no model of xgboost"):
        formats.read(files, (), "a model")


def test_a_library_that_is_not_there_is_named(monkeypatch):
    files = formats.write(REGRESSORS["lightgbm"]())
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(MissingLibraryError, match="pip install lightgbm"):
        formats.read(files, (), "a model")
