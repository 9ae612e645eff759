"""PipelineService: the gRPC edge of the queue, and the process around it.

Above `worker`. A request is checked here and trusted inside. Errors carry google.rpc details:
field violations for what is malformed, the run and both hashes for a reused request id.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

import grpc
from google.rpc.error_details_pb2 import ResourceInfo

from steadfeast.featurestore.errors import AddressError, ConfigError, NotFoundError, UserError
from steadfeast.featurestore.grpc_errors import (
    abort,
    bad_request,
    error_info,
    precondition_failure,
)
from steadfeast.featurestore.security import (
    Ports,
    Role,
    Security,
    caller,
    load_security,
    signals,
    until_stopped,
)
from steadfeast.pipeline.config import load
from steadfeast.pipeline.gates import load_checks
from steadfeast.pipeline.queue import (
    ENDED,
    POLL_SECONDS,
    QueueWriteError,
    RequestConflictError,
    RunEndedError,
    RunQueue,
)
from steadfeast.pipeline.recipes import load_function
from steadfeast.pipeline.registry import Registry
from steadfeast.pipeline.server.worker import Worker
from steadfeast.pipeline.tracking import check_trackers
from steadfeast.pipeline.training import Retrain, judged_by, promotion
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from steadfeast.protos.steadfeast.v1 import pipeline_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from steadfeast.pipeline.config import PipelineConfig

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["PipelineService"].full_name
CALLS, STREAMS = 16, 12
"""Calls served at once, and how many of them may be streams."""
ROLES = {
    f"{SERVICE}/{name}": role
    for name, role in (
        ("TriggerRetrain", Role.TRIGGER),
        ("CancelRun", Role.TRIGGER),
        ("PromoteVersion", Role.PROMOTE),
        ("RollBack", Role.PROMOTE),
        ("GetRun", Role.READ),
        ("ListRuns", Role.READ),
        ("WatchRun", Role.READ),
    )
}

MAX_REQUEST_BYTES = 256 * 1024
"""A trigger names some thousand features at most; it is kept with every event of its run."""
_HEARTBEAT_SECONDS = (0.1, 60.0)
_LIST_LIMIT = 1000


class InvalidRequestError(UserError):
    """A malformed request.

    Attributes:
        violations: `(field, problem)` pairs; the field is dotted.
    """

    def __init__(self, violations: list[tuple[str, str]]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in violations))


class PipelineService(rpc.PipelineServiceServicer):
    """Protobuf in, one call of the queue, protobuf out.

    Args:
        queue: The runs.
        registry: Where models are registered.
        models: The models that there is a recipe for.
        stopping: Set when streams are to end.
    """

    def __init__(
        self,
        queue: RunQueue,
        registry: Registry,
        models: Collection[str],
        stopping: threading.Event,
    ) -> None:
        self._queue, self._registry = queue, registry
        self._models, self._stopping = models, stopping
        self._streams = threading.Semaphore(STREAMS)

    def TriggerRetrain(  # noqa: N802, D102 - the proto names and documents it
        self, request: pb.TriggerRetrainRequest, context: grpc.ServicerContext
    ) -> pb.TriggerRetrainResponse:
        with _answering(context):
            check_trigger(request)
            if request.model not in self._models:
                raise NotFoundError("model", request.model, self._models)
            run, created = self._queue.accept(request, asked_by=caller(context).name)
        return pb.TriggerRetrainResponse(run=run, created=created)

    def GetRun(  # noqa: N802, D102
        self, request: pb.GetRunRequest, context: grpc.ServicerContext
    ) -> pb.GetRunResponse:
        with _answering(context):
            return pb.GetRunResponse(run=self._queue.get(request.run_id))

    def ListRuns(  # noqa: N802, D102
        self, request: pb.ListRunsRequest, context: grpc.ServicerContext
    ) -> pb.ListRunsResponse:
        with _answering(context):
            if not 0 <= request.limit <= _LIST_LIMIT:
                raise InvalidRequestError([("limit", f"must be 0 to {_LIST_LIMIT}")])
            runs = self._queue.runs(request.model, request.states, request.limit or 100)
        return pb.ListRunsResponse(runs=runs)

    def CancelRun(  # noqa: N802, D102
        self, request: pb.CancelRunRequest, context: grpc.ServicerContext
    ) -> pb.CancelRunResponse:
        with _answering(context):
            return pb.CancelRunResponse(run=self._queue.cancel(request.run_id, request.reason))

    def PromoteVersion(  # noqa: N802, D102
        self, request: pb.PromoteVersionRequest, context: grpc.ServicerContext
    ) -> pb.PromoteVersionResponse:
        with _answering(context):
            self._check_promotion(request)
            by = promotion.By(request.actor, request.comment)
            run = promotion.by_hand(self._queue, self._registry, request.model, request.version, by)
        return pb.PromoteVersionResponse(run=run)

    def RollBack(  # noqa: N802, D102
        self, request: pb.RollBackRequest, context: grpc.ServicerContext
    ) -> pb.RollBackResponse:
        with _answering(context):
            self._check_promotion(request)
            by = promotion.By(request.actor, request.comment)
            run = promotion.rollback(self._queue, self._registry, request.model, by)
        return pb.RollBackResponse(run=run)

    def _check_promotion(self, request: pb.PromoteVersionRequest | pb.RollBackRequest) -> None:
        if not request.actor:
            raise InvalidRequestError([("actor", "is empty; it is kept with the promotion")])
        if request.model not in self._models:
            raise NotFoundError("model", request.model, self._models)

    def WatchRun(  # noqa: N802, D102
        self, request: pb.WatchRunRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchRunResponse]:
        with _answering(context):
            heartbeat_seconds = _heartbeat_seconds(request)
            self._queue.get(request.run_id)
        if not self._streams.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{STREAMS} streams are open")
        try:
            yield from self._watch(request, context, heartbeat_seconds)
        finally:
            self._streams.release()

    def _watch(
        self, request: pb.WatchRunRequest, context: grpc.ServicerContext, heartbeat_seconds: float
    ) -> Iterator[pb.WatchRunResponse]:
        after = request.after_sequence
        due = monotonic() + heartbeat_seconds
        while context.is_active():
            ended = self._queue.get(request.run_id).state in ENDED  # before its events are read
            for event in self._queue.events(request.run_id, after):
                after, due = event.sequence, monotonic() + heartbeat_seconds
                sent = pb.WatchRunResponse(sequence=event.sequence, run=event.run)
                sent.at.FromDatetime(event.at)
                yield sent
            if ended:
                return
            if self._stopping.is_set():
                context.abort(
                    grpc.StatusCode.UNAVAILABLE,
                    f"the pipeline is stopping; resume after sequence {after}",
                )
            if monotonic() >= due:
                beat = pb.WatchRunResponse(sequence=after)
                beat.at.GetCurrentTime()
                due = monotonic() + heartbeat_seconds
                yield beat
            self._queue.wait(max(0.0, min(POLL_SECONDS, due - monotonic())))


def check_trigger(request: pb.TriggerRetrainRequest) -> None:
    """Check everything about a trigger that needs no knowledge of the models.

    Raises:
        InvalidRequestError: With every field that is at fault.
    """
    problems = []
    try:
        uuid.UUID(request.request_id)
    except ValueError:
        problems.append(("request_id", f"{request.request_id!r} is not a UUID"))
    if not request.model:
        problems.append(("model", "is empty"))
    if request.contract and not re.fullmatch("[0-9a-f]{64}", request.contract):
        problems.append(("contract", "is not 64 hexadecimal digits"))
    if not request.HasField("as_of"):
        problems.append(("as_of", "is missing"))
    if request.cause.kind == pb.CAUSE_KIND_UNSPECIFIED:
        problems.append(("cause.kind", "is missing"))
    problems += [
        (f"cause.{name}", "ends before it starts")
        for name, window in (
            ("current", request.cause.current),
            ("reference", request.cause.reference),
        )
        if window.end.ToNanoseconds() < window.start.ToNanoseconds()
    ]
    if problems:
        raise InvalidRequestError(problems)


def _heartbeat_seconds(request: pb.WatchRunRequest) -> float:
    low, high = _HEARTBEAT_SECONDS
    seconds = 10.0
    if request.HasField("heartbeat_interval"):
        seconds = request.heartbeat_interval.ToTimedelta().total_seconds()
    problems = []
    if not low <= seconds <= high:
        problems.append(("heartbeat_interval", f"must be {low} s to {high} s"))
    if request.after_sequence < 0:
        problems.append(("after_sequence", "must be 0 or more"))
    if problems:
        raise InvalidRequestError(problems)
    return seconds


@contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn the errors that a caller can act on into a status; bugs stay UNKNOWN, with a trace."""
    try:
        yield
    except InvalidRequestError as error:
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error), bad_request(error.violations))
    except NotFoundError as error:
        resource = ResourceInfo(resource_type=error.kind, resource_name=error.name)
        abort(context, grpc.StatusCode.NOT_FOUND, str(error), resource)
    except RequestConflictError as error:
        hashes = {
            "run_id": error.run_id,
            "accepted_sha256": error.accepted_sha256,
            "offered_sha256": error.offered_sha256,
        }
        info = error_info("REQUEST_CONFLICT", hashes)
        abort(context, grpc.StatusCode.ALREADY_EXISTS, str(error), info)
    except RunEndedError as error:
        failure = precondition_failure("RUN_ENDED", error.run_id, str(error))
        abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error), failure)
    except QueueWriteError as error:
        # To the monitor this alone means "later"; any other answer ends the trigger.
        info = error_info("QUEUE_UNWRITABLE", {"problem": error.problem})
        abort(context, grpc.StatusCode.UNAVAILABLE, str(error), info)


