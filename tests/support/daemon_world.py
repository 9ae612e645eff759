"""A daemon in the test's own process, over the world of `monitor_world`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.featurestore.security import Security, load_security
from steadfeast.monitor.config.schema import load
from steadfeast.monitor.daemon.daemon import Daemon
from steadfeast.monitor.ledger.ledger import Ledger
from support import monitor_world as world
from support.monitor_world import DAY, START, Pipeline, PipelineServer

if TYPE_CHECKING:
    from pathlib import Path

NEVER = START + 10_000 * DAY
SERVED = START + 40 * DAY


class Here:
    """A daemon in this process whose ticks are called by hand."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.folder = folder
        self.manifest = world.train(folder, "first", START, NEVER)
        self.pipeline = Pipeline(folder, drift_at=NEVER)
        self.pipeline.first(self.manifest)
        self.server = PipelineServer(self.pipeline).start()
        self.path = world.configure(folder, pipeline=self.server.port, extra=extra)
        self.ledger: Ledger
        self.daemon: Daemon
        self.open()

    def open(self) -> None:
        config, store = load(self.path)
        self.ledger = Ledger(config.state)
        security = Security(load_security(self.path))
        self.daemon = Daemon(self.path, config, store.data, self.ledger, security=security)

    def close(self) -> None:
        self.daemon.evaluator.close()
        self.ledger.close()

    def open_again(self) -> None:
        self.close()
        self.open()

    @property
    def prices(self):
        return self.daemon.state().monitors["prices"]

    def rewrite(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))
