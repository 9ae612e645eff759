"""A ledger with an outbox, and a pipeline on a real port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.monitor.config.schema import load
from steadfeast.monitor.decisions.model import (
    Decision,
    Episode,
    EpisodeKind,
    Member,
    Outcome,
    PolicyState,
    Trigger,
)
from steadfeast.monitor.delivery.champions import Champions
from steadfeast.monitor.delivery.connections import Connections
from steadfeast.monitor.delivery.dispatcher import Dispatcher
from steadfeast.monitor.delivery.threads import Backoff
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.monitor.profiles.profile import Window
from support import monitor_world as world
from support.monitor_world import DAY, START, Pipeline, PipelineServer

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = Window(START + 50 * DAY, START + 53 * DAY, 600)
VERDICT = Verdict("served", "x", "psi", 0.5, 0.1, Level.DRIFT, "", WINDOW)


class World:
    """A ledger with an outbox, and a pipeline on a real port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = world.train(folder, "first", START, START + 99 * DAY)
        self.pipeline = Pipeline(folder, drift_at=WINDOW.start)
        self.pipeline.first(self.manifest)
        self.server = PipelineServer(self.pipeline).start()
        self.config, store = load(world.configure(folder, pipeline=self.server.port))
        self.ledger = Ledger(self.config.state)
        self.evaluator = Evaluator(self.config, self.ledger, store.data)
        self.outbox: Dispatcher

    def deliver(self) -> None:
        """Start an outbox, as a start of the daemon does."""
        connections = Connections(lambda: self.evaluator.config.pipelines)
        self.champions = Champions(self.ledger, self.evaluator, connections)
        waits = Backoff(first=0.05, most=0.2)
        self.outbox = Dispatcher(self.ledger, self.evaluator, waits, connections)
        self.outbox.start()

    def fire(self, request: str = "r1") -> None:
        episode = Episode(
            f"e-{request}",
            EpisodeKind.DRIFT,
            WINDOW,
            WINDOW,
            (Member(VERDICT, WINDOW.end),),
            "c" * 64,
        )
        fired = Trigger(request, (episode,), Outcome.FIRED, WINDOW.end)
        decision = Decision(PolicyState(), opened=(episode,), triggers=(fired,))
        with self.ledger.transaction():
            self.ledger.add_decision("prices", self.config.monitors["prices"], decision)

    def ended(self, request: str = "r1") -> bool:
        trigger = self.ledger.trigger(request)
        return trigger.run is not None and not self.ledger.following() and self.pending() == 0

    def pending(self) -> int:
        return len(self.ledger.pending())

    def close(self) -> None:
        self.outbox.close()
        self.evaluator.close()
        self.ledger.close()
        self.server.stop()
