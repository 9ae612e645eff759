"""The looks at all features together, as the daemon's own evaluator takes them, day by day."""

import importlib.util

import pyarrow as pa
import pytest

from steadfeast.monitor.config.schema import DaemonConfig
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.drift.multivariate.detector import (
    NAMES,
    NoClassifierError,
    Relations,
    extra_tests,
)
from steadfeast.monitor.drift.reference import Reference
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.ledger.ledger import Ledger
from support.drift_world import training_set
from support.joint_world import DAY, START, days
from support.monitor_world import write

FEATURES = ("a", "b", "c", "d", "e", "f", "g", "kind")
TRAINED, CALM, OTHERWISE = 56, 9, 6
WHAT, RECONSTRUCTION = NAMES.values()


def serve(folder, first, many, **options):
    table = days(first, many, seed=1, **options)
    ids = pa.array([f"{first}-{i}" for i in range(table.num_rows)])
    table = table.rename_columns(["request_time", *table.column_names[1:]])
    write(
        folder / "data" / "served" / "late", table.append_column("request_id", ids), "request_time"
    )


@pytest.fixture
def configured(tmp_path):
    table = days(0, TRAINED)
    late = pa.array([0] * table.num_rows)
    table = table.rename_columns(["event_timestamp", *table.column_names[1:]])
    manifest = training_set(
        tmp_path / "training", table.append_column("late", late), features=FEATURES
    )
    serve(tmp_path, TRAINED, CALM)
    serve(tmp_path, TRAINED + CALM, OTHERWISE, what="flip")
    serve(tmp_path, TRAINED + CALM + OTHERWISE, 1)
    monitor = {
        "service": "late",
        "model": "late",
        "reference": str(manifest),
        "performance": None,
        "multivariate": True,
    }
    config = DaemonConfig(state=tmp_path / "state", clock="watermark", monitors={"m": monitor})
    return tmp_path, config


def joint(ledger):
    """The joint verdicts of each evaluated window, by time and name."""
    return [
        {one.feature: one for one in verdicts if one.source == "joint"}
        for _, verdicts in ledger.judged("m")
    ]


def test_a_changed_relation_opens_an_episode_that_names_its_features(configured):
    folder, config = configured
    with Ledger(config.state) as ledger:
        evaluator = Evaluator(config, ledger, folder / "data")
        evaluator.configure(config, evaluator.prepare(config))
        # The daemon starts anew in between: a window is judged the same.
        assert evaluator.evaluate("m", CALM + 2) == CALM + 2
        evaluator.close()
        evaluator = Evaluator(config, ledger, folder / "data")
        assert evaluator.evaluate("m", 64) == OTHERWISE - 2
        found = joint(ledger)
        assert [len(one) for one in found] == [2] * (CALM + OTHERWISE)
        assert {v.level for one in found[:6] for v in one.values()} == {Level.INSUFFICIENT_DATA}
        assert "not full" in found[0][WHAT].reason
        assert {v.level for one in found[6:CALM] for v in one.values()} == {Level.OK}
        last = found[-1][WHAT]
        assert last.level is Level.DRIFT
        assert "most by" in last.reason
        assert set(last.reason.split("most by ")[1].split(", ")[:2]) == {"a", "b"}
        # No single feature has moved.
        state = ledger.state(config.monitors)
        alone = [v for v in state.monitors["m"].verdicts if v.source != "joint"]
        assert {v.level for v in alone} == {Level.OK}
        (episode,) = state.episodes
        assert {WHAT, RECONSTRUCTION} <= {one.feature for one in episode.features}
        assert episode.features[0].source == "joint"
        assert episode.features[0].feature in episode.summary
        evaluator.close()


def test_rows_that_are_gone_are_a_reason_and_not_no_drift(configured):
    folder, config = configured
    with Ledger(config.state) as ledger:
        evaluator = Evaluator(config, ledger, folder / "data")
        evaluator.configure(config, evaluator.prepare(config))
        assert evaluator.evaluate("m", CALM) == CALM
        kept = ledger.buckets("m", START, START + 99 * DAY)
        kept[-1].path.unlink()
        assert evaluator.evaluate("m", 1) == 1
        assert "200 rows of the window are not kept any more" in joint(ledger)[-1][WHAT].reason
        evaluator.close()
    (folder / "training" / "data.parquet").unlink()
    with Ledger(config.state) as ledger:
        evaluator = Evaluator(config, ledger, folder / "data")
        reference = ledger.held("m").reference
        assert Reference.from_json(reference.to_json()).joint == reference.joint != {}
        relations = Relations(ledger.buckets, folder / "data")
        snapshot = kept[-2]
        found = relations.judge(
            evaluator._measurer._con, "m", config.monitors["m"], snapshot, reference, "k"
        )
        assert {one.level for one in found} == {Level.INSUFFICIENT_DATA}
        assert all("training set's rows are not there any more" in one.reason for one in found)
        assert all(one.value is None for one in found)
        evaluator.close()


def test_off_unless_asked_for(configured):
    folder, config = configured
    off = config.monitors["m"].model_copy(update={"multivariate": False})
    config = config.model_copy(update={"monitors": {"m": off}})
    assert extra_tests(off) == 0
    with Ledger(config.state) as ledger:
        evaluator = Evaluator(config, ledger, folder / "data")
        evaluator.configure(config, evaluator.prepare(config))
        assert evaluator.evaluate("m", 8) == 8
        assert joint(ledger) == [{}] * 8
        evaluator.close()


def test_without_scikit_learn_the_configuration_is_refused(configured, monkeypatch):
    folder, config = configured
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "steadfeast.monitor.drift.multivariate.detector.find_spec",
        lambda name: None if name == "sklearn" else real(name),
    )
    with Ledger(config.state) as ledger:
        evaluator = Evaluator(config, ledger, folder / "data")
        with pytest.raises(NoClassifierError, match=r"steadfeast\[multivariate\]"):
            evaluator.prepare(config)
        evaluator.close()
