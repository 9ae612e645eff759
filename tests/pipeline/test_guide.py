"""Every example of docs/guide/pipeline.md, as it stands there, on the shops' world."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from steadfeast import TrainingSet
from steadfeast.featurestore.tables.locations import path_of
from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue
from steadfeast.pipeline.registry import Registry
from steadfeast.pipeline.server.service import check_recipes
from steadfeast.pipeline.training import Retrain
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import shop_world as world

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "pipeline.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
CONFIGS = [text for language, text in BLOCKS if language == "yaml"]


@pytest.fixture
def written(shops: Path) -> Path:
    """The shops' folder with the guide's files in place of the world's."""
    for language, text in BLOCKS:
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, text
            (shops / name[1]).write_text(text, encoding="utf-8")
    return shops


def runs(folder: Path, text: str):
    """Give each model of a configuration with the run that it comes to at day 40."""
    path = folder / "steadfeast.yaml"
    store = yaml.safe_dump({"store": {"repo": ".", "data": "data"}})
    path.write_text(store + text, encoding="utf-8")
    config, _ = load(path)
    check_recipes(path, config)
    registry = Registry.open(config)
    with RunQueue(config.state / "runs.db") as queue:
        for model in config.models:
            queue.accept(world.trigger(world.at(40), model=model))
            run = queue.claim()
            Retrain(path, config, queue, registry)(run, lambda: None)
            yield model, queue.get(run.run_id), registry


def test_the_recipes_of_all_tasks_come_to_a_champion(written):
    for model, run, registry in runs(written, CONFIGS[0]):
        assert run.state == pb.RUN_STATE_PROMOTED, (model, run.reason)
        assert registry.champion(model).facts.target.task == {
            "sale": "binary", "size": "multiclass", "amount": "regression", "order": "ranking",
        }[model]  # fmt: skip


def test_the_gates_and_checks_are_all_judged(written):
    ((_, run, _),) = runs(written, CONFIGS[1])
    assert run.state == pb.RUN_STATE_PROMOTED, run.reason
    names = {gate.name for gate in run.gates}
    assert names >= {"roc_auc at_least", "profit at_least", "stays_monotone", "enough_shops"}
    assert run.refit == "all"


def test_the_functions_without_a_daemon_give_what_a_run_gives(written):
    ((_, run, registry),) = runs(written, CONFIGS[1])
    training = TrainingSet.load(path_of(run.manifest_uri, written / "data"))
    config = load(written / "steadfeast.yaml")[0].models["sale"]
    by_hand = runpy.run_path(str(written / "by_hand.py"))["retrain"]
    fit = runpy.run_path(str(written / "train.py"))["sale"]
    live = by_hand(training, fit, config, written)
    expected = registry.champion("sale").predict(training.table)
    assert live.predict(training.table) == pytest.approx(expected)
    nothing = SimpleNamespace(**{**config.__dict__, "min_rows": 10**6})
    assert "holdout_rows" in by_hand(training, fit, nothing, written)


def test_every_setting_of_a_model_is_in_the_guide():
    from steadfeast.pipeline.config import ChecksConfig, GateConfig, ModelConfig  # noqa: PLC0415

    text = GUIDE.read_text("utf-8")
    for section in (ModelConfig, GateConfig, ChecksConfig):
        for name in section.model_fields:
            assert re.search(rf"\b{name}\b", text), f"{section.__name__}.{name}"
