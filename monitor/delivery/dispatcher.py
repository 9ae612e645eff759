"""Committed triggers to pipelines, and their runs followed to the end.

Above `evaluation` and `targets`. A trigger is in the ledger before it is sent, and stays pending
there until a pipeline has answered, so it is delivered at least once; the pipeline makes that
once by the request's id. Each pipeline has a queue of its own, so one that hangs delays no other.
A run is followed by its numbered events, from the last one committed on. The end of a run and the
move of the reference that follows from a promotion are one transaction; a promotion that somebody
made by hand is noticed at the next look.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.delivery.http_pipelines import connect
from steadfeast.monitor.delivery.pipeline import RejectedError, RunForgottenError, UnansweredError
from steadfeast.monitor.ledger.database import LedgerWriteError, fault
from steadfeast.monitor.ledger.messages import ENDED, state_name
from steadfeast.protos.steadfeast.v1 import pipeline_pb2

if TYPE_CHECKING:
    from steadfeast.monitor.delivery.pipeline import Target
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.evaluation.evaluator import Evaluator
    from steadfeast.monitor.ledger.ledger import Following, Ledger, Message

log = structlog.get_logger(__name__)

GRACE_SECONDS = 2.0
"""How long a delivery under way may take when the daemon stops."""

NOT_ASKED = "no pipeline was asked for the model's champion yet"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts: doubled each time, up to `most`, less a random half.

    Attributes:
        first: Seconds after the first failure.
        most: Seconds that are never exceeded.
    """

    first: float = 0.5
    most: float = 60.0

    def seconds(self, attempt: int) -> float:
        """Return how long to wait after failure number `attempt`, counted from 1."""
        whole: float = min(self.most, self.first * 2 ** min(attempt - 1, 30))
        return whole * random.uniform(0.5, 1)  # noqa: S311 - jitter is no secret


