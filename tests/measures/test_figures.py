"""Figures of merit against scikit-learn and naive loops; intervals by how often they hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from steadfeast.measures import MEASURES, OneClassError, Sample, Task, figures, measures_of

pairs = st.lists(
    st.tuples(st.booleans(), st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])),
    min_size=2,
    max_size=60,
).filter(lambda rows: len({label for label, _ in rows}) == 2)

numbers = st.lists(
    st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=3, max_size=60
).filter(lambda rows: np.std([label for label, _ in rows]) > 1e-3)


def sample(rows) -> Sample:
    return Sample(*(np.array(column, np.float64) for column in zip(*rows, strict=True)))


def value(name: str, rows: Sample) -> float:
    return MEASURES[name].value(rows)


@given(pairs, st.sampled_from([0.2, 0.5, 0.8]))
def test_scikit_learn_agrees_on_two_classes(rows, at):
    made = sample(rows)
    labels, said = made.truth.astype(int), made.prediction >= at
    scores = {"y_true": labels, "y_score": made.prediction}
    classes = {"y_true": labels, "y_pred": said}
    no_warning = {"zero_division": 0}
    expected = {
        "roc_auc": sk.roc_auc_score(**scores),
        "average_precision": sk.average_precision_score(**scores),
        "accuracy": sk.accuracy_score(**classes),
        "balanced_accuracy": sk.balanced_accuracy_score(**classes),
        "brier_score": sk.brier_score_loss(labels, made.prediction),
    }
    for average in ("binary", "macro", "weighted"):
        tail = "" if average == "binary" else f"_{average}"
        how = classes | no_warning | {"average": average}
        expected[f"precision{tail}"] = sk.precision_score(**how)
        expected[f"recall{tail}"] = sk.recall_score(**how)
        expected[f"f1{tail}"] = sk.f1_score(**how)
    for name, figure in expected.items():
        measure = MEASURES[name]
        measure = measure.with_options({"at": at} if "at" in measure.options else {})
        assert measure.value(made) == pytest.approx(figure, abs=1e-12), name
    loss = sk.log_loss(labels, made.prediction, labels=[0, 1])
    assert value("log_loss", made) == pytest.approx(loss, rel=1e-6, abs=1e-12)


@given(st.integers(0, 10**6), st.integers(3, 5))
def test_scikit_learn_agrees_on_several_classes(seed, classes):
    rng = np.random.default_rng(seed)
    said = rng.dirichlet(np.ones(classes), 60)
    truth = np.r_[np.arange(classes), rng.integers(0, classes, 60 - classes)]
    made, best = Sample(truth.astype(float), said), said.argmax(axis=1)
    expected = {
        "roc_auc_ovr": sk.roc_auc_score(truth, said, multi_class="ovr"),
        "log_loss": sk.log_loss(truth, said),
        "accuracy": sk.accuracy_score(truth, best),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, best),
        "f1_macro": sk.f1_score(truth, best, average="macro"),
        "f1_weighted": sk.f1_score(truth, best, average="weighted"),
        "precision_macro": sk.precision_score(truth, best, average="macro", zero_division=0),
        "recall_weighted": sk.recall_score(truth, best, average="weighted"),
        "brier_score": np.mean(np.sum((said - np.eye(classes)[truth]) ** 2, axis=1)),
        "average_precision": sk.average_precision_score(np.eye(classes)[truth], said),
    }
    for name, figure in expected.items():
        assert value(name, made) == pytest.approx(figure), name


@given(numbers)
def test_scikit_learn_agrees_on_numbers(rows):
    made = sample(rows)
    given_ = made.truth, made.prediction
    expected = {
        "root_mean_squared_error": sk.root_mean_squared_error(*given_),
        "mean_absolute_error": sk.mean_absolute_error(*given_),
        "mean_absolute_percentage_error": sk.mean_absolute_percentage_error(*given_),
        "mean_pinball_loss": sk.mean_pinball_loss(*given_),
        "r2": sk.r2_score(*given_),
    }
    for name, figure in expected.items():
        assert value(name, made) == pytest.approx(figure, rel=1e-6), name
    high = MEASURES["mean_pinball_loss"].with_options({"quantile": 0.9})
    assert high.value(made) == pytest.approx(sk.mean_pinball_loss(*given_, alpha=0.9))


@given(st.integers(0, 10**6), st.sampled_from([2, 5, math.inf]))
def test_scikit_learn_agrees_on_rankings(seed, top):
    """Ties included; groups without a relevant row are left out."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (6, 7)).astype(float)
    said = rng.integers(0, 5, (6, 7)).astype(float)
    groups = np.repeat(["a", "b", "c", "d", "e", "f"], 7)
    order = rng.permutation(42)
    made = Sample(truth.ravel()[order], said.ravel()[order], {"groups": groups[order]})
    k = None if top == math.inf else top
    whole = [sk.ndcg_score(truth[[i]], said[[i]], k=k) for i in range(6) if truth[i].any()]
    measure = MEASURES["ndcg"].with_options({"top": top})
    assert measure.value(made) == pytest.approx(np.mean(whole))


