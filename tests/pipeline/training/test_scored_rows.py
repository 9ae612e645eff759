"""Importance against scikit-learn's, and the file that the monitor reads."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.inspection import permutation_importance

from steadfeast import Fitted, frame
from steadfeast.measures import MEASURES, Task
from steadfeast.pipeline.recipes import Target
from steadfeast.pipeline.training import Model, scored_rows

FEATURES = ("strong", "weak", "idle")


def rows(seed):
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=6_000) for name in FEATURES}
    chance = 1 / (1 + np.exp(-(3 * columns["strong"] + 0.7 * columns["weak"])))
    columns["late"] = (rng.random(6_000) < chance).astype(int)
    return pa.table(columns)


@pytest.fixture(scope="module")
def held_out():
    return rows(0)


@pytest.fixture(scope="module")
def model():
    table = rows(1)
    made = HistGradientBoostingClassifier(max_iter=40, random_state=0)
    return made.fit(frame(table, FEATURES), table["late"].to_numpy())


def fitted(estimator):
    return Model(Fitted(estimator, FEATURES), Target(Task.BINARY, "late", (0, 1)))


@pytest.mark.parametrize(
    ("metric", "scoring"), [("roc_auc", "roc_auc"), ("log_loss", "neg_log_loss")]
)
def test_importance_is_scikit_learns(held_out, model, metric, scoring):
    found = scored_rows.importance(fitted(model), held_out, MEASURES[metric])
    theirs = permutation_importance(
        model,
        frame(held_out, FEATURES),
        held_out["late"].to_numpy(),
        scoring=scoring,
        n_repeats=3,
        random_state=1,
    )
    expected = dict(zip(FEATURES, theirs.importances_mean, strict=True))
    assert found["strong"] == pytest.approx(expected["strong"], rel=0.1)
    assert found["weak"] == pytest.approx(expected["weak"], rel=0.4)
    assert 0 <= found["idle"] < 0.1 * found["weak"]
    assert found == scored_rows.importance(fitted(model), held_out, MEASURES[metric])


def test_one_class_has_no_importance(held_out, model):
    ones = held_out.filter(pa.array(held_out["late"].to_numpy() == 1))
    assert scored_rows.importance(fitted(model), ones, MEASURES["roc_auc"]) == {}


def test_the_file_has_the_rows_what_was_said_and_the_importance(held_out, tmp_path):
    path = tmp_path / "scored" / "r.parquet"
    said = np.linspace(0, 1, held_out.num_rows)
    unseen = said > 0.8
    for _ in range(2):
        scored_rows.write(path, held_out.select(["late"]), said, (0, 1), unseen, {"strong": 0.2})
    table = pq.read_table(path)
    assert table.column_names == ["late", "prediction", "held_out"]
    assert table["late"].equals(held_out["late"])
    assert table["prediction"].to_numpy() == pytest.approx(said)
    assert table["held_out"].to_pylist() == unseen.tolist()
    assert json.loads(table.schema.metadata[b"steadfeast.importance"]) == {"strong": 0.2}
    assert [one.name for one in path.parent.iterdir()] == ["r.parquet"]
