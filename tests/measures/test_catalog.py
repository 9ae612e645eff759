"""Measures by name: scikit-learn's names and directions, options, and one's own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import get_scorer, get_scorer_names

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.measures import (
    MEASURES,
    Measure,
    MeasureError,
    Sample,
    Task,
    measure_named,
    measures_of,
)

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(400, 3))
LABELS = (ROWS[:, 0] + RNG.normal(size=400) > 0).astype(int)
CLASSES = np.digitize(ROWS[:, 0] + 0.5 * RNG.normal(size=400), [-0.5, 0.5])
VALUES = ROWS[:, 0] + RNG.normal(size=400)


@pytest.mark.parametrize("name", sorted(get_scorer_names()))
def test_a_name_of_scikit_learns_scorers_has_its_value_and_its_sign(name):
    try:
        measure = measure_named(name)
    except NotFoundError:
        return
    task = next(
        task for task in (Task.BINARY, Task.MULTICLASS, Task.REGRESSION) if measure.suits(task)
    )
    truth = {Task.BINARY: LABELS, Task.MULTICLASS: CLASSES, Task.REGRESSION: VALUES}[task]
    if task is Task.REGRESSION:
        model = LinearRegression().fit(ROWS, truth)
        said = model.predict(ROWS)
    else:
        model = LogisticRegression().fit(ROWS, truth)
        said = model.predict_proba(ROWS)
        said = said[:, 1] if task is Task.BINARY else said
    assert measure.value(Sample(truth.astype(float), said)) == pytest.approx(
        get_scorer(name)(model, ROWS, truth)
    )
    assert not measure.lower_is_better


def test_every_scorer_that_people_watch_is_there():
    wanted = (
        "accuracy balanced_accuracy average_precision roc_auc roc_auc_ovr f1 f1_macro f1_weighted "
        "precision precision_macro precision_weighted recall recall_macro recall_weighted "
        "neg_log_loss neg_brier_score r2 neg_mean_absolute_error neg_root_mean_squared_error "
        "neg_mean_absolute_percentage_error"
    )
    for name in wanted.split():
        assert name in get_scorer_names()
        assert measure_named(name).name == name


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("auc", "roc_auc"),
        ("rmse", "root_mean_squared_error"),
        ("neg_mae", "neg_mean_absolute_error"),
    ],
)
def test_short_names_stand_for_long_ones(short, name):
    assert measure_named(short).name == name


def test_drop_knows_which_way_is_worse():
    assert MEASURES["roc_auc"].drop(0.8, 0.7) == pytest.approx(0.1)
    assert MEASURES["log_loss"].drop(0.8, 0.7) == pytest.approx(-0.1)
    assert measure_named("neg_log_loss").drop(-0.7, -0.8) == pytest.approx(0.1)


def test_the_interval_of_a_negated_figure_is_turned_round():
    made = Sample(VALUES, VALUES + 1 + RNG.normal(size=400))
    for name in ("root_mean_squared_error", "mean_absolute_error"):
        low, high = measure_named(name).ends(made)
        assert measure_named(f"neg_{name}").ends(made) == pytest.approx((-high, -low))


def test_options_are_told_by_the_name_and_checked():
    assert measure_named("recall", {"at": 0.25}).name == "recall_at_0.25"
    with pytest.raises(MeasureError, match="has no option quantile; it takes at"):
        measure_named("recall", {"quantile": 0.5})
    with pytest.raises(MeasureError, match="it takes no options"):
        measure_named("roc_auc", {"at": 0.5})


OWN = """
from steadfeast.measures import Measure, Task

def profit(truth, prediction):
    return (prediction >= 0.5) * (2 * truth - 1)

def earned(truth, prediction, amount):
    return float(((prediction >= 0.5) * truth * amount).sum())

worst = Measure('any', lambda t, p: float(abs(t - p).max()), frozenset({Task.REGRESSION}),
                'minutes', lower_is_better=True)
number = 3

def nothing():
    return 0.0
"""


def test_a_measure_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_measures.py").write_text(OWN)
    made = Sample(
        np.array([1.0, 0, 1, 1]),
        np.array([0.9, 0.8, 0.1, 0.6]),
        {"amount": np.array([10.0, 20, 30, 40])},
    )
    profit = measure_named("own_measures:profit", folder=tmp_path)
    assert (profit.name, profit.value(made)) == ("profit", 0.25)
    assert all(profit.suits(task) for task in Task)
    low, high = profit.ends(made)  # of the mean over the rows
    assert (low + high) / 2 == pytest.approx(0.25)
    earned = measure_named("own_measures:earned", folder=tmp_path)
    assert (earned.columns, earned.value(made)) == (("amount",), 50)
    with pytest.raises(MeasureError, match="needs column amount of the rows"):
        earned.value(Sample(made.truth, made.prediction))

    monkeypatch.syspath_prepend(tmp_path)
    worst = measure_named("own_measures:worst")
    assert (worst.name, worst.unit, worst.lower_is_better) == ("worst", "minutes", True)
    assert [one.name for one in measures_of(Task.REGRESSION, worst)][-2:] == ["r2", "worst"]
    for broken in ("nothing", "missing", "number"):
        with pytest.raises(MeasureError, match=broken):
            measure_named(f"own_measures:{broken}")
    with pytest.raises(MeasureError, match="no_such_module"):
        measure_named("no_such_module:profit")
    with pytest.raises(NotFoundError, match="profitt"):
        measure_named("profitt")


def test_every_measure_is_described():
    assert all(isinstance(one, Measure) and one.name == name for name, one in MEASURES.items())
    for task in Task:
        measures = measures_of(task)
        assert measures
        assert all(one.suits(task) for one in measures)
