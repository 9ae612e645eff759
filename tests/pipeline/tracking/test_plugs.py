"""Other trackers: told of each run, and no end of it."""

from __future__ import annotations

import json
import sys

import pytest

from steadfeast.featurestore.config import ConfigError
from steadfeast.featurestore.errors import NotFoundError
from steadfeast.pipeline.server.service import check_recipes
from steadfeast.pipeline.tracking import TrackerError, load_tracker
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.shop_pipeline import Pipeline
from support.shop_world import at, configure

PACKAGE = """
import json

def keeping(argument, folder):
    file = folder / argument
    def track(record):
        said = {"run": record.run_id, "contract": record.manifest.contract,
                "metrics": dict(record.metrics), "estimator": record.params["estimator"],
                "kind": record.cause["kind"]}
        with file.open("a") as lines:
            lines.write(json.dumps(said) + chr(10))
    return track

def down(argument, folder):
    def track(record):
        raise ConnectionError(f"{argument} is away")
    return track

def picky(argument, folder):
    raise ValueError("no project of that name")
"""
POINTS = """
[steadfeast.trackers]
keeping = kept_elsewhere:keeping
down = kept_elsewhere:down
picky = kept_elsewhere:picky
missing = not_there:tracker
"""


@pytest.fixture
def _installed(tmp_path, monkeypatch) -> None:
    """A package with trackers, installed as pip would leave it."""
    folder = tmp_path / "site"
    information = folder / "kept_elsewhere-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "kept_elsewhere.py").write_text(PACKAGE)
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kept-elsewhere\nVersion: 1.0\n"
    )
    (information / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("kept_elsewhere", None)


def with_trackers(folder, trackers: str):
    path = configure(folder, window="all")
    path.write_text(path.read_text().replace("  grpc:", f"  trackers: {trackers}\n  grpc:"))
    return path


@pytest.mark.usefixtures("_installed")
def test_each_tracker_is_told_and_one_that_is_down_is_named_once(shops, caplog):
    pipeline = Pipeline(with_trackers(shops, "{down: host, keeping: told.jsonl}"))
    run = pipeline.run(at(40))
    assert (run.state, run.reason) == (pb.RUN_STATE_PROMOTED, "")
    problem = "tracker down was not told of this run, which goes on: ConnectionError: host is away"
    assert caplog.text.count(problem) == 1
    assert problem in [event.run.reason for event in pipeline.queue.events(run.run_id, 0)]
    (line,) = (shops / "told.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "run": run.run_id, "contract": run.contract, "metrics": dict(run.metrics),
        "estimator": "Pipeline", "kind": "drift",
    }  # fmt: skip
    pipeline.queue.close()


def test_mlflow_that_cannot_keep_files_is_named_once_and_the_run_goes_on(
    shops, caplog, monkeypatch
):
    """Its client is real; only what keeps the report's files fails."""
    pipeline = Pipeline(configure(shops, window="all"))
    client = pipeline.registry.runs.client
    real = client.log_artifacts

    def full(run_id, folder, path=None):
        if path is None:
            raise OSError(28, "No space left on device")
        return real(run_id, folder, path)

    monkeypatch.setattr(client, "log_artifacts", full)
    run = pipeline.run(at(40))
    assert run.state == pb.RUN_STATE_PROMOTED, run.reason
    assert caplog.text.count("tracker mlflow was not told") == 1
    assert "No space left on device" in caplog.text
    pipeline.queue.close()


@pytest.mark.usefixtures("_installed")
def test_a_tracker_that_cannot_be_used_is_named(shops):
    with pytest.raises(NotFoundError, match="did you mean keeping"):
        load_tracker("keepin", "", shops)
    with pytest.raises(TrackerError, match="not_there:tracker cannot be imported"):
        load_tracker("missing", "", shops)
    with pytest.raises(TrackerError, match="does not take 'x': ValueError: no project of that"):
        load_tracker("picky", "x", shops)
    pipeline = Pipeline(with_trackers(shops, "{keepin: x, picky: y, down: z}"))
    with pytest.raises(ConfigError) as raised:
        check_recipes(pipeline.path, pipeline.config)
    assert [where for where, _ in raised.value.problems] == [
        "pipeline.trackers.keepin", "pipeline.trackers.picky",
    ]  # fmt: skip
    pipeline.queue.close()
