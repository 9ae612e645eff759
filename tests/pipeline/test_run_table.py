"""Runs side by side, from the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.pipeline import cli
from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue
from steadfeast.pipeline.run_table import run_table
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import shop_world as world
from support.shop_world import at, trigger


@pytest.fixture
def config(tmp_path):
    """A configuration whose queue has a promoted run and one that failed before any figure."""
    path = world.configure(tmp_path)
    section, _ = load(path)
    with RunQueue(section.state / "runs.db") as queue:
        failed, _ = queue.accept(trigger(at(39)), pb.Run(state=pb.RUN_STATE_FAILED))
        promoted = pb.Run(
            state=pb.RUN_STATE_PROMOTED,
            manifest_uri="training/0123456789abcdef/manifest.json",
            contract="c" * 64,
            model_version="4",
            metrics={"roc_auc": 0.75, "f1": 1 / 3},
        )
        done, _ = queue.accept(trigger(at(40)), promoted)
    return path, done, failed


def table(path, *words):
    return CliRunner().invoke(cli.app, ["runs", "--config", str(path), *words])


def test_a_program_gets_every_field_as_the_run_keeps_it(config):
    path, done, failed = config
    shown = table(path, "--table", "roc_auc, f1", "--json")
    assert shown.exit_code == 0
    first, second = (json.loads(line) for line in shown.stdout.splitlines())
    assert first == {
        "run": done.run_id,
        "model": done.model,
        "roc_auc": 0.75,
        "f1": 1 / 3,
        "data": "0123456789abcdef",
        "as_of": f"{at(40):%Y-%m-%dT%H:%M:%SZ}",
        "date": f"{done.created_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}",
        "contract": "c" * 64,
        "cause": pb.CauseKind.Name(trigger(at(40)).cause.kind).removeprefix("CAUSE_KIND_").lower(),
        "outcome": "promoted",
        "version": "4",
    }
    assert (second["run"], second["outcome"]) == (failed.run_id, "failed")
    assert all(second[name] is None for name in ("roc_auc", "f1", "data", "contract", "version"))


def test_a_person_gets_columns_that_stand_under_each_other(config):
    path, done, failed = config
    shown = table(path, "--table", "f1").stdout.splitlines()
    head, first, second = shown
    names = ["run", "model", "f1", "data", "as_of", "date", "contract", "cause", "outcome"]
    assert head.split() == [*names, "version"]
    assert first.startswith(done.run_id[:12])
    assert second.startswith(failed.run_id[:12])
    assert {first[head.index("f1") :][:6], second[head.index("f1") :][:6]} == {"0.3333", "-     "}
    assert first[head.index("outcome") :].split() == ["promoted", "4"]


def test_a_figure_that_no_run_has_is_named_with_those_there_are(config):
    path, done, _ = config
    refused = table(path, "--table", "auroc")
    assert isinstance(refused.exception, NotFoundError)
    assert "auroc" in str(refused.exception)
    assert "roc_auc" in str(refused.exception)
    assert run_table([], ["auroc"]) == []
    assert run_table([done], [])[0]["run"] == done.run_id
