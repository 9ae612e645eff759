"""A program in JavaScript uses the product whole: what it asked and sent stands on the page."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import yaml

from steadfeast import Store
from steadfeast.featurestore.cli import main
from support.monitor_world import _free_port, wait_for
from support.shop_pipeline import Pipeline
from support.shop_world import MODEL, at

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = Path(__file__).parents[3] / "docs" / "examples" / "client.mjs"
PROTOS = Path(__file__).parents[3] / "protos"
DAYS = range(41, 48)
COMMAND = [sys.executable, "-W", "ignore", "-P", "-m", "steadfeast.featurestore.cli"]


@contextmanager
def serving(*command: str) -> Iterator[int]:
    """Run an edge on free ports; give its gRPC port."""
    arguments = [*COMMAND, *command, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().replace(",", "").split()[4])
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


@pytest.fixture
def world(shops: Path) -> Iterator[Pipeline]:
    """A promoted version, and values online that are fresh for good."""
    features = shops / "features.py"
    features.write_text(features.read_text().replace("timedelta(days=3)", "timedelta(days=0)"))
    made = Pipeline(shops / "steadfeast.yaml")
    with Store.open(made.path) as store:
        store.apply()
        store.materialize(at(DAYS[0]))
    run = made.run(at(40))
    made.watched = made.place(run.manifest_uri), made.place(run.scored_uri)
    yield made
    made.queue.close()


def page_of(port: int) -> str:
    """The daemon's page; nothing while it starts."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def asked(folder: Path, day: int) -> list[dict[str, object]]:
    """The sales of a day as they happened, for the client to ask about and to tell the end of."""
    rows = pq.read_table(folder / "data/examples.parquet").to_pylist()
    return [
        {
            "id": f"sale-{number}",
            "time": (row["event_timestamp"].replace(minute=0, second=0, microsecond=0)).isoformat(),
            "shop": row["shop"],
            "sold": row["sold"],
        }
        for number, row in enumerate(rows)
        if at(day) <= row["event_timestamp"] < at(day + 1)
    ]


def monitored(world: Pipeline) -> tuple[Path, int]:
    """Add a daemon to the configuration that watches what the client asks for."""
    plain = yaml.safe_load(world.path.read_text())
    manifest, scored = world.watched
    http = _free_port()
    plain["monitor"] = {
        "state": str(world.path.parent / "data" / "monitor"),
        "http": f"127.0.0.1:{http}",
        "grpc": f"127.0.0.1:{_free_port()}",
        "clock": "watermark",
        "tick": "200ms",
        "monitors": {
            MODEL: {
                "service": "sale",
                "model": MODEL,
                "reference": str(manifest),
                "scored": str(scored),
                "bucket": "1d",
                "window": "3d",
                "min_rows": 50,
                "performance": {"metric": "roc_auc", "min_labels": 50},
            }
        },
    }
    world.path.write_text(yaml.safe_dump(plain))
    return world.path, http


def test_what_it_asked_and_sent_stands_on_the_page(
    world: Pipeline,
    node_modules: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    program = tmp_path / "app"
    program.mkdir()
    shutil.copy(CLIENT, program)
    (program / "node_modules").symlink_to(node_modules)
    config = ("--config", str(world.path))
    with ExitStack() as stack:
        models = stack.enter_context(serving("model", "serve", *config))
        features = stack.enter_context(serving("store", "serve", *config))
        store = stack.enter_context(Store.open(world.path))
        command = ["node", "client.mjs", str(PROTOS)]
        command += [f"127.0.0.1:{models}", f"127.0.0.1:{features}", "requests.json"]
        for day in DAYS:
            store.materialize(at(day))  # what a schedule does each night
            requests = asked(world.path.parent, day)
            (program / "requests.json").write_text(json.dumps(requests))
            done = subprocess.run(
                command, cwd=program, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, done.stderr
            told = {"predicted": len(requests), "labelled": len(requests)}
            assert json.loads(done.stdout) == told

    path, http = monitored(world)
    with subprocess.Popen([*COMMAND, "monitor", "run", "--config", str(path)]) as daemon:
        try:
            # The last day is still open; the window before it is judged.
            wait_for(lambda: "14 feb 2024 to 17 feb 2024" in page_of(http).lower(), 90)
            page = page_of(http)
        finally:
            daemon.terminate()
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "Labelled rows 120" in said
    assert re.search(r"AUC 0\.[89]\d* 0\.\d+ to 0\.\d+", said), said[-3000:]
    assert "Data incident" not in said
    until = (at(DAYS[-1] + 1) + timedelta(days=1)).isoformat()
    monkeypatch.setattr(
        sys, "argv", ["steadfeast", "store", "audit", "sale", "--end", until, "--json", *config]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert ended.value.code in {0, None}, [one for one in checks if not one["ok"]]
    assert {one["invariant"] for one in checks} >= {"I2", "I4", "I11"}
