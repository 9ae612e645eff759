"""Figures of merit against scikit-learn and naive loops; intervals by how often they hold."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.performance import metrics
from steadfeast.monitor.performance.metrics import (
    MEASURES,
    Measure,
    MeasureError,
    OneClassError,
    Task,
    measure_named,
)

pairs = st.lists(
    st.tuples(st.booleans(), st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])),
    min_size=2,
    max_size=60,
).filter(lambda rows: len({label for label, _ in rows}) == 2)

numbers = st.lists(
    st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=3, max_size=60
).filter(lambda rows: np.std([label for label, _ in rows]) > 1e-3)


def arrays(rows):
    return (np.array(column, np.float64) for column in zip(*rows, strict=True))


@given(pairs)
def test_scikit_learn_agrees_on_classifiers(rows):
    truth, said = arrays(rows)
    labels = truth.astype(int)
    assert metrics.auc(truth, said) == pytest.approx(sk.roc_auc_score(labels, said))
    assert metrics.accuracy(truth, said) == sk.accuracy_score(labels, said >= 0.5)
    assert metrics.f1(truth, said) == pytest.approx(
        sk.f1_score(labels, said >= 0.5, zero_division=0)
    )
    assert metrics.log_loss(truth, said) == pytest.approx(
        sk.log_loss(labels, said, labels=[0, 1]), rel=1e-6, abs=1e-12
    )


@given(numbers)
def test_scikit_learn_agrees_on_regressors(rows):
    truth, said = arrays(rows)
    assert metrics.rmse(truth, said) == pytest.approx(sk.root_mean_squared_error(truth, said))
    assert metrics.mae(truth, said) == pytest.approx(sk.mean_absolute_error(truth, said))
    assert metrics.r2(truth, said) == pytest.approx(sk.r2_score(truth, said), rel=1e-6)


@given(pairs)
def test_calibration_error_is_that_of_a_loop_over_bins(rows):
    error = 0.0
    for k in range(10):
        inside = [(y, p) for y, p in rows if min(int(p * 10), 9) == k]
        if inside:
            gap = np.mean([p for _, p in inside]) - np.mean([y for y, _ in inside])
            error += len(inside) / len(rows) * abs(gap)
    assert metrics.calibration_error(*arrays(rows)) == pytest.approx(error, abs=1e-12)


@given(pairs)
def test_every_interval_holds_its_value_and_stays_in_range(rows):
    truth, said = arrays(rows)
    for one in MEASURES.values():
        if one.task is not Task.CLASSIFICATION:
            continue
        low, high = one.ends(truth, said)
        assert low - 1e-9 <= one.function(truth, said) <= high + 1e-9
        if one.name != "log_loss":
            assert -1e-12 <= low <= high <= 1 + 1e-12


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
    low, high = metrics.auc_interval(*arrays(rows))
    if variance > 1e-12 and 0 < area < 1:
        width = 1.959963984540054 * math.sqrt(variance)
        for end, sign in ((low, -1), (high, 1)):
            logit = math.log(area / (1 - area)) + sign * width / (area * (1 - area))
            assert end == pytest.approx(1 / (1 + math.exp(-logit)) if logit > -700 else 0, abs=1e-9)


def test_wilson_is_scipys():
    for successes, trials in itertools.product((0, 1, 7, 50), (50, 400)):
        theirs = stats.binomtest(successes, trials).proportion_ci(0.95, "wilson")
        assert metrics.wilson(successes, trials) == pytest.approx((theirs.low, theirs.high))


def classified(rng, rows):
    """Scores that are off by a known factor, and labels that follow the true chance."""
    score = rng.beta(1.2, 3, rows)
    return (rng.random(rows) < score**1.3).astype(float), score


def regressed(rng, rows):
    truth = rng.normal(10, 3, rows)
    return truth, truth + rng.standard_t(6, rows)


@pytest.mark.parametrize("name", MEASURES)
def test_intervals_hold_the_truth_as_often_as_they_say(name):
    """400 samples of 600 rows, against the figure on a million: 95 % of them, give or take."""
    one = MEASURES[name]
    made = classified if one.task is Task.CLASSIFICATION else regressed
    true = one.function(*made(np.random.default_rng(1), 1_000_000))
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(400):
        low, high = one.ends(*made(rng, 600))
        inside += low <= true <= high
    assert 0.92 <= inside / 400 <= 0.985


def test_a_resampled_interval_is_that_of_the_mean():
    """Of what has a closed form; above 10,000 rows fewer are drawn, and the width still fits."""
    rng = np.random.default_rng(3)
    for rows in (500, 40_000):
        truth, said = regressed(rng, rows)
        closed = metrics.mae_interval(truth, said)
        drawn = metrics.resampled(metrics.mae, truth, said)
        assert drawn[1] - drawn[0] == pytest.approx(closed[1] - closed[0], rel=0.15)


def test_what_labels_cannot_say_is_an_error():
    for name in ("auc", "r2"):
        with pytest.raises(OneClassError):
            MEASURES[name].function(np.ones(5), np.linspace(0, 1, 5))


def test_drop_knows_which_way_is_worse():
    assert MEASURES["auc"].drop(0.8, 0.7) == pytest.approx(0.1)
    assert MEASURES["rmse"].drop(0.8, 0.7) == pytest.approx(-0.1)


def test_a_measure_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_measures.py").write_text(
        "from steadfeast.monitor.performance.metrics import Measure, Task\n"
        "def profit(truth, prediction):\n"
        "    return float(((prediction >= 0.5) * (2 * truth - 1)).mean())\n"
        "worst = Measure('any', lambda t, p: float(abs(t - p).max()), Task.REGRESSION,\n"
        "                'minutes', lower_is_better=True)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    profit = measure_named("own_measures:profit")
    assert (profit.name, profit.task) == ("profit", Task.CLASSIFICATION)
    truth, said = np.array([1.0, 0, 1, 1]), np.array([0.9, 0.8, 0.1, 0.6])
    assert profit.function(truth, said) == 0.25
    low, high = profit.ends(truth, said)
    assert low < 0.25 < high
    worst = measure_named("own_measures:worst")
    assert (worst.name, worst.unit, worst.lower_is_better) == ("worst", "minutes", True)
    assert [one.name for one in metrics.measures_for("own_measures:worst")] == [
        "rmse",
        "mae",
        "r2",
        "worst",
    ]
    for broken in ("own_measures:nothing", "no_such_module:profit", "own_measures:number"):
        with pytest.raises(MeasureError, match=broken):
            measure_named(broken)
    with pytest.raises(NotFoundError, match="profitt"):
        measure_named("profitt")


def test_every_measure_is_described():
    assert all(isinstance(one, Measure) and one.name == name for name, one in MEASURES.items())
