"""Committed triggers to pipelines, at least once.

Above `connections` and `run_follower`. A trigger is in the ledger before it is sent, and stays
pending there until a pipeline has answered, so it is delivered at least once; the pipeline makes
that once by the request's id. Each pipeline has a queue of its own, so one that hangs delays no
other.
"""

from __future__ import annotations

from threading import Event
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from steadfeast.monitor.delivery.connections import Connections
from steadfeast.monitor.delivery.pipeline import RejectedError, UnansweredError
from steadfeast.monitor.delivery.run_follower import RunFollower
from steadfeast.monitor.delivery.threads import Backoff, Worker
from steadfeast.monitor.ledger import LedgerWriteError, fault
from steadfeast.protos.steadfeast.v1 import pipeline_pb2

if TYPE_CHECKING:
    from steadfeast.monitor.evaluation import Evaluator
    from steadfeast.monitor.ledger import Ledger, Message

log = structlog.get_logger(__name__)

GRACE_SECONDS = 2.0
"""How long a delivery under way may take when the daemon stops."""


class Dispatcher:
    """Delivers in one thread for each pipeline, and has what it delivered followed.

    Args:
        ledger: Where the messages are.
        evaluator: Builds and moves references; its configuration names the pipelines.
        backoff: Waits between attempts.
        connections: To the pipelines; closed with this.
    """

    def __init__(
        self,
        ledger: Ledger,
        evaluator: Evaluator,
        backoff: Backoff | None = None,
        connections: Connections | None = None,
    ) -> None:
        self._ledger = ledger
        self._backoff = backoff or Backoff()
        self._connections = connections or Connections(lambda: evaluator.config.pipelines)
        self._runs = RunFollower(ledger, evaluator, self._connections, self._backoff)
        self._stopping = Event()
        self._due: dict[str, float] = {}
        self._lanes: dict[str, Worker] = {}  # changed under the ledger's lock
        self._deliverer = Worker("outbox", self._run)

    def start(self) -> None:
        """Begin to deliver."""
        self._deliverer.start()

    def close(self) -> None:
        """Stop; what is not delivered stays committed for the next start."""
        self._stopping.set()
        self._runs.stop()
        with self._ledger.changed:
            self._ledger.changed.notify_all()
        self._deliverer.join()
        end = monotonic() + GRACE_SECONDS
        lanes = [*self._lanes.values()]
        for lane in lanes:
            lane.join(max(0.0, end - monotonic()))
        self._connections.close()  # ends the watches
        for lane in lanes:
            lane.join()
        self._runs.join()

    def problem(self) -> str:
        """Return why deliveries do not go on, in one line; empty if they do."""
        # A lane that came to its end has taken itself out.
        found = [one.problem() for one in [self._deliverer, *self._lanes.values()]]
        return next(filter(None, found), "")

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._ledger.changed:
                for target in {message.target for message in self._waiting()} - {*self._lanes}:
                    lane = Worker(f"to-{target}", self._lane, target)
                    self._lanes[target] = lane
                    lane.start()
            self._runs.follow_all()
            with self._ledger.changed:
                startable = {m.target for m in self._waiting()} - {*self._lanes}
                if not startable and not self._runs.unfollowed() and not self._stopping.is_set():
                    self._ledger.changed.wait(self._pause())

    def _lane(self, target: str) -> None:
        """Deliver what waits for one pipeline, oldest first."""
        for message in self._waiting():
            if message.target == target and not self._stopping.is_set():
                try:
                    self._deliver(message)
                except LedgerWriteError as error:
                    self._unwritten(message, error)
        with self._ledger.changed:
            del self._lanes[target]
            self._ledger.changed.notify_all()

    def _waiting(self) -> list[Message]:
        now = monotonic()
        return [m for m in self._ledger.pending() if self._due.get(m.request_id, 0) <= now]

    def _pause(self) -> float:
        """Return seconds until the next retry; a minute without one."""
        return max(0.0, min([*self._due.values(), monotonic() + 60]) - monotonic())

    def _deliver(self, message: Message) -> None:
        """Send one message once, and commit what came of it."""
        request = message.request_id
        self._due.pop(request, None)
        body = pipeline_pb2.TriggerRetrainRequest.FromString(message.body)
        fault("before_send")
        try:
            run = self._connections.to(message.target).trigger(body)
        except UnansweredError as error:
            self._later(message, error.reason)
            return
        except RejectedError as error:
            if not self._stopping.is_set():
                self._ledger.attempted(request, dead=error.reason)
                log.error("dead_letter", request=request, reason=error.reason)  # noqa: TRY400 - no bug
            return
        fault("after_send")
        self._ledger.delivered(request, run)
        log.info("delivered", request=request, run=run.run_id)

    def _unwritten(self, message: Message, error: LedgerWriteError) -> None:
        """Deliver again later what may have been delivered: the pipeline knows it by its id."""
        wait = self._backoff.seconds(message.attempts + 1)
        self._due[message.request_id] = monotonic() + wait
        log.error("unwritten", request=message.request_id, reason=str(error))

    def _later(self, message: Message, reason: str) -> None:
        if self._stopping.is_set():
            return
        wait = self._backoff.seconds(message.attempts + 1)
        self._due[message.request_id] = monotonic() + wait
        self._ledger.attempted(message.request_id)
        log.warning(
            "undelivered", request=message.request_id, reason=reason, retry_seconds=round(wait, 1)
        )
