"""What README.md says to type, typed: every snippet runs as it is printed there.

A snippet stands below a comment `<!-- snippet: NAME -->`. Only addresses are replaced, by free
ones; imports that the prose leaves out are added in front.
"""

import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support import monitor_world as world
from support.demo_world import ROOT, steadfeast
from support.monitor_world import DAY, START

README = (ROOT / "README.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- snippet: (\S+) -->\n```\w+\n(.*?)```\n", README, re.DOTALL))
BIN = Path(sys.executable).parent
NOW = datetime(2026, 1, 2, tzinfo=UTC)

FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32
"""


def test_each_snippet_is_short():
    """Under ten lines each."""
    assert len(SNIPPETS) >= 6
    for name, text in SNIPPETS.items():
        assert len(text.strip().splitlines()) < 10, name


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A Feast repo of one's own, pointed at Steadfeast as the README says."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "data").mkdir()
    head = "project: own\nprovider: local\nregistry: data/registry.db\n"
    tail = "entity_key_serialization_version: 3\n"
    (folder / "feature_store.yaml").write_text(head + SNIPPETS["feature_store.yaml"] + tail)
    (folder / "steadfeast.yaml").write_text(SNIPPETS["steadfeast.yaml"])
    (folder / "features.py").write_text(FEATURES + SNIPPETS["features.py"])
    ratings = pa.table(
        {
            "driver": [7, 7, 8],
            "rating": pa.array([4.5, 3.5, 5.0], pa.float32()),
            "event_timestamp": [
                NOW - timedelta(hours=h) for h in (20, 2, 1)
            ],
        }
    )  # fmt: skip
    pq.write_table(ratings, folder / "data" / "ratings.parquet")
    steadfeast("store", "apply", cwd=folder)
    steadfeast("store", "materialize", "2026-01-02", cwd=folder)
    return folder


def test_training_and_serving_give_the_same_values(repo, monkeypatch):
    """The snippet trains and serves, and both say what the source says."""
    from steadfeast import Store  # noqa: PLC0415 - Feast takes seconds

    monkeypatch.chdir(repo)
    entities = pa.table(
        {
            "driver": [7, 7, 9],
            "event_timestamp": [NOW - timedelta(hours=3), NOW, NOW],
            "late": [0, 1, 0],
        }
    )
    names = {"Store": Store, "Path": Path, "entities": entities, "now": NOW}
    text = SNIPPETS["serve.py"].replace("contract=", "request_time=now, contract=")
    exec(text, names)  # noqa: S102 - that is the test
    assert names["training"].table["rating"].to_pylist() == [4.5, 3.5, None]
    assert names["features"].to_dict()["rating"] == [3.5]
    steadfeast("store", "audit", "rides", cwd=repo)


def test_feast_itself_works_on_the_same_repo(repo):
    """Feast's own command reads what the README's two lines point it at."""
    done = subprocess.run(
        [BIN / "feast", "feature-views", "list"], cwd=repo, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "ratings" in done.stdout


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """A real daemon that saw drift and followed a retraining to its end."""
    folder = tmp_path_factory.mktemp("world")
    drift_at = START + (world.TRAINED_DAYS + 10) * DAY
    pipeline = world.Pipeline(folder, drift_at=drift_at)
    pipeline.first(world.train(folder, "aaaa", START, drift_at))
    world.serve(folder, START + world.TRAINED_DAYS * DAY, 16, drift_at)
    server = world.PipelineServer(pipeline).start()
    running = world.Daemon(folder, server.port)
    running.start()
    running.idle(START + (world.TRAINED_DAYS + 16) * DAY)
    yield running
    running.stop()
    server.stop()


def addressed(name, daemon):
    """The snippet with the daemon's own addresses."""
    text = SNIPPETS[name].replace("127.0.0.1:9464", f"127.0.0.1:{daemon.http}")
    return text.replace("127.0.0.1:9465", f"127.0.0.1:{daemon.grpc}")


def test_watching_a_panel(daemon):
    """The metric that the panels show is there, and the terminal shows the same monitor."""
    first, *rest = addressed("watch.sh", daemon).splitlines()
    assert first.startswith("steadfeast monitor run &")  # the daemon runs already
    done = subprocess.run(
        ["bash", "-ec", "\n".join(rest)], cwd=daemon.config.parent, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(
        r'^steadfeast_drift_ratio\{.*feature="x".*\} [\d.e+-]+$', done.stdout, re.MULTILINE
    )
    assert "prices" in done.stdout


class EnoughError(Exception):
    """The stream has no end; the test has seen enough."""


class Printed(StringIO):
    """Takes what is printed, until the run that the drift caused has ended."""

    def write(self, text):
        """Take `text`."""
        written = super().write(text)
        if "promoted" in text:
            raise EnoughError
        return written


def test_receiving_an_alert(daemon):
    """The snippet prints the alerts in their order: the episode, the trigger, the run."""
    head = (
        "import grpc\nfrom steadfeast.protos.steadfeast.v1 import monitor_pb2, monitor_pb2_grpc\n"
    )
    printed = Printed()
    with redirect_stdout(printed), pytest.raises(EnoughError):
        exec(head + addressed("alerts.py", daemon), {})  # noqa: S102 - that is the test
    numbers = [int(line.split()[0]) for line in printed.getvalue().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "x" in printed.getvalue()