@given(pairs)
def test_calibration_error_is_that_of_a_loop_over_bins(rows):
    error = 0.0
    for k in range(10):
        inside = [(y, p) for y, p in rows if min(int(p * 10), 9) == k]
        if inside:
            gap = np.mean([p for _, p in inside]) - np.mean([y for y, _ in inside])
            error += len(inside) / len(rows) * abs(gap)
    assert value("calibration_error", sample(rows)) == pytest.approx(error, abs=1e-12)


@given(pairs)
def test_every_interval_holds_its_value_and_stays_in_range(rows):
    made = sample(rows)
    for measure in measures_of(Task.BINARY):
        low, high = measure.ends(made)
        assert low - 1e-9 <= measure.value(made) <= high + 1e-9, measure.name
        if measure.name not in ("log_loss", "brier_score"):
            assert -1e-12 <= low <= high <= 1 + 1e-12, measure.name


@given(pairs)
def test_delong_is_the_variance_of_a_double_loop(rows):
    """Placement values counted pair by pair, as DeLong wrote them."""
    ones = [p for y, p in rows if y]
    zeros = [p for y, p in rows if not y]
    wins = np.array([[(p > q) + 0.5 * (p == q) for q in zeros] for p in ones])
    area = wins.mean()
    variance = sum(
        np.var(wins.mean(axis=axis), ddof=1) / wins.shape[1 - axis]
        for axis in (0, 1)
        if wins.shape[1 - axis] > 1
    )
    low, high = MEASURES["roc_auc"].ends(sample(rows))
    if variance > 1e-12 and 0 < area < 1:
        width = 1.959963984540054 * math.sqrt(variance)
        for end, sign in ((low, -1), (high, 1)):
            logit = math.log(area / (1 - area)) + sign * width / (area * (1 - area))
            assert end == pytest.approx(1 / (1 + math.exp(-logit)) if logit > -700 else 0, abs=1e-9)


def test_wilson_is_that_of_a_closed_form():
    """Wilson (1927), written out."""
    for successes, trials in itertools.product((0, 1, 7, 50), (50, 400)):
        share, z = successes / trials, stats.norm.ppf(0.975)
        middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
        width = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
        width /= 1 + z * z / trials
        assert figures.wilson(successes, trials) == pytest.approx(
            (middle - width, middle + width), abs=1e-12
        )


def classified(rng, rows):
    """Scores that are off by a known factor, and labels that follow the true chance."""
    score = rng.beta(1.2, 3, rows)
    return Sample((rng.random(rows) < score**1.3).astype(float), score)


def regressed(rng, rows):
    truth = np.maximum(rng.normal(10, 3, rows), 3)  # a share of nearly nothing has no mean
    return Sample(truth, truth + rng.standard_t(6, rows))


@pytest.mark.parametrize(
    ("task", "name"),
    [(task, one.name) for task in (Task.BINARY, Task.REGRESSION) for one in measures_of(task)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(task, name):
    """400 samples of 600 rows, against the figure on a million: 95 % of them, give or take."""
    measure = MEASURES[name]
    made = classified if task is Task.BINARY else regressed
    true = measure.value(made(np.random.default_rng(1), 1_000_000))
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(400):
        low, high = measure.ends(made(rng, 600))
        inside += low <= true <= high
    assert 0.92 <= inside / 400 <= 0.985


def test_a_resampled_interval_is_that_of_the_mean():
    """Of what has a closed form; above 10,000 rows fewer are drawn, and the width still fits."""
    rng = np.random.default_rng(3)
    for rows in (500, 40_000):
        made = regressed(rng, rows)
        measure = MEASURES["mean_absolute_error"]
        closed = measure.ends(made)
        drawn = figures.resampled(lambda few, made=made: measure.value(made.take(few)), rows)  # noqa: B023
        assert drawn[1] - drawn[0] == pytest.approx(closed[1] - closed[0], rel=0.15)


def test_what_labels_cannot_say_is_an_error():
    for name in ("roc_auc", "r2", "average_precision"):
        with pytest.raises(OneClassError):
            value(name, Sample(np.ones(5), np.linspace(0, 1, 5)))
    with pytest.raises(OneClassError):
        value("ndcg", Sample(np.zeros(4), np.ones(4), {"groups": np.array(list("aabb"))}))
