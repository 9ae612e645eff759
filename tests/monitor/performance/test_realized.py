"""Labels that arrive late, joined to what was predicted; figures by scikit-learn."""

from datetime import UTC, datetime, timedelta

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from sklearn import metrics as sk

from steadfeast.monitor.config.schema import MonitorConfig, PerformanceConfig
from steadfeast.monitor.performance.realized import judge, predictions
from steadfeast.monitor.profiles.profile import Window

T0 = datetime(2013, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
WINDOW = Window(T0, T0 + timedelta(days=7))
CONFIG = MonitorConfig(service="s", model="m", performance={"min_labels": 3})


def measure(con, served, labels, window, as_of, config, *, model_version=None):
    rows = predictions(con, served, labels, window, as_of, model_version=model_version)
    return judge(rows, window, config)


@pytest.fixture
def con():
    with duckdb.connect() as con:
        yield con


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def times(values):
    return pa.array(values, pa.timestamp("us", "UTC"))


def served(path, ids, predictions, at=None, version="1"):
    return write(
        path,
        request_id=ids,
        request_time=times(at or [T0 + HOUR * i for i in range(len(ids))]),
        model_version=[version] * len(ids),
        prediction=pa.array(predictions, pa.float64()),
    )


def labels(path, ids, values, known):
    return write(path, request_id=ids, label=pa.array(values, pa.float64()), known_at=times(known))


IDS = [f"r{i}" for i in range(6)]
SCORES = [0.9, 0.2, 0.7, 0.4, 0.6, 0.1]
TRUTH = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def test_only_labels_known_by_then_count(con, tmp_path):
    file = served(tmp_path / "s.parquet", IDS, SCORES)
    known = [T0 + HOUR * (i + 10) for i in range(6)]
    label = labels(tmp_path / "l.parquet", IDS, TRUTH, known)
    found = measure(con, [file], [label], WINDOW, known[3], CONFIG)
    assert (found.labelled, found.positives, found.window.rows) == (4, 2, 6)
    assert found.metrics["roc_auc"] == sk.roc_auc_score(TRUTH[:4], SCORES[:4])
    assert found.metrics["accuracy"] == 0.5
    assert found.metrics["log_loss"] == pytest.approx(sk.log_loss(TRUTH[:4], SCORES[:4]))
    later = measure(con, [file], [label], WINDOW, known[5], CONFIG)
    assert later.labelled == 6
    # Too few labels, none at all, or nobody asks: there is no figure.
    assert measure(con, [file], [label], WINDOW, known[1], CONFIG) is None
    assert measure(con, [file], [], WINDOW, known[5], CONFIG) is None
    assert measure(con, [], [label], WINDOW, known[5], CONFIG) is None
    silent = CONFIG.model_copy(update={"performance": None})
    assert measure(con, [file], [label], WINDOW, known[5], silent) is None


def test_a_corrected_label_replaces_the_first_once_it_is_known(con, tmp_path):
    file = served(tmp_path / "s.parquet", IDS[:3], [0.9, 0.1, 0.8])
    first = labels(tmp_path / "a.parquet", IDS[:3], [1, 0, 1], [T0 + HOUR] * 3)
    fixed = labels(tmp_path / "b.parquet", IDS[:1], [0], [T0 + 5 * HOUR])
    both = [first, fixed]
    before = measure(con, [file], both, WINDOW, T0 + 4 * HOUR, CONFIG)
    after = measure(con, [file], both, WINDOW, T0 + 5 * HOUR, CONFIG)
    assert before.metrics["accuracy"] == 1
    assert after.metrics["accuracy"] == pytest.approx(2 / 3)


def test_requests_outside_the_window_and_rows_without_prediction_are_left_out(con, tmp_path):
    at = [T0 - HOUR, T0, T0 + HOUR, WINDOW.end - HOUR, WINDOW.end, T0]
    file = served(tmp_path / "s.parquet", IDS, [0.1, 0.8, 0.2, 0.7, 0.9, None], at)
    label = labels(tmp_path / "l.parquet", IDS, TRUTH, [T0] * 6)
    found = measure(con, [file], [label], WINDOW, WINDOW.end, CONFIG)
    assert (found.labelled, found.window.rows) == (3, 3)


def test_one_models_version_is_not_judged_by_anothers(con, tmp_path):
    good = served(tmp_path / "a.parquet", IDS, TRUTH, version="1")
    bad = served(tmp_path / "b.parquet", [i + "x" for i in IDS], [0.5] * 6, version="2")
    ids = [*IDS, *(i + "x" for i in IDS)]
    label = labels(tmp_path / "l.parquet", ids, TRUTH * 2, [T0] * 12)
    together = sk.roc_auc_score(TRUTH * 2, [*TRUTH, *[0.5] * 6])
    for version, expected, rows in (("1", 1, 6), ("2", 0.5, 6), (None, together, 12)):
        found = measure(
            con, [good, bad], [label], WINDOW, WINDOW.end, CONFIG, model_version=version
        )
        assert (found.metrics["roc_auc"], found.labelled) == (pytest.approx(expected), rows)


def test_with_one_class_there_is_no_auc_and_the_rest_stands(con, tmp_path):
    file = served(tmp_path / "s.parquet", IDS, SCORES)
    label = labels(tmp_path / "l.parquet", IDS, [0] * 6, [T0] * 6)
    found = measure(con, [file], [label], WINDOW, WINDOW.end, CONFIG)
    assert sorted(found.metrics) == [
        "accuracy",
        "balanced_accuracy",
        "brier_score",
        "calibration_error",
        "f1",
        "log_loss",
        "precision",
        "recall",
    ]
    assert found.positives == 0


def test_a_regressor_has_figures_of_its_own(con, tmp_path):
    file = served(tmp_path / "s.parquet", IDS, SCORES)
    amounts = [10 * value for value in SCORES[::-1]]
    label = labels(tmp_path / "l.parquet", IDS, amounts, [T0] * 6)
    config = CONFIG.model_copy(
        update={"performance": PerformanceConfig(metric="mean_absolute_error", min_labels=3)}
    )
    found = measure(con, [file], [label], WINDOW, WINDOW.end, config)
    assert found.positives is None
    assert found.metrics == pytest.approx(
        {
            "root_mean_squared_error": sk.root_mean_squared_error(amounts, SCORES),
            "mean_absolute_error": sk.mean_absolute_error(amounts, SCORES),
            "mean_absolute_percentage_error": sk.mean_absolute_percentage_error(amounts, SCORES),
            "mean_pinball_loss": sk.mean_pinball_loss(amounts, SCORES),
            "r2": sk.r2_score(amounts, SCORES),
        }
    )
    assert set(found.intervals) == set(found.metrics)
    low, high = found.intervals["mean_absolute_error"]
    assert low < found.metrics["mean_absolute_error"] < high


def test_a_measure_that_fails_costs_itself_alone(con, tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("def of(truth, said):\n    return 1 / (truth[0] * 0)\n")
    (tmp_path / "raising.py").write_text("def of(truth, said):\n    raise ValueError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = served(tmp_path / "s.parquet", IDS, SCORES)
    label = labels(tmp_path / "l.parquet", IDS, TRUTH, [T0] * 6)
    for spec in ("failing:of", "raising:of"):
        performance = PerformanceConfig(metric=spec, min_labels=3)
        config = CONFIG.model_copy(update={"performance": performance})
        found = measure(con, [file], [label], WINDOW, WINDOW.end, config)
        assert "of" not in found.metrics
        assert found.metrics["accuracy"] == pytest.approx(4 / 6)


def test_columns_come_with_the_predictions(con, tmp_path):
    """A column that some files lack, or all of them, is null there."""
    at = times([T0, T0 + HOUR])
    write(tmp_path / "a.parquet", request_id=["a", "b"], request_time=at, prediction=[0.1, 0.2],
          model_version=["1", "1"], origin=["EWR", None])  # fmt: skip
    plain = served(tmp_path / "b.parquet", ["c"], [0.3])
    files = [tmp_path / "a.parquet", plain]
    table = predictions(con, files, [], WINDOW, WINDOW.end, columns=("origin", "gone"))
    assert table["origin"].to_pylist() == ["EWR", None, None]
    assert table["gone"].null_count == table["label"].null_count == 3
    assert predictions(con, [], [], WINDOW, WINDOW.end, columns=("x",)).num_rows == 0
    write(tmp_path / "n.parquet", request_id=["z"], request_time=times([T0]))
    assert predictions(con, [tmp_path / "n.parquet"], [], WINDOW, WINDOW.end).num_rows == 0


@pytest.mark.parametrize("which", ["served", "labels"])
@pytest.mark.parametrize("last", [None, -16])
def test_a_damaged_file_costs_its_own_rows_and_is_named(con, tmp_path, which, last):
    ids = ["r0", "r1"]
    files = {
        "served": [served(tmp_path / f"served{n}", [n], [0.9], at=[T0]) for n in ids],
        "labels": [labels(tmp_path / f"labels{n}", [n], [1.0], [T0]) for n in ids],
    }
    broken = files[which][0]
    content = broken.read_bytes()
    wrong = bytes(byte ^ 0x5A for byte in content[4:last])
    broken.write_bytes(content[:4] + (wrong + content[last:] if last else wrong[: len(wrong) // 2]))
    with structlog.testing.capture_logs() as said:
        rows = predictions(con, files["served"], files["labels"], WINDOW, WINDOW.end)
    assert rows["label"].to_pylist() == ([1.0] if which == "served" else [None, 1.0])
    [told] = said
    assert (told["event"], told["path"]) == ("damaged_file_left_out", str(broken))


def test_a_file_that_left_the_retention_costs_its_own_rows(con, tmp_path):
    files = [served(tmp_path / n, [n], [0.9], at=[T0]) for n in ("r0", "r1")]
    files[0].unlink()
    assert predictions(con, files, [], WINDOW, WINDOW.end).num_rows == 1


def test_an_error_that_no_file_explains_is_raised(con, tmp_path):
    file = write(tmp_path / "odd", request_id=["r0"], prediction=["high"], request_time=times([T0]))
    with pytest.raises(duckdb.Error):
        predictions(con, [file], [], WINDOW, WINDOW.end)
