"""Performance without labels: against double loops, scikit-learn, and labels drawn afterwards."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression

from steadfeast.measures import MEASURES, Sample, Task
from steadfeast.monitor.performance.estimated import Estimator, expected, fit
from steadfeast.monitor.profiles.binning import edges_of
from steadfeast.monitor.profiles.profile import profile

chances = st.lists(
    st.tuples(st.floats(0, 1) | st.sampled_from([0.2, 0.5]), st.floats(0.05, 0.95)),
    min_size=2,
    max_size=7,
)


def of(name, truth, said):
    return MEASURES[name].value(Sample(truth, said))


@given(chances)
def test_expected_figures_are_means_over_every_outcome(rows):
    """All labellings, weighted by how likely they are; of ratios, the ratio of the means."""
    said, chance = (np.array(column) for column in zip(*rows, strict=True))
    found = expected(said, chance)
    sums = dict.fromkeys(("accuracy", "log_loss", "wins", "pairs", "both", "either"), 0.0)
    for labels in itertools.product((0.0, 1.0), repeat=len(rows)):
        truth = np.array(labels)
        weight = float(np.prod(np.where(truth > 0.5, chance, 1 - chance)))
        sums["accuracy"] += weight * of("accuracy", truth, said)
        sums["log_loss"] += weight * of("log_loss", truth, said)
        for i, j in itertools.permutations(range(len(rows)), 2):
            if truth[i] > truth[j]:
                sums["pairs"] += weight
                sums["wins"] += weight * ((said[i] > said[j]) + 0.5 * (said[i] == said[j]))
        both = (truth > 0.5) & (said >= 0.5)
        sums["both"] += weight * both.sum()
        sums["either"] += weight * ((truth > 0.5).sum() + (said >= 0.5).sum())
    assert found["accuracy"] == pytest.approx(sums["accuracy"])
    assert found["log_loss"] == pytest.approx(sums["log_loss"])
    assert found["roc_auc"] == pytest.approx(sums["wins"] / sums["pairs"])
    assert found["f1"] == pytest.approx(2 * sums["both"] / sums["either"])


def table(rng, rows, shift=0.0):
    """A score that is too bold, by a known curve, and labels that follow the true chance."""
    x = rng.normal(shift, 1.5, rows)
    chance = 1 / (1 + np.exp(-x))
    said = 1 / (1 + np.exp(-2 * x))
    label = (rng.random(rows) < chance).astype(float)
    return pa.table({"x": x, "prediction": said, "label": label})


def test_a_classifiers_drop_under_shifted_inputs_is_seen_before_its_labels():
    """Fitted where scores are spread, asked where they are not; the truth is drawn afterwards."""
    rng = np.random.default_rng(0)
    known = table(rng, 20_000)
    estimator = fit(known, edges_of(known, ("x",)), Task.BINARY)
    for shift in (0.0, -1.0, 1.0):
        later = table(rng, 100_000, shift)
        truth, said = later["label"].to_numpy(), later["prediction"].to_numpy()
        found = estimator.estimate(said, None)
        for name in ("roc_auc", "accuracy", "f1", "log_loss", "calibration_error"):
            assert found[name] == pytest.approx(of(name, truth, said), abs=0.015), name
    # The bold scores taken at their word would promise far more.
    naive = expected(said, said)
    assert naive["accuracy"] - found["accuracy"] > 0.05


def test_the_calibration_is_isotonic_regression():
    """Scikit-learn's, at the middles of the steps, but for the half rows that keep it from 0."""
    known = table(np.random.default_rng(1), 5_000)
    estimator = fit(known, edges_of(known, ("x",)), Task.BINARY)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(
        known["prediction"].to_numpy(), known["label"].to_numpy()
    )
    at = np.linspace(0.02, 0.98, 97)
    ours = np.interp(at, estimator.scores, estimator.chances)
    assert np.abs(ours - theirs.predict(at)).mean() < 0.02
    assert list(estimator.chances) == sorted(estimator.chances)
    assert min(estimator.chances) > 0
    assert max(estimator.chances) < 1


