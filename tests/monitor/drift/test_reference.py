"""Thresholds: what they promise, on data where the truth is known."""

import duckdb
import numpy as np
import pytest

from steadfeast.featurestore.errors import ManifestError, NotFoundError
from steadfeast.monitor.drift.reference import Reference, build_reference, reference_of
from steadfeast.monitor.profiles.binning import Edges
from steadfeast.monitor.profiles.profile import Profile, Window
from support.drift_world import CONFIG, DAY, FEATURES, T0, profiled, training_set, window


@pytest.fixture
def con():
    with duckdb.connect() as con:
        yield con


@pytest.fixture(scope="module")
def history():
    return window(0, 42)


def test_a_reference_is_built_from_a_training_set_and_survives_json(con, history, tmp_path):
    path = training_set(tmp_path, history)
    found = build_reference(con, path, CONFIG, model_version="3", performance={"roc_auc": 0.75})
    assert found.uri == str(path)
    assert (found.contract, found.model_version) == ("c" * 64, "3")
    assert found.performance == {"roc_auc": 0.75}
    assert found.window == Window(T0, T0 + 42 * DAY, 42 * 300)
    assert found.features == FEATURES
    assert found.columns == tuple(sorted(history.column_names))
    assert found.quietest == 300
    assert found.profile.columns["x"].rows == 42 * 300
    assert found.profile.columns["x"].mean == pytest.approx(np.mean(history["x"].to_numpy()))
    # A column without a value has no threshold; the others have.
    assert set(found.thresholds) == set(FEATURES) - {"level"}
    assert all(one.buckets == 42 for one in found.thresholds.values())
    assert [one.terms for one in found.expected] == [("weekday",)]
    again = Reference.from_json(found.to_json())
    assert again == found
    assert profiled(again, history) + Profile.empty(found.edges) == profiled(found, history)


def test_the_order_of_rows_and_the_session_do_not_matter(con, history, tmp_path):
    one = build_reference(con, training_set(tmp_path / "a", history), CONFIG)
    shuffled = history.take(np.random.default_rng(0).permutation(history.num_rows))
    con.execute("SET TimeZone = 'Asia/Kathmandu'; SET threads = 1")
    two = build_reference(con, training_set(tmp_path / "b", shuffled), CONFIG)
    assert two.thresholds == one.thresholds
    assert two.edges == one.edges
    assert two.window == one.window


def test_only_the_features_that_are_asked_for_are_watched(con, history, tmp_path):
    path = training_set(tmp_path, history)
    config = CONFIG.model_copy(update={"features": ("kind", "x")})
    found = build_reference(con, path, config)
    assert found.features == ("kind", "x")
    # Two share what five shared.
    five = build_reference(con, path, CONFIG)
    assert found.thresholds["x"].by_shift.most < 1.1 * five.thresholds["x"].by_shift.most
    with pytest.raises(NotFoundError, match="'y'"):
        build_reference(con, path, config.model_copy(update={"features": ("y",)}))
    with pytest.raises(NotFoundError, match="statistic"):
        build_reference(con, path, config.model_copy(update={"statistic": "psy"}))


def test_ordered_statistics_fall_back_on_columns_without_order(con, history, tmp_path):
    config = CONFIG.model_copy(update={"statistic": "wasserstein"})
    found = build_reference(con, training_set(tmp_path, history), config)
    used = {name: one.statistic for name, one in found.thresholds.items()}
    assert used == {
        "x": "wasserstein",
        "rain": "wasserstein",
        "kind": "total_variation",
        "flag": "total_variation",
    }


def test_what_is_no_training_set_is_an_error_that_names_the_file(con, history, tmp_path):
    gone = tmp_path / "gone" / "manifest.json"
    with pytest.raises(ManifestError, match="gone"):
        build_reference(con, gone, CONFIG)
    short = training_set(tmp_path / "short", history, count=7)
    with pytest.raises(ManifestError, match="12600 rows, not 7"):
        build_reference(con, short, CONFIG)
    empty = training_set(tmp_path / "empty", history.slice(0, 0))
    with pytest.raises(ManifestError, match="0 rows"):
        build_reference(con, empty, CONFIG)
    bare = training_set(tmp_path / "bare", history)
    bare.with_name("data.parquet").unlink()
    with pytest.raises(ManifestError, match=r"data\.parquet is not beside it"):
        build_reference(con, bare, CONFIG)


def test_one_row_is_a_reference_without_thresholds(con, history, tmp_path):
    found = build_reference(con, training_set(tmp_path, history.slice(0, 1)), CONFIG)
    assert found.profile.rows == 1
    assert found.thresholds == {}
    assert Reference.from_json(found.to_json()) == found


def test_no_features_are_no_reason_to_fail():
    edges = Edges({})
    found = reference_of([(T0, Profile(edges, 3, {}, {}))], edges, CONFIG)
    assert found.thresholds == {}
