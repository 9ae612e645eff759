"""Runs of our triggers, watched to their ends.

Above `connections`, below `dispatcher`. A run is followed by its numbered events, from the last
one committed on. The end of a run and the move of the reference that follows from a promotion are
one transaction.
"""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.delivery.pipeline import RejectedError, RunForgottenError, UnansweredError
from steadfeast.monitor.delivery.threads import Backoff, Worker
from steadfeast.monitor.ledger import ENDED, LedgerWriteError, state_name
from steadfeast.protos.steadfeast.v1 import pipeline_pb2

if TYPE_CHECKING:
    from steadfeast.monitor.delivery.connections import Connections
    from steadfeast.monitor.drift import Reference
    from steadfeast.monitor.evaluation import Evaluator
    from steadfeast.monitor.ledger import Following, Ledger

log = structlog.get_logger(__name__)


class RunFollower:
    """Follows each run in a thread of its own.

    Args:
        ledger: Where runs and their events are.
        evaluator: Builds and moves references.
        connections: To the pipelines.
        backoff: Waits between attempts.
    """

    def __init__(
        self, ledger: Ledger, evaluator: Evaluator, connections: Connections, backoff: Backoff
    ) -> None:
        self._ledger, self._evaluator = ledger, evaluator
        self._connections, self._backoff = connections, backoff
        self._stopping = Event()
        self._followers: dict[str, Worker] = {}

    def stop(self) -> None:
        """Begin no other watch; `join` waits for those under way, once they are cut."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until nothing is watched any more."""
        for follower in [*self._followers.values()]:
            follower.join()

    def unfollowed(self) -> list[Following]:
        """Return the runs under way that nobody follows yet."""
        return [
            following
            for following in self._ledger.following()
            if following.request_id not in self._followers
        ]

    def follow_all(self) -> None:
        """Begin to follow what nobody follows yet."""
        for request in [r for r, thread in self._followers.items() if not thread.alive()]:
            del self._followers[request]
        for following in self.unfollowed():
            follower = Worker(f"run-{following.run.run_id}", self._follow, following)
            self._followers[following.request_id] = follower
            follower.start()

    def _follow(self, following: Following) -> None:
        """Watch one run until its end, resuming after the last committed event."""
        run, sequence, failures = following.run, following.sequence, 0
        while not self._stopping.is_set():
            try:
                for number, now in self._connections.to(following.target).watch(run, sequence):
                    self._event(following, now, number)
                    run, sequence, failures = now, number, 0
                    if run.state in ENDED:
                        return
            except RunForgottenError as error:
                if self._stopping.is_set() or self._lost(following, sequence, error.reason):
                    return
            except LedgerWriteError as error:
                log.error("unwritten", run=run.run_id, reason=str(error))  # noqa: TRY400 - no bug
            except (UnansweredError, RejectedError) as error:
                if self._stopping.is_set():
                    return
                log.warning("watch_broken", run=run.run_id, reason=error.reason)
            failures += 1
            self._stopping.wait(self._backoff.seconds(failures))

    def _event(self, following: Following, run: pipeline_pb2.Run, sequence: int) -> None:
        """Commit one event; with a promotion, the new reference in the same transaction."""
        references: dict[str, Reference] = {}
        note = ""
        if run.state == pipeline_pb2.RUN_STATE_PROMOTED:
            try:
                references = self._evaluator.build(run)
            except UserError as error:
                note = f"the reference stays where it was: {error}"
                log.exception("reference_refused", run=run.run_id)
        with self._ledger.transaction():
            self._ledger.run_event(following.request_id, run, sequence, note=note)
            self._evaluator.move(references, f"version {run.model_version} promoted")
        log.info("run", run=run.run_id, state=state_name(run.state), sequence=sequence)

    def _lost(self, following: Following, sequence: int, reason: str) -> bool:
        """End a run that the pipeline has forgotten; nobody else will. False if that failed."""
        run = pipeline_pb2.Run()
        run.CopyFrom(following.run)
        run.state = pipeline_pb2.RUN_STATE_FAILED
        run.reason = f"the pipeline no longer knows the run: {reason}"
        try:
            self._ledger.run_event(following.request_id, run, sequence)
        except LedgerWriteError:
            return False
        log.error("run_lost", run=run.run_id, reason=reason)
        return True
