"""Committed triggers to pipelines, and their runs followed to the end.

Above `evaluation`. A trigger is in the ledger before it is sent, and stays pending there until
a pipeline has answered, so it is delivered at least once; the pipeline makes that once by the
request's id. A run is followed by its numbered events, from the last one committed on. The end
of a run and the move of the reference that follows from a promotion are one transaction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration

from featurestore.errors import UserError
from monitor.database import fault
from monitor.messages import ENDED, state_name
from protos.steadfeast.v1 import pipeline_pb2, pipeline_pb2_grpc

if TYPE_CHECKING:
    from monitor.calibrate import Reference
    from monitor.evaluation import Evaluator
    from monitor.ledger import Following, Ledger, Message

log = structlog.get_logger(__name__)

DEADLINE_SECONDS = 10.0
WATCH_SECONDS = 60.0
HEARTBEAT = Duration(seconds=10)

RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
"""Answers that say nothing about the request. A deadline is one: sending twice is harmless."""

_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


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
    """Delivers in one thread and follows each run in one more.

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
        self._channels: dict[str, grpc.Channel] = {}
        self._channels_lock = Lock()
        self._due: dict[str, float] = {}
        self._followers: dict[str, Thread] = {}
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
        with self._channels_lock:
            for channel in self._channels.values():
                channel.close()  # ends the watches
        for follower in self._followers.values():
            follower.join()

    def alive(self) -> bool:
        """Whether the delivery thread runs."""
        return self._deliverer.is_alive()

    def champion(self, model: str, target: str) -> pipeline_pb2.Run | None:
        """Return the last run of `model` that was promoted at pipeline `target`.

        Raises:
            grpc.RpcError: The pipeline cannot be asked.
        """
        request = pipeline_pb2.ListRunsRequest(
            model=model, states=[pipeline_pb2.RUN_STATE_PROMOTED], limit=1
        )
        runs = self._stub(target).ListRuns(request, timeout=DEADLINE_SECONDS).runs
        return runs[0] if runs else None

    def find_references(self) -> None:
        """Give each monitor that has no reference its model's champion, where there is one."""
        config = self._evaluator.config
        for name in self._evaluator.without_reference():
            monitor = config.monitors[name]
            for target in [monitor.pipeline] if monitor.pipeline else config.pipelines:
                try:
                    run = self.champion(monitor.model, target)
                except grpc.RpcError as error:
                    log.info("no_reference", monitor=name, pipeline=target, reason=_text(error))
                    continue
                if run is not None:
                    built = self._build(run)
                    self._evaluator.move({name: built[name]}, "first reference")
                    break
                log.info("no_reference", monitor=name, pipeline=target, reason="no promoted run")

    def _build(self, run: pipeline_pb2.Run) -> dict[str, Reference]:
        return self._evaluator.build(
            run.model, Path(run.manifest_uri), run.model_version, dict(run.metrics)
        )

    def _stub(self, target: str) -> pipeline_pb2_grpc.PipelineServiceStub:
        address = self._evaluator.config.pipelines[target]
        with self._channels_lock:
            if address not in self._channels:
                self._channels[address] = grpc.insecure_channel(address, options=_CHANNEL)
            return pipeline_pb2_grpc.PipelineServiceStub(self._channels[address])

    # Delivery

    def _run(self) -> None:
        while not self._stopping.is_set():
            for message in self._waiting():
                if not self._stopping.is_set():
                    self._deliver(message)
            self._follow_all()
            with self._ledger.changed:
                if not self._waiting() and not self._unfollowed() and not self._stopping.is_set():
                    self._ledger.changed.wait(self._pause())

    def _waiting(self) -> list[Message]:
        now = monotonic()
        return [m for m in self._ledger.pending() if self._due.get(m.request_id, 0) <= now]

    def _pause(self) -> float:
        """Return seconds until the next retry; a minute without one."""
        return max(0.0, min([*self._due.values(), monotonic() + 60]) - monotonic())

    def _deliver(self, message: Message) -> None:
        """Send one message once, and commit what came of it."""
        request = message.request_id
        if message.target not in self._evaluator.config.pipelines:
            self._later(message, f"pipeline {message.target!r} is not configured")
            return
        body = pipeline_pb2.TriggerRetrainRequest.FromString(message.body)
        fault("before_send")
        try:
            answer = self._stub(message.target).TriggerRetrain(body, timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            if error.code() in RETRIED:
                self._later(message, _text(error))
            elif not self._stopping.is_set():
                self._due.pop(request, None)
                self._ledger.attempted(request, dead=_text(error))
                log.error("dead_letter", request=request, reason=_text(error))  # noqa: TRY400 - no bug
            return
        fault("after_send")
        self._due.pop(request, None)
        self._ledger.delivered(request, answer.run)
        log.info("delivered", request=request, run=answer.run.run_id, created=answer.created)

    def _later(self, message: Message, reason: str) -> None:
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
        sequence, failures = following.sequence, 0
        while not self._stopping.is_set():
            watch = pipeline_pb2.WatchRunRequest(
                run_id=following.run.run_id,
                after_sequence=sequence,
                heartbeat_interval=HEARTBEAT,
            )
            try:
                # With a deadline, so that a pipeline that vanished without a word is noticed.
                for event in self._stub(following.target).WatchRun(watch, timeout=WATCH_SECONDS):
                    failures = 0
                    if event.HasField("run") and event.sequence > sequence:
                        sequence = event.sequence
                        self._event(following, event.run, sequence)
                        if event.run.state in ENDED:
                            return
            except (grpc.RpcError, ValueError, KeyError) as error:
                # ValueError: the channel was closed; KeyError: the pipeline left the file.
                if self._stopping.is_set():
                    return
                code = error.code() if isinstance(error, grpc.RpcError) else None
                if code is grpc.StatusCode.NOT_FOUND:
                    self._lost(following, sequence, _text(error))
                    return
                if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    continue
                log.warning("watch_broken", run=following.run.run_id, reason=_text(error))
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

    def _lost(self, following: Following, sequence: int, reason: str) -> None:
        """End a run that the pipeline has forgotten; nobody else will."""
        run = pipeline_pb2.Run()
        run.CopyFrom(following.run)
        run.state = pipeline_pb2.RUN_STATE_FAILED
        run.reason = f"the pipeline no longer knows the run: {reason}"
        self._ledger.run_event(following.request_id, run, sequence)
        log.error("run_lost", run=run.run_id, reason=reason)


def _text(error: Exception) -> str:
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return repr(error)
