"""The dashboards on a real daemon: planted drift, a retraining, and what Prometheus has of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROOT = Path(__file__).parents[2]
QUIET = {
    "overview: Open episodes A": "the promotion closed it",
    "overview: Open episodes B": "the promotion closed it",
    "overview: Firing alerts A": "nothing is open any more",
    "model: accuracy B": "the hold-out of this world has an AUC only",
    "model: log loss B": "the hold-out of this world has an AUC only",
    "model: Retrain history A": "the pipeline of this world dates no run",
    "operations: Oldest undelivered A": "everything is delivered",
}
"""Queries without data on a daemon at rest, and why."""


def _world() -> Any:
    path = ROOT / "tests" / "monitor" / "monitor_world.py"
    spec = importlib.util.spec_from_file_location("monitor_world", path)
    assert spec is not None
    assert spec.loader is not None
    world = importlib.util.module_from_spec(spec)
    sys.modules["monitor_world"] = world  # dataclasses look their module up
    spec.loader.exec_module(world)
    return world


def _at_rest(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310  # ours
            text = answer.read().decode()
    except urllib.error.URLError:
        return False
    return "steadfeast_idle 1.0" in text and 'state="promoted"} 1.0' in text


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[str]:
    """Give the HTTP address of a daemon that saw drift and followed a retraining to its end."""
    world, folder = _world(), tmp_path_factory.mktemp("world")
    drift_at = world.START + (world.TRAINED_DAYS + 10) * world.DAY
    pipeline = world.Pipeline(folder, drift_at=drift_at)
    pipeline.first(world.train(folder, "aaaa", world.START, drift_at))
    world.serve(folder, world.START + world.TRAINED_DAYS * world.DAY, 16, drift_at)
    with ExitStack() as stack:
        server = world.PipelineServer(pipeline).start()
        stack.callback(server.stop)
        port = free_port()
        config = world.configure(folder, pipeline=server.port, http=port)
        command = [Path(sys.executable).with_name("steadfeast"), "monitor", "run", "-c", config]
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        try:
            world.wait_for(lambda: _at_rest(url), 60, "a daemon at rest after a promotion")
        except AssertionError as error:
            pytest.fail(f"{error}\n{(folder / 'log').read_text('utf-8')}")
        yield url


@pytest.mark.service("prometheus")
def test_every_panel_has_data_on_a_real_daemon(
    daemon: str, scraping: Callable[[str], AbstractContextManager[Any]]
):
    empty = set()
    with scraping(daemon) as prometheus:
        for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
            for panel in json.loads(path.read_text("utf-8"))["panels"]:
                for target in panel["targets"]:
                    expr = target["expr"].replace("$monitor", ".*").replace("$feature", ".*")
                    if not prometheus.query(expr.replace("$__rate_interval", "1m")):
                        empty.add(f"{path.stem}: {panel['title']} {target['refId']}")
        runs = prometheus.query('steadfeast_runs{state="promoted"}')
        assert [one["value"][1] for one in runs] == ["1"]
        verdicts = prometheus.query("steadfeast_drift_level")
        assert {one["metric"]["feature"] for one in verdicts} == {"x", "kind"}
    assert empty == set(QUIET)


def test_the_page_of_a_real_daemon_tells_the_story(daemon: str):
    with urllib.request.urlopen(daemon, timeout=10) as answer:  # noqa: S310  # ours
        page = answer.read().decode()
    for words in ("No problem is open", "promoted", "drift: x: psi"):
        assert words in page, words
