"""Worlds to retrain in: a Feast repo that is applied once and copied for each test."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from steadfeast import featurestore
from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue
from steadfeast.pipeline.registry.registry import Registry
from steadfeast.pipeline.training.retrain import Retrain
from support import shop_world as world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world whose definitions are applied and whose MLflow has its tables."""
    folder = tmp_path_factory.mktemp("shops")
    path = world.make(folder)
    with featurestore.Store.open(path) as store:
        store.apply()
    Registry.open(load(path)[0])
    return folder


@pytest.fixture
def shops(applied: Path, tmp_path: Path) -> Path:
    """A world of the test's own; give its folder."""
    folder = tmp_path / "shops"
    shutil.copytree(applied, folder)
    return folder


class Pipeline:
    """The parts of a pipeline over one configuration file, without a server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, _ = load(path)
        self.queue = RunQueue(self.config.state / "runs.db")
        self.registry = Registry.open(self.config)
        self.retrain = Retrain(path, self.config, self.queue, self.registry)

    def accept(self, as_of: datetime) -> pb.Run:
        return self.queue.accept(world.trigger(as_of))[0]

    def run(self, as_of: datetime) -> pb.Run:
        """Accept one run and bring it to its end, as the worker would."""
        run = self.accept(as_of)
        claimed = self.queue.claim()
        assert claimed is not None
        assert claimed.run_id == run.run_id
        self.retrain(claimed, lambda: None)
        return self.queue.get(run.run_id)

    def place(self, kept: str) -> Path:
        """Where a file is that a run names; runs name files as seen from the store's folder."""
        return self.path.parent / "data" / kept

    def with_config(self, **changes: object) -> Pipeline:
        """The same state under another configuration."""
        self.queue.close()
        return Pipeline(world.configure(self.path.parent, **changes))


@pytest.fixture
def pipeline(shops: Path) -> Iterator[Pipeline]:
    made = Pipeline(shops / "steadfeast.yaml")
    yield made
    made.queue.close()
