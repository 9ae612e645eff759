"""With `--json`, standard output is JSON alone: of every command, as a process, in a noisy repo.

The definitions and the recipe of the repo print, from Python and below it. What needs a daemon is
asked of a real service in `tests/monitor/cli/test_app.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from steadfeast.featurestore import cli
from steadfeast.featurestore.starter import Template, create

NOISE = """\
import os
print("NOISE of python", flush=True)
os.write(1, b"NOISE below\\n")
"""
OF_A_DAEMON = {
    "monitor acknowledge",
    "monitor alerts",
    "monitor approve",
    "monitor evaluate",
    "monitor log",
    "monitor reject",
    "monitor resend",
    "monitor status",
    "monitor triggers",
    "monitor watch",
}
OF_OTHER_TESTS = {
    "doctor": "doctor/test_doctor.py",
    "monitor backtest": "monitor/backtest/test_replay.py",
    "monitor report": "monitor/cli/test_output.py",
}
LINES = {"monitor calibrate", "pipeline runs"}


class Project:
    """A new project in which everything prints, and what its commands said."""

    def __init__(self, folder):
        self.folder, self.said = folder, {}
        create(folder, Template.BINARY, now=datetime(2026, 3, 10, tzinfo=UTC))
        features = folder / "features.py"
        features.write_text(features.read_text() + NOISE)
        recipe = folder / "train.py"
        body = "".join(f"    {line}\n" for line in NOISE.splitlines())
        body += "    if os.path.exists('broken'):\n        raise OSError('no such luck')\n"
        text, first = recipe.read_text(), "    model = "
        assert text.count(first) == 1
        recipe.write_text(text.replace(first, body + first))

    def run(self, *words, code=0):
        """Run a command with `--json`; keep and return what it said."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "steadfeast", *words, "--json"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        name = " ".join(words[: 1 if words[0] == "backtest" else 2])
        assert "NOISE" not in done.stdout, name
        if name in LINES:
            said = [json.loads(line) for line in done.stdout.splitlines()]
        else:
            said = json.loads(done.stdout)
        self.said[name] = said, done.stderr
        return said


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project after all commands, in the order in which a person has use for them."""
    made = Project(tmp_path_factory.mktemp("json") / "shop")
    run, train = made.run, ("pipeline", "train", "purchase")
    run("store", "apply", "--yes")
    run("store", "materialize")
    outcomes = pa.table({"request_id": ["r1"], "label": [1], "known_at": [datetime.now(UTC)]})
    pq.write_table(outcomes, made.folder / "outcomes.parquet")
    examples = ("--entities", "data/sources/examples.parquet", "--label", "bought")

    def models():
        first = run(*train)
        run(*train)
        run("pipeline", "rollback", "purchase")
        run("pipeline", "promote", "purchase", "2")
        run("pipeline", "card", "2")
        run("pipeline", "compare", "1", "2")
        (made.folder / "broken").touch()
        failed = run(*train, code=1)
        made.said["pipeline train"] = first, ""
        run("pipeline", "retry", failed["run_id"])
        run("pipeline", "runs")

    def features():
        manifest = run("store", "training-set", "purchase", *examples)
        path = f"data/training/{manifest['id']}/manifest.json"
        run("store", "replay", path)
        run("store", "services")
        run("store", "views")
        run("store", "features")
        run("store", "contract", "purchase")
        run("store", "audit", "purchase", code=1)
        run("store", "log-labels", "purchase", "outcomes.parquet")
        run("store", "erase", "--key", "customer=1")
        run("store", "gc")
        run("monitor", "calibrate", "--reference", path)

    with ThreadPoolExecutor(2) as pool:
        for work in [pool.submit(models), pool.submit(features)]:
            work.result()
    (made.folder / "broken").unlink()
    run("backtest", "--policies", "never", "--from", "2026-03-01")
    return made


def commands(one, words=()):
    """Every command that takes `--json`, by its words."""
    if any("--json" in option.opts for option in one.params):
        yield " ".join(words)
    for name, below in getattr(one, "commands", {}).items():
        yield from commands(below, (*words, name))


def test_every_command_that_takes_json_is_tried(project):
    cli._add_groups()
    known = set(commands(typer.main.get_command(cli.app)))
    known.add("doctor")  # which an installation of before may lack
    assert known == project.said.keys() | OF_A_DAEMON | OF_OTHER_TESTS.keys()
    for path in OF_OTHER_TESTS.values():
        assert "--json" in (Path(__file__).parents[1] / path).read_text("utf-8")


def test_the_noise_is_on_standard_error(project):
    assert "NOISE of python" in project.said["store apply"][1]
    assert "NOISE below" in project.said["store apply"][1]


def test_what_is_applied_is_listed(project):
    (service,), _ = project.said["store services"]
    assert (service["service"], service["keys"]) == ("purchase", ["customer"])
    assert service["contract"] == project.said["store apply"][0]["purchase"]
    assert service["features"] == ["visits", "spend", "spend_per_visit"]
    assert (service["views"], service["on_demand"]) == (["activity"], ["habits"])
    assert service["problem"] is None
    views = {one["view"]: one for one in project.said["store views"][0]}
    assert views["activity"]["keys"] == ["customer"]
    assert views["activity"]["ttl_seconds"] == 3 * 86_400
    assert datetime.fromisoformat(views["activity"]["materialized_until"]) <= datetime.now(UTC)
    assert (views["habits"]["kind"], views["habits"]["online"]) == ("OnDemandFeatureView", None)


def test_tables_of_services_and_views_are_aligned(project):
    for what, start in (("services", "purchase  "), ("views", "activity  customer  2 ")):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "steadfeast", "store", what],
            cwd=project.folder,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=True,
        )
        head, row, *_ = done.stdout.splitlines()
        assert row.startswith(start)
        assert head.index("keys") == row.index("customer")


def test_runs_say_what_became_of_them(project):
    assert project.said["pipeline train"][0]["state"] == "RUN_STATE_PROMOTED"
    assert project.said["pipeline promote"][0]["model_version"] == "2"
    assert project.said["pipeline rollback"][0]["model_version"] == "1"
    states = [one["state"] for one in project.said["pipeline runs"][0]]
    assert {"RUN_STATE_FAILED", "RUN_STATE_PROMOTED"} <= set(states)