class Server(Ports):
    """The gRPC port over a queue, listening once entered; `grpc_port` is what it got.

    Raises:
        AddressError: See `Ports`.
    """

    def __init__(
        self,
        config: PipelineConfig,
        queue: RunQueue,
        registry: Registry,
        security: Security | None = None,
    ) -> None:
        stopping = threading.Event()
        service = PipelineService(queue, registry, config.models, stopping)
        super().__init__(
            security or Security(),
            roles=ROLES,
            services=partial(rpc.add_PipelineServiceServicer_to_server, service),
            names=(SERVICE,),
            grpc_address=config.grpc,
            threads=CALLS,
            request_bytes=MAX_REQUEST_BYTES,
            plain=True,
            stopping=stopping.set,
        )


def serve(path: Path) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code: 0, or 1 if the worker died.

    SIGHUP reads the tokens of the configuration again.

    Raises:
        ConfigError: The configuration is wrong, before any port is open.
        RegistryError: MLflow cannot be opened.
    """
    config, _ = load(path)
    check_recipes(path, config)
    inbox: SimpleQueue[int] = SimpleQueue()
    with ExitStack() as stack:
        queue = stack.enter_context(RunQueue(config.state / "runs.db"))
        registry = Registry.open(config)
        work = Retrain(path, config, queue, registry)
        worker = Worker(queue, work, config.state)
        security = Security(load_security(path))
        try:
            server = Server(config, queue, registry, security)
        except AddressError as error:
            problem = f"{error.address} {error.problem}"
            raise ConfigError(path, [("pipeline.grpc", problem)]) from error
        stack.enter_context(worker)
        stack.enter_context(server)
        stack.enter_context(signals(inbox))
        log.info("pipeline listens on %s:%d", config.grpc.rpartition(":")[0], server.grpc_port)
        if until_stopped(inbox, security, path, lambda: not worker.ended.is_set()):
            log.info("pipeline stops")
            return 0
    log.error("the worker died; see above")
    return 1


def check_recipes(path: Path, config: PipelineConfig) -> None:
    """Load every recipe, measure and check once, so that a wrong one is found before a run.

    Raises:
        ConfigError: With everything that cannot be loaded.
    """
    folder, problems = path.resolve().parent, []
    for name, model in config.models.items():
        where = f"pipeline.models.{name}"
        try:
            load_function(model.recipe, folder)
        except UserError as error:
            problems.append((f"{where}.recipe", str(error)))
        try:
            load_checks(model.checks.own, folder)
        except UserError as error:
            problems.append((f"{where}.checks.own", str(error)))
        for number, gate in enumerate(model.judged_by):
            try:
                judged_by(gate, folder)
            except UserError as error:
                problems.append((f"{where}.gates.{number}", str(error)))
    for name, problem in check_trackers(config.trackers, folder):
        problems.append((f"pipeline.trackers.{name}", problem))
    if problems:
        raise ConfigError(path, problems)
