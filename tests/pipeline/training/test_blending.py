"""What the recipe is fitted on: by hand, and in worlds that stand still or turn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from steadfeast.measures import Task
from steadfeast.pipeline.config import ModelConfig
from steadfeast.pipeline.recipes import Blend, Fitted, Target, frame, scores
from steadfeast.pipeline.registry import formats
from steadfeast.pipeline.training.blending import blended, newest, stretches, together

DAY = np.timedelta64(1, "D")
START = np.datetime64("2024-01-01T00:00:00", "us")


def world(slope, *, rows=4000, days=400, seed=0, binary=False):
    """Rows over so many days; what x is worth is `slope` of the time from 0 to 1."""
    rng = np.random.default_rng(seed)
    passed = np.sort(rng.uniform(0, 1, rows))
    x, z = rng.normal(size=(2, rows))
    score = slope(passed) * x + z
    y = (score + rng.logistic(size=rows) > 0) if binary else score + rng.normal(size=rows)
    times = START + (passed * days * 86_400_000_000).astype("timedelta64[us]")
    return pa.table({"x": x, "z": z, "y": y, "event_timestamp": times}), times


def config(**changes) -> ModelConfig:
    given = {"service": "s", "recipe": "t:t", "entities": "e.parquet", "label": "y", "min_rows": 50}
    return ModelConfig(**given | {"task": "regression"} | changes)


def fit(table: pa.Table) -> Fitted:
    rows, y = frame(table, ("x", "z")), table["y"].to_numpy(zero_copy_only=False)
    kind = LogisticRegression if y.dtype == bool else LinearRegression
    return Fitted(kind().fit(rows, y), ("x", "z"))


def judged(table, times, settings):
    """Fit on all but the last 14 days and blend there."""
    target = Target.of(table, "y", settings.task)
    before = times < times.max() - 14 * DAY
    each = stretches(table.filter(pa.array(before)), times[before], settings, target)
    fits = [fit(one) for one in each.values()]
    held_out = table.filter(pa.array(~before))
    fitted, gates = blended(fits, tuple(each), held_out, times[~before], target)
    return fitted, gates, each, target


@pytest.mark.parametrize("share", [1.0, 0.5, 0.125])
def test_the_newest_part_is_of_time(share):
    table, times = world(np.ones_like)
    kept = newest(table, times, share)
    span = times.max() - times.min()
    expected = int(
        (times >= times.max() - np.timedelta64(int(span.astype(int) * share), "us")).sum()
    )
    assert kept.num_rows == expected
    assert kept["event_timestamp"][-1].as_py() == table["event_timestamp"][-1].as_py()


@pytest.mark.parametrize("binary", [False, True])
def test_a_world_that_stands_still_keeps_the_usual_weights(binary):
    task = "binary" if binary else "regression"
    table, times = world(np.ones_like, binary=binary)
    fitted, [gate], each, target = judged(table, times, config(task=task))
    blend = fitted.estimator
    assert isinstance(blend, Blend)
    assert (blend.weights, blend.shares) == ((0.7, 0.2, 0.1), (1.0, 0.5, 0.125))
    assert gate.passed
    assert gate.detail.startswith("fitted on 70% everything known, 20% the newest half")
    # By hand: the weighted mean of what the fits say, whole or read from files.
    rows = frame(table, ("x", "z"))
    parts = [fit(one).estimator for one in each.values()]
    said = [p.predict_proba(rows)[:, 1] if binary else p.predict(rows) for p in parts]
    expected = 0.7 * said[0] + 0.2 * said[1] + 0.1 * said[2]
    for estimator in (blend, formats.read(formats.write(blend), (), "it")):
        np.testing.assert_allclose(scores(estimator, table, ("x", "z"), target), expected)
        if binary:
            np.testing.assert_allclose(estimator.predict_proba(rows)[:, 1], expected)
            np.testing.assert_array_equal(estimator.predict(rows), expected > 0.5)
        else:
            np.testing.assert_allclose(estimator.predict(rows), expected)


def test_a_world_that_has_turned_is_learnt_from_what_came_after():
    table, times = world(lambda t: np.where(t < 0.9, -2.0, 2.0))
    fitted, [gate], _, _ = judged(table, times, config())
    assert fitted.estimator.shares == (0.125,)
    assert "100% the newest eighth: root_mean_squared_error better by" in gate.detail
    assert gate.passed


def test_short_stretches_fold_into_longer_ones():
    table, times = world(np.ones_like, rows=600)
    fitted, _, each, _ = judged(table, times, config(min_rows=100))
    assert tuple(each) == (1.0, 0.5)
    assert fitted.estimator.weights == pytest.approx((0.7, 0.3))
    plain, gates, each, _ = judged(table, times, config(min_rows=300))
    assert tuple(each) == (1.0,)
    assert not gates
    assert isinstance(plain.estimator, LinearRegression)
    assert tuple(judged(table, times, config(window="all"))[2]) == (1.0,)


def test_a_stretch_without_a_class_is_no_stretch():
    table, times = world(np.ones_like)
    names = np.where(times < times.max() - 60 * DAY, np.where(np.arange(4000) % 2, "a", "b"), "a")
    table = table.set_column(2, "y", pa.array(names))
    target = Target.of(table, "y", Task.BINARY)
    found = stretches(table, times, config(task="binary"), target)
    assert tuple(found) == (1.0, 0.5)


def test_parts_with_other_classes_and_features_are_aligned():
    table, _ = world(np.ones_like, rows=300)
    rows = frame(table, ("x", "z"))
    names = np.resize(["a", "b", "c"], 300)
    first = Fitted(LogisticRegression().fit(rows, names), ("x", "z"))
    some = names != "b"
    second = Fitted(LogisticRegression().fit(rows.loc[some, ["z"]], names[some]), ("z",))
    blend = together([first, second], [0.5, 0.5], [1.0, 0.5]).estimator
    assert blend.features == ("x", "z")
    said = blend.predict_proba(rows)
    a, b = first.estimator.predict_proba(rows), second.estimator.predict_proba(rows[["z"]])
    expected = np.column_stack([(a[:, 0] + b[:, 0]) / 2, a[:, 1] / 2, (a[:, 2] + b[:, 1]) / 2])
    np.testing.assert_allclose(said, expected)
    read = formats.read(formats.write(blend), (), "it")
    np.testing.assert_allclose(read.predict_proba(rows), expected)
