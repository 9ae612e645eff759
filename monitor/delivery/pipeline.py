"""Where triggers go: what every pipeline can be asked, and gRPC, which most of them speak.

Above `messages`; `outbox` delivers to what is made here, `adapters` has the pipelines that are
reached over HTTP.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import grpc
from google.protobuf.duration_pb2 import Duration

from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.featurestore.security import CredentialsError, channel
from steadfeast.monitor.ledger import ENDED
from steadfeast.protos.steadfeast.v1 import pipeline_pb2, pipeline_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steadfeast.monitor.config import GrpcPipelineConfig

DEADLINE_SECONDS = 10.0
WATCH_SECONDS = 60.0
HEARTBEAT = Duration(seconds=10)

RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
"""Answers that say nothing about the request. A deadline is one: sending twice is harmless."""

_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


class UnansweredError(SteadfeastError):
    """A pipeline did not answer; whether it has heard the request is unknown.

    Attributes:
        reason: What was seen instead, in one line.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RejectedError(SteadfeastError):
    """A pipeline answered that it will not; asking again would not help.

    Attributes:
        reason: What it said, in one line.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RunForgottenError(SteadfeastError):
    """A pipeline does not know a run that it has accepted.

    Attributes:
        reason: What it said, in one line.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Pipeline(Protocol):
    """One pipeline; safe to share between threads."""

    def trigger(self, request: pipeline_pb2.TriggerRetrainRequest) -> pipeline_pb2.Run:
        """Deliver a trigger and return its run; once the run exists, the same again.

        Raises:
            UnansweredError: It is to be sent again.
            RejectedError: It is not.
        """

    def watch(self, run: pipeline_pb2.Run, after: int) -> Iterator[tuple[int, pipeline_pb2.Run]]:
        """Yield (sequence, run) for every event above `after`; may stop before the run's end.

        Raises:
            UnansweredError: The stream broke.
            RunForgottenError: There is no such run.
        """

    def champion(self, model: str) -> pipeline_pb2.Run | None:
        """Return the run that was promoted last; None if none was, or if it cannot say.

        Raises:
            UnansweredError: It cannot be asked now.
        """

    def close(self) -> None:
        """End what is under way."""


class GrpcTarget:
    """A pipeline that speaks PipelineService.

    Args:
        channel: Closed with this.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._stub = pipeline_pb2_grpc.PipelineServiceStub(channel)

    def trigger(self, request: pipeline_pb2.TriggerRetrainRequest) -> pipeline_pb2.Run:
        """See `Pipeline`."""
        try:
            return self._stub.TriggerRetrain(request, timeout=DEADLINE_SECONDS).run
        except grpc.RpcError as error:
            if error.code() in RETRIED:
                raise UnansweredError(_text(error)) from error
            raise RejectedError(_text(error)) from error
        except ValueError as error:
            raise UnansweredError("the channel is closed") from error

    def watch(self, run: pipeline_pb2.Run, after: int) -> Iterator[tuple[int, pipeline_pb2.Run]]:
        """See `Pipeline`. Ends after a minute, so that one that vanished is noticed."""
        request = pipeline_pb2.WatchRunRequest(
            run_id=run.run_id, after_sequence=after, heartbeat_interval=HEARTBEAT
        )
        with _watched():
            for event in self._stub.WatchRun(request, timeout=WATCH_SECONDS):
                if event.HasField("run") and event.sequence > after:
                    after = event.sequence
                    yield event.sequence, event.run
                    if event.run.state in ENDED:
                        return

    def champion(self, model: str) -> pipeline_pb2.Run | None:
        """See `Pipeline`."""
        runs = self.promoted(model, limit=1)
        return runs[0] if runs else None

    def promoted(self, model: str, limit: int = 1000) -> list[pipeline_pb2.Run]:
        """Return the runs of a model that were promoted, the last one first.

        Raises:
            UnansweredError: It cannot be asked now.
        """
        request = pipeline_pb2.ListRunsRequest(
            model=model, states=[pipeline_pb2.RUN_STATE_PROMOTED], limit=limit
        )
        try:
            answer = self._stub.ListRuns(request, timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            raise UnansweredError(_text(error)) from error
        return list(answer.runs)

    def close(self) -> None:
        """See `Pipeline`."""
        self._channel.close()


def grpc_pipeline(config: GrpcPipelineConfig) -> Pipeline:
    """Return the pipeline that `config` describes; connects when first asked.

    Raises:
        UnansweredError: A certificate cannot be read.
    """
    try:
        # Whether plaintext is allowed off loopback was asked when the configuration was read.
        opened = channel(
            config.address,
            token=config.token.get_secret_value(),
            tls=config.tls,
            allow_plaintext=True,
            options=_CHANNEL,
        )
    except CredentialsError as error:
        raise UnansweredError(str(error)) from error
    return GrpcTarget(opened)


@contextmanager
def _watched() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.NOT_FOUND:
            raise RunForgottenError(_text(error)) from error
        if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise UnansweredError(_text(error)) from error
    except ValueError as error:
        raise UnansweredError("the channel is closed") from error


def _text(error: Exception) -> str:
    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return repr(error)
