"""The parts of a pipeline over a world of `shop_world`, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue
from steadfeast.pipeline.registry import Registry
from steadfeast.pipeline.training.retrain import Retrain
from support import shop_world as world

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb


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
