"""References completed by scored rows and segments, and what detection makes of them."""

import json
from datetime import timedelta

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.measures import MEASURES, Sample
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift import segments
from steadfeast.monitor.drift.detector import Level, detect
from steadfeast.monitor.drift.reference import Reference
from steadfeast.monitor.performance.realized import measured
from steadfeast.monitor.profiles.profile import Window, profile, total
from steadfeast.monitor.references.training_set import ScoredError, own, reference_from
from support.drift_world import DAY, T0, rows, training_set, window

CONFIG = MonitorConfig(
    service="late",
    model="late",
    segments=("kind",),
    performance={"min_labels": 50},
)
NOW = Window(T0 + 60 * DAY, T0 + 67 * DAY, 2100)


def said(table, seed=5):
    """What a model that leans on `x` says, with labels that follow it."""
    rng = np.random.default_rng(seed)
    prediction = 1 / (1 + np.exp(-table["x"].to_numpy().astype(float)))
    label = (rng.random(table.num_rows) < prediction).astype(float)
    place = table.column_names.index("late")
    return table.set_column(place, "late", pa.array(label)).append_column(
        "prediction", pa.array(prediction)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    manifest = training_set(folder / "training", window(0, 49))
    held_out = said(window(35, 14, seed=9)).replace_schema_metadata(
        {"steadfeast.importance": json.dumps({"x": 0.3, "kind": 0.1, "rain": 0.0, "level": 0.0})}
    )
    pq.write_table(held_out, folder / "scored.parquet")
    return manifest, folder / "scored.parquet"


@pytest.fixture(scope="module")
def reference(files):
    manifest, scored = files
    with duckdb.connect() as con:
        return reference_from(con, manifest, CONFIG, scored=scored, performance={"roc_auc": 0.5})


def test_only_held_out_rows_say_what_predictions_are_worth(files, tmp_path):
    """All rows say what predictions look like; those it was trained on, nothing of its skill."""
    table = pq.read_table(files[1])
    seen = table.num_rows // 2
    flattered = table["late"].to_numpy().copy()
    flattered[:seen] = table["prediction"].to_numpy()[:seen] > 0.5  # as if it knew the answers
    place = table.column_names.index("late")
    both = table.set_column(place, "late", pa.array(flattered)).append_column(
        "held_out", pa.array([False] * seen + [True] * (table.num_rows - seen))
    )
    pq.write_table(both, tmp_path / "scored.parquet")
    with duckdb.connect() as con:
        made = reference_from(con, files[0], CONFIG, scored=tmp_path / "scored.parquet")
    later = table.slice(seen)
    truth = roc_auc_score(later["late"].to_numpy(), later["prediction"].to_numpy())
    assert made.performance["roc_auc"] == pytest.approx(truth)
    assert made.estimator.rows == later.num_rows
    assert made.profile.columns["prediction"].rows == table.num_rows


def test_it_survives_the_ledger(reference):
    assert Reference.from_json(reference.to_json()) == reference


def test_what_the_run_does_not_tell_is_measured_on_the_scored_rows(reference, files):
    table = pq.read_table(files[1])
    truth, prediction = table["late"].to_numpy(), table["prediction"].to_numpy()
    values, _ = measured([MEASURES["f1"]], Sample(truth, prediction))
    assert reference.performance["f1"] == values["f1"]
    assert reference.performance["roc_auc"] == 0.5  # what the run said stays


def test_predictions_are_watched_like_a_feature(reference):
    calm, moved = (
        profile(said(window(60, shift=shift)).to_batches(), reference.edges) for shift in (0, 1.5)
    )
    found = {}
    for name, current in (("calm", calm), ("moved", moved)):
        verdicts = {one.feature: one for one in detect(reference, current, NOW, CONFIG)}
        found[name] = verdicts["prediction"]
        assert verdicts["prediction"].source == "predictions"
        assert verdicts["x"].source == "served"
    assert found["calm"].level is Level.OK
    assert found["moved"].level is Level.DRIFT


def test_the_budget_of_false_alarms_is_shared(reference, files):
    with duckdb.connect() as con:
        alone = reference_from(con, files[0], CONFIG)
    shared, whole = reference.thresholds["x"].by_shift, alone.thresholds["x"].by_shift
    assert shared.single > whole.single
    assert "prediction" not in alone.features
    assert alone.estimator is None
    assert alone.impact("x", 1.0) is None


def test_drift_is_ranked_by_effect_and_importance(reference):
    """`x` moves by one standard deviation and carries three quarters of the skill."""
    current = profile(said(window(60, shift=1.0)).to_batches(), reference.edges)
    verdicts = {one.feature: one for one in detect(reference, current, NOW, CONFIG)}
    assert verdicts["x"].impact == pytest.approx(0.75, rel=0.15)
    assert verdicts["rain"].impact == 0
    assert verdicts["flag"].impact is None  # nothing is known of it
    assert verdicts["prediction"].impact is None


def test_only_the_live_versions_predictions_count(reference):
    table = said(window(60)).append_column("model_version", pa.array(["1"] * 1000 + ["2"] * 1100))
    counted = profile(own(table.to_batches(), "2"), reference.edges)
    assert counted.rows == 2100
    assert counted.columns["prediction"].rows == counted.columns["prediction"].usable == 1100
    assert counted.columns["x"].rows == 2100
    everything = profile(own(table.to_batches(), ""), reference.edges)
    assert everything.columns["prediction"].rows == 2100


def test_an_estimate_follows_the_scores(reference):
    """Of all rows, without their labels; the truth is what scikit-learn says with them."""
    later = said(window(60, 7, size=3000), seed=11)
    prediction = later["prediction"].to_numpy()
    found = reference.estimator.estimate(prediction, None)
    assert found["roc_auc"] == pytest.approx(
        roc_auc_score(later["late"].to_numpy(), prediction), abs=0.02
    )


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"prediction": [0.1]}, "no column event_timestamp"),
        ({"event_timestamp": pa.array([T0], pa.timestamp("us", "UTC"))}, "no column prediction"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(files, tmp_path, columns, problem):
    path = tmp_path / "scored.parquet"
    if columns is not None:
        pq.write_table(pa.table(columns), path)
    with duckdb.connect() as con, pytest.raises(ScoredError, match=problem):
        reference_from(con, files[0], CONFIG, scored=path)


@pytest.mark.parametrize("text", ["[1]", '{"x": -1}', '{"x": "much"}', "nothing"])
def test_importance_that_is_none_says_so(files, tmp_path, text):
    table = pq.read_table(files[1]).replace_schema_metadata({"steadfeast.importance": text})
    pq.write_table(table, tmp_path / "scored.parquet")
    with duckdb.connect() as con, pytest.raises(ScoredError, match="importance"):
        reference_from(con, files[0], CONFIG, scored=tmp_path / "scored.parquet")


def test_segments_are_the_filtered_rows(reference):
    """Each is the profile of the rows that pyarrow filters; together they are the whole."""
    table = said(window(60))
    found = segments.profiles(table.to_batches(), reference)
    assert {column for column, _ in found} == {"kind"}
    for value in ("a", "b", "c"):
        mine = table.filter(pc.field("kind") == value)
        assert found["kind", value].columns == profile(mine.to_batches(), reference.edges).columns
    whole = total(found.values(), reference.edges)
    assert whole.columns["x"].counts.tolist() == (
        profile(table.to_batches(), reference.edges).columns["x"].counts.tolist()
    )


def test_a_drift_in_one_segment_is_found_there(reference):
    """`x` moves where `kind` is b, and nowhere else; the model is judged in each part."""
    table = said(window(60, 7, size=1200))
    x = table["x"].to_numpy().copy()
    x[np.array(table["kind"].to_pylist()) == "b"] += 1.5
    table = table.set_column(table.column_names.index("x"), "x", pa.array(x))
    predictions = table.select(["prediction", "kind"]).append_column("label", table["late"])
    found = segments.judge_segments(
        reference, segments.profiles(table.to_batches(), reference), predictions, NOW, CONFIG
    )
    assert [one.value for one in found] == ["a", "b", "c"]  # the largest first
    by_value = {one.value: one for one in found}
    assert by_value["b"].furthest[0].feature == "x"
    assert by_value["b"].furthest[0].level is Level.DRIFT
    assert all(one.feature != "x" or one.level is Level.OK for one in by_value["a"].furthest)
    assert all(one.feature != "prediction" for part in found for one in part.furthest)
    mine = table.filter(pc.field("kind") == "b")
    expected = roc_auc_score(mine["late"].to_numpy(), mine["prediction"].to_numpy())
    assert by_value["b"].metrics["roc_auc"] == pytest.approx(expected)


def test_many_values_are_the_largest_and_the_others(tmp_path):
    table = window(0, 30, size=200)
    sizes = [2 ** min(i, 6) for i in range(40)]
    names = np.repeat([f"v{i:02}" for i in range(40)], sizes)[: table.num_rows]
    names = np.resize(names, table.num_rows)
    table = table.set_column(table.column_names.index("kind"), "kind", pa.array(names))
    manifest = training_set(tmp_path / "t", table)
    with duckdb.connect() as con:
        made = reference_from(con, manifest, CONFIG)
        config = CONFIG.model_copy(update={"segments": ("colour",)})
        with pytest.raises(NotFoundError, match="colour"):
            reference_from(con, manifest, config)
    parts = made.segments["kind"]
    assert len(parts) == segments.MOST
    assert segments.OTHERS in parts
    assert sum(one.rows for one in parts.values()) == table.num_rows
    # A value that the reference never saw, and a column that is gone, are others.
    new = rows(40, 100).set_column(4, "flag", pa.array([True] * 100))
    new = new.set_column(new.column_names.index("kind"), "kind", pa.array(["new"] * 100))
    found = segments.profiles(new.to_batches(), made)
    assert found["kind", segments.OTHERS].rows == 100
    gone = segments.profiles(new.drop_columns(["kind"]).to_batches(), made)
    assert gone["kind", segments.OTHERS].rows == 100


def test_label_delay_is_whole_buckets():
    with pytest.raises(ValueError, match="label_delay"):
        MonitorConfig(service="s", model="m", performance={"label_delay": timedelta(hours=5)})
