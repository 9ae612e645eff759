"""Every task, from labels of any type to a model that is served, beside scikit-learn's figures."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn import metrics as sk

from steadfeast import TrainingSet, frame
from steadfeast.measures import Task
from steadfeast.pipeline.config import ModelConfig
from steadfeast.pipeline.recipes import LabelsError, ScoresError, Target, scores
from steadfeast.pipeline.training import retrain
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.shop_world import MODEL, at


def held_out(pipeline, run: pb.Run) -> pa.Table:
    """The rows that the run was judged on, of its training set."""
    scored = pq.read_table(pipeline.place(run.scored_uri))
    table = TrainingSet.load(pipeline.place(run.manifest_uri)).table
    return table.filter(scored["held_out"])


@pytest.mark.parametrize(
    ("changes", "positive"),
    [
        ({"label": "answer"}, "yes"),
        ({"label": "answer", "positive": "'no'"}, "no"),
        ({"label": "flag"}, True),
    ],
)
def test_two_classes_of_any_type(pipeline, changes, positive):
    chosen = pipeline.with_config(recipe="train:classes", refit="none", **changes)
    run = chosen.run(at(40))
    assert run.state == pb.RUN_STATE_PROMOTED, run.reason
    champion = chosen.registry.champion(MODEL)
    table = held_out(pipeline, run)
    own = list(champion.estimator.classes_)
    said = champion.estimator.predict_proba(frame(table, champion.features))[:, own.index(positive)]
    np.testing.assert_allclose(champion.predict(table), said)
    truth = np.array(table[changes["label"]].to_pylist()) == positive
    assert run.metrics["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, said))
    assert run.metrics["f1"] == pytest.approx(sk.f1_score(truth, said >= 0.5))
    chosen.queue.close()


@pytest.mark.parametrize("recipe", ["classes", "boosted"])
def test_several_classes_one_score_each(pipeline, recipe):
    """The second recipe encodes the labels for XGBoost, and says what its scores mean."""
    changes = {
        "label": "size",
        "task": "multiclass",
        "gates": "[{metric: f1_macro, at_least: 0.5}]",
    }
    chosen = pipeline.with_config(recipe=f"train:{recipe}", refit="none", **changes)
    run = chosen.run(at(40))
    assert run.state == pb.RUN_STATE_PROMOTED, run.reason
    champion, table = chosen.registry.champion(MODEL), held_out(chosen, run)
    assert champion.facts.target.classes == ("large", "medium", "small")
    said = champion.predict(table)
    assert said.shape == (table.num_rows, 3)
    truth, best = table["size"].to_pylist(), np.array(champion.facts.target.classes)[said.argmax(1)]
    assert run.metrics["accuracy"] == pytest.approx(sk.accuracy_score(truth, best))
    assert run.metrics["f1_macro"] == pytest.approx(sk.f1_score(truth, best, average="macro"))
    assert run.metrics["roc_auc_ovr"] == pytest.approx(
        sk.roc_auc_score(truth, said, multi_class="ovr")
    )
    scored = pq.read_table(pipeline.place(run.scored_uri))
    assert [name for name in scored.column_names if name.startswith("prediction")] == [
        "prediction",
        "prediction_large",
        "prediction_medium",
        "prediction_small",
    ]
    again = chosen.run(at(80))  # the champion is compared, class by class
    assert "f1_macro at_least" in {gate.name for gate in again.gates}
    chosen.queue.close()


def test_a_number(pipeline):
    chosen = pipeline.with_config(
        recipe="train:numbers", label="amount", task="regression", refit="none"
    )
    run = chosen.run(at(40))
    assert run.state == pb.RUN_STATE_PROMOTED, run.reason
    champion, table = chosen.registry.champion(MODEL), held_out(chosen, run)
    truth, said = table["amount"].to_numpy(), champion.predict(table)
    assert run.metrics["root_mean_squared_error"] == pytest.approx(
        sk.root_mean_squared_error(truth, said)
    )
    assert run.metrics["r2"] == pytest.approx(sk.r2_score(truth, said))
    second = chosen.run(at(80))  # the world has turned: the old model is far off
    gates = {gate.name: gate for gate in second.gates}
    gate = gates["root_mean_squared_error not_worse_by"]
    assert gate.passed
    assert gate.value < gate.champion / 2
    assert gate.difference == pytest.approx(gate.champion - gate.value)
    chosen.queue.close()


def test_an_order(pipeline):
    chosen = pipeline.with_config(recipe="train:order", task="ranking", group="shop", refit="none")
    run = chosen.run(at(40))
    assert run.state == pb.RUN_STATE_PROMOTED, run.reason
    champion, table = chosen.registry.champion(MODEL), held_out(chosen, run)
    said, truth = champion.predict(table), table["sold"].to_numpy()
    shops = np.array(table["shop"].to_pylist())
    expected = [
        sk.ndcg_score([truth[shops == shop]], [said[shops == shop]])
        for shop in set(shops)
        if truth[shops == shop].any() and (shops == shop).sum() > 1
    ]
    alone = sum(truth[shops == shop].any() and (shops == shop).sum() == 1 for shop in set(shops))
    assert run.metrics["ndcg"] == pytest.approx(np.mean([*expected, *[1.0] * alone]))
    chosen.queue.close()


# -- what does not fit is said before anything is built ------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"label": "amount"}, "task binary needs two values, and there are .* for a number set"),
        ({"label": "size"}, "there are 3: 'large', 'medium', 'small'; set task: multiclass"),
        ({"label": "amount", "task": "multiclass"}, "at most 200 values.*set task: regression"),
        ({"label": "size", "task": "regression"}, "is .*string, and task regression"),
        (
            {"label": "answer", "positive": "maybe"},
            "positive is 'maybe'; the values are 'no', 'yes'",
        ),
        ({"task": "ranking", "group": "query"}, "has no column query"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused_in_one_short_message(
    pipeline, changes, problem, monkeypatch
):
    def never(*_: object) -> None:
        raise AssertionError("nothing is built")

    monkeypatch.setattr(retrain.featurestore.Store, "open", never)
    chosen = pipeline.with_config(recipe="train:classes", **changes)
    with pytest.raises(Exception, match=problem) as caught:
        chosen.run(at(40))
    assert len(str(caught.value)) < 400
    chosen.queue.close()


def test_a_classifier_of_other_classes_says_what_to_give():
    class Coded:
        classes_ = np.array([0, 1])

        @staticmethod
        def predict_proba(rows):
            return np.full((len(rows), 2), 0.5)

    table = pa.table({"x": [1.0, 2.0], "answer": ["yes", "no"]})
    target = Target.of(table, "answer", Task.BINARY)
    with pytest.raises(ScoresError, match=r"give Fitted\(..., classes=\[...\]\)"):
        scores(Coded(), table, ["x"], target)
    np.testing.assert_array_equal(scores(Coded(), table, ["x"], target, ["no", "yes"]), [0.5, 0.5])
    with pytest.raises(LabelsError, match="has values that are no class: 'perhaps'"):
        target.truth(pa.table({"answer": ["perhaps"]}))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"task": "ranking"}, "task: ranking needs group"),
        ({"group": "shop"}, "group goes with task: ranking, not with binary"),
        ({"task": "regression", "positive": 1}, "positive goes with task: binary"),
        (
            {"task": "regression", "gates": [{"metric": "roc_auc", "at_least": 1}]},
            "these are: root_",
        ),
        ({"gates": {"metric": "auc"}}, "is a list: - {metric"),
        ({"task": "clustering"}, "binary"),
    ],
)
def test_a_configuration_that_cannot_be_is_an_error(fields, problem):
    given = {"service": "s", "recipe": "a:b", "entities": "x", "label": "y"}
    with pytest.raises(ValidationError, match=problem):
        ModelConfig.model_validate(given | fields)


def test_a_model_of_other_classes_is_compared_by_the_classes_of_now():
    now = Target(Task.MULTICLASS, "size", ("large", "small"))
    np.testing.assert_array_equal(
        now.aligned(np.array([[0.2, 0.3, 0.5]]), ("small", "medium", "large")), [[0.5, 0.2]]
    )
    two = Target(Task.BINARY, "y", ("no", "yes"))
    np.testing.assert_array_equal(two.aligned(np.array([0.3]), ("yes", "no")), [0.7])