class Outbox:
    """Delivers in one thread for each pipeline and follows each run in one more.

    Args:
        ledger: Where the messages are.
        evaluator: Builds and moves references; its configuration names the pipelines.
        backoff: Waits between attempts.
    """

    def __init__(
        self, ledger: Ledger, evaluator: Evaluator, backoff: Backoff | None = None
    ) -> None:
        self._ledger, self._evaluator = ledger, evaluator
        self._backoff = backoff or Backoff()
        self._stopping = Event()
        self._targets: dict[str, tuple[object, Target]] = {}
        self._targets_lock = Lock()
        self._due: dict[str, float] = {}
        self._lanes: dict[str, Thread] = {}  # changed under the ledger's lock
        self._followers: dict[str, Thread] = {}
        self._missing: dict[str, str] = {}
        self._nobody: frozenset[str] = frozenset()
        self._deliverer = Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._deliverer.start()

    def close(self) -> None:
        """Stop; what is not delivered stays committed for the next start."""
        self._stopping.set()
        with self._ledger.changed:
            self._ledger.changed.notify_all()
        if self._deliverer.is_alive():
            self._deliverer.join()
        end = monotonic() + GRACE_SECONDS
        lanes = [*self._lanes.values()]
        for lane in lanes:
            lane.join(max(0.0, end - monotonic()))
        with self._targets_lock:
            for _, target in self._targets.values():
                target.close()  # ends the watches
        for thread in (*lanes, *self._followers.values()):
            thread.join()

    def alive(self) -> bool:
        """Whether the delivery threads run."""
        # A lane that came to its end has taken itself out.
        return self._deliverer.is_alive() and all(t.is_alive() for t in [*self._lanes.values()])

    # References

    def waits_for(self, monitor: str) -> str:
        """Return why a monitor has no reference, as of the last look."""
        return self._missing.get(monitor, NOT_ASKED)

    def nobody_has(self, monitor: str) -> bool:
        """Whether every pipeline there is has said that it has no reference for `monitor`."""
        return monitor in self._nobody

    def find_references(self) -> None:
        """Have each monitor compare with its model's champion, whoever promoted it."""
        nobody, missing = set(), {}
        for name, monitor in self._evaluator.config.monitors.items():
            if monitor.reference is not None:
                continue
            problem, final = self._find(name)
            if problem and self._ledger.held(name).reference is None:
                missing[name] = problem
                nobody |= {name} if final else set()
            if problem != self._missing.get(name, "") and problem:
                log.info("no_reference", monitor=name, reason=problem)
        self._missing, self._nobody = missing, frozenset(nobody)

    def _find(self, name: str) -> tuple[str, bool]:
        """Move one monitor to the champion; return why not, and whether that will stay so."""
        config = self._evaluator.config
        monitor, before = config.monitors[name], self._ledger.held(name).reference
        targets = [monitor.pipeline] if monitor.pipeline else list(config.pipelines)
        problems, final = [], True
        for target in targets:
            try:
                run = self._target(target).champion(monitor.model)
            except UnansweredError as error:
                problems.append(f"pipeline {target}: {error}")
                final = False
                continue
            if run is None:
                problems.append(f"pipeline {target}: no promoted run of model {monitor.model}")
                continue
            try:
                self._follow_champion(name, run, before)
            except UserError as error:
                problems.append(f"pipeline {target}: run {run.run_id}: {error}")
                continue
            return "", True
        if not targets:
            problems = ["no pipeline is configured, and the monitor names no reference"]
        return "; ".join(problems), final

    def _follow_champion(self, name: str, run: pipeline_pb2.Run, before: Reference | None) -> None:
        if before is not None:
            if (before.uri, before.model_version) == (run.manifest_uri, run.model_version):
                return
            if any(one.request_id == run.request_id for one in self._ledger.following()):
                return  # whoever follows the run commits its end and the move together
        built = {name: self._build(run)[name]}
        with self._ledger.transaction():
            # Moved since the pipeline was asked: what it said may be older than that.
            if self._ledger.held(name).reference is before:
                how = f": {run.reason}" if run.reason else ""
                reason = f"version {run.model_version} promoted{how}"
                self._evaluator.move(built, "first reference" if before is None else reason)
                if not self._ledger.asked_for(run.request_id):
                    noticed_at = self._ledger.held(name).watermark or run.as_of.ToDatetime(UTC)
                    self._ledger.add_promotion(name, run, noticed_at)

    def _build(self, run: pipeline_pb2.Run) -> dict[str, Reference]:
        return self._evaluator.build(run)

    def _target(self, name: str) -> Target:
        """Return a pipeline, made anew when its configuration has changed.

        Raises:
            UnansweredError: It is not configured, or the outbox is closed.
        """
        config = self._evaluator.config.pipelines.get(name)
        if config is None:
            raise UnansweredError(f"pipeline {name!r} is not configured")
        with self._targets_lock:
            if self._stopping.is_set():
                raise UnansweredError("the daemon is shutting down")
            made_for, target = self._targets.get(name, (None, None))
            if target is None or made_for != config:
                if target is not None:
                    target.close()
                target = connect(config)
                self._targets[name] = (config, target)
            return target

    # Delivery

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._ledger.changed:
                for target in {message.target for message in self._waiting()} - {*self._lanes}:
                    lane = Thread(
                        target=self._lane, args=[target], name=f"to-{target}", daemon=True
                    )
                    self._lanes[target] = lane
                    lane.start()
            self._follow_all()
            with self._ledger.changed:
                startable = {m.target for m in self._waiting()} - {*self._lanes}
                if not startable and not self._unfollowed() and not self._stopping.is_set():
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
            run = self._target(message.target).trigger(body)
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

    # Runs

    def _unfollowed(self) -> list[Following]:
        return [
            following
            for following in self._ledger.following()
            if following.request_id not in self._followers
        ]

    def _follow_all(self) -> None:
        for request in [r for r, thread in self._followers.items() if not thread.is_alive()]:
            del self._followers[request]
        for following in self._unfollowed():
            follower = Thread(
                target=self._follow,
                args=[following],
                name=f"run-{following.run.run_id}",
                daemon=True,
            )
            self._followers[following.request_id] = follower
            follower.start()

    def _follow(self, following: Following) -> None:
        """Watch one run until its end, resuming after the last committed event."""
        run, sequence, failures = following.run, following.sequence, 0
        while not self._stopping.is_set():
            try:
                for number, now in self._target(following.target).watch(run, sequence):
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
                references = self._build(run)
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