def test_one_row_at_the_end_says_nothing_of_all_low_scores():
    """A lowest score of its own, of either class, once put a floor under every chance."""
    rng = np.random.default_rng(5)
    known = table(rng, 5_000)
    first = pa.table({"x": [-9.0], "prediction": [0.0], "label": [0.0]})
    estimator = fit(pa.concat_tables([first, known]), edges_of(known, ("x",)), Task.BINARY)
    # Said .0025, which is a logit of -6 on the bold side: the true chance is half the logit.
    assert np.interp(0.0025, estimator.scores, estimator.chances) < 0.08
    last = pa.table({"x": [9.0], "prediction": [1.0], "label": [1.0]})
    estimator = fit(pa.concat_tables([known, last]), edges_of(known, ("x",)), Task.BINARY)
    assert np.interp(0.9975, estimator.scores, estimator.chances) > 0.92


def regression(rng, rows, shift=0.0):
    """Errors that grow with `x`, and are large for one kind; some rows have no `x`."""
    x = rng.normal(shift, 1, rows)
    kind = rng.choice(["calm", "wild"], rows, p=[0.8 - 0.3 * (shift > 0), 0.2 + 0.3 * (shift > 0)])
    said = rng.normal(10, 2, rows)
    spread = 1 + np.clip(x, 0, None) + 2 * (kind == "wild")
    truth = said + spread * rng.normal(size=rows)
    gone = rng.random(rows) < 0.05
    return pa.table(
        {
            "x": pa.array(np.where(gone, np.nan, x), mask=gone),
            "kind": kind,
            "prediction": said,
            "label": truth,
        }
    )


def test_a_regressors_loss_is_estimated_from_the_profile_alone():
    rng = np.random.default_rng(2)
    known = regression(rng, 20_000)
    edges = edges_of(known, ("x", "kind", "prediction"))
    estimator = Estimator.from_json(fit(known, edges, Task.REGRESSION).to_json())
    features = ["x", "kind", "prediction"]
    model = HistGradientBoostingRegressor(categorical_features=["kind"], random_state=0)
    frame = known.select(features).to_pandas()
    frame["kind"] = frame["kind"].astype("category")
    model.fit(frame, np.abs(known["label"].to_numpy() - known["prediction"].to_numpy()))
    for shift in (0.0, 1.0):
        later = regression(rng, 100_000, shift)
        said, truth = (later[name].to_numpy() for name in ("prediction", "label"))
        found = estimator.estimate(said, profile(later.to_batches(), edges))
        assert found["mean_absolute_error"] == pytest.approx(
            of("mean_absolute_error", truth, said), rel=0.05
        )
        assert found["root_mean_squared_error"] == pytest.approx(
            of("root_mean_squared_error", truth, said), rel=0.06
        )
        frame = later.select(features).to_pandas()
        frame["kind"] = frame["kind"].astype("category")
        theirs = float(model.predict(frame).mean())
        assert found["mean_absolute_error"] == pytest.approx(theirs, rel=0.05)
    # Had nothing been estimated, the old figure would have been far off.
    held = np.abs(known["label"].to_numpy() - known["prediction"].to_numpy()).mean()
    assert abs(held - of("mean_absolute_error", truth, said)) > 0.5


def test_without_anything_to_fit_on_there_is_no_estimator():
    none = pa.table({"prediction": [0.1, 0.2], "label": pa.nulls(2, pa.float64())})
    edges = edges_of(none, ("prediction",))
    assert fit(none, edges, Task.BINARY) is None
    one = pa.table({"prediction": [0.1, 0.2], "label": [1.0, 1.0]})
    assert fit(one, edges, Task.BINARY) is None
    assert fit(one, edges, Task.REGRESSION) is not None


def test_a_window_without_predictions_has_no_estimate():
    known = table(np.random.default_rng(3), 100)
    estimator = fit(known, edges_of(known, ("x",)), Task.BINARY)
    assert estimator.estimate(np.array([]), None) == {}
