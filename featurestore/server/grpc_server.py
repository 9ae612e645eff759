"""The edge: features over gRPC and over HTTP, with health, reflection and metrics.

Above `http_app`; `cli` calls `serve`. What is served is logged first; predictions and labels of it
come in by streams. Protobuf in, one call of the store, protobuf out. Plaintext is
served on loopback only. Stopping drains: health says NOT_SERVING first, calls under way end.
"""

from __future__ import annotations

import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import grpc
import pyarrow as pa
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from steadfeast.featurestore.config import is_loopback
from steadfeast.featurestore.errors import (
    AddressError,
    LogUnavailableError,
    RequestError,
    SteadfeastError,
)
from steadfeast.featurestore.grpc_errors import abort, error_info
from steadfeast.featurestore.server import arrow_stream
from steadfeast.featurestore.server.bodies import MAX_REQUEST_BYTES
from steadfeast.featurestore.server.http_app import Application
from steadfeast.featurestore.server.metrics import Figures, answer_of
from steadfeast.featurestore.server.request_log import REQUEST_ID, Named, log, request_id
from steadfeast.featurestore.server.workers import Siblings, until_orphaned
from steadfeast.protos.steadfeast.v1 import features_pb2, features_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from steadfeast.featurestore.store import Store

SERVICE = features_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name
WORKERS = 16
GRACE_SECONDS = 5.0
_DETAIL = 200  # characters; all details travel in one HTTP/2 header of 8 KiB


class Features(features_pb2_grpc.FeatureServiceServicer):
    """FeatureService over one store."""

    def __init__(self, store: Store, figures: Figures) -> None:
        self._store, self._figures = store, figures

    def GetFeatures(  # noqa: N802 - the protocol's name
        self, request: features_pb2.GetFeaturesRequest, context: grpc.ServicerContext
    ) -> features_pb2.GetFeaturesResponse:
        """See features.proto."""
        try:
            with self._figures.request("grpc", request.service):
                given = dict(context.invocation_metadata()).get(REQUEST_ID, "")
                return self._answer(request, request_id(str(given)))
        except SteadfeastError as error:
            refuse(context, error)

    def LogPredictions(  # noqa: N802
        self,
        requests: Iterator[features_pb2.LogPredictionsRequest],
        context: grpc.ServicerContext,
    ) -> features_pb2.LogResponse:
        """See features.proto."""
        service = model = version = ""
        accepted, now = 0, datetime.now(UTC)
        try:
            for request in requests:
                service = request.service or service
                model, version = request.model or model, request.model_version or version
                some = request.predictions
                self._store.served.append_predictions(
                    service,
                    [one.request_id for one in some],
                    [one.value for one in some],
                    request_time=[time_of(one, "request_time", now) for one in some],
                    model=model,
                    model_version=version,
                )
                accepted += len(some)
            self._written("predictions", service)
        except SteadfeastError as error:
            refuse(context, error)
        self._figures.logged("predictions", service, accepted)
        return features_pb2.LogResponse(accepted=accepted)

    def LogLabels(  # noqa: N802
        self, requests: Iterator[features_pb2.LogLabelsRequest], context: grpc.ServicerContext
    ) -> features_pb2.LogResponse:
        """See features.proto."""
        service, accepted, now = "", 0, datetime.now(UTC)
        try:
            for request in requests:
                service, some = request.service or service, request.labels
                self._store.served.append_labels(
                    service,
                    [one.request_id for one in some],
                    [one.value for one in some],
                    [time_of(one, "known_at", now) for one in some],
                )
                accepted += len(some)
            self._written("labels", service)
        except SteadfeastError as error:
            refuse(context, error)
        self._figures.logged("labels", service, accepted)
        return features_pb2.LogResponse(accepted=accepted)

    def _written(self, kind: Literal["predictions", "labels"], service: str) -> None:
        try:
            self._store.served.flush(kind, service)
        except OSError as error:
            raise LogUnavailableError(self._store.data, error) from error

    def _answer(
        self, request: features_pb2.GetFeaturesRequest, name: str
    ) -> features_pb2.GetFeaturesResponse:
        entities = arrow_stream.read("entities", request.entities)
        named = Named(name, request.request_ids, request.model, request.model_version)
        at = time_of(request, "request_time", datetime.now(UTC))
        got = self._store.online_features(
            request.service, entities, request_time=at, contract=request.contract or None
        )
        log(self._store, request.service, got, named, at)
        self._figures.served("grpc", request.service, got)
        answer = features_pb2.GetFeaturesResponse(
            features=_ipc(got.table),
            statuses={name: codes.tobytes() for name, codes in got.statuses.items()},
            contract=got.contract,
            event_times=_ipc(pa.table(dict(got.event_times))),
            request_ids=named.ids(got.rows),
        )
        answer.request_time.FromDatetime(at)
        return answer


def time_of(message: Any, field: str, otherwise: datetime) -> datetime:
    """Return a time of a message, or another where it is unset.

    Raises:
        RequestError: It is no time between the years 1 and 9999.
    """
    if not message.HasField(field):
        return otherwise
    try:
        time: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (OverflowError, ValueError) as error:
        raise RequestError(field, str(error)) from error
    return time


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def refuse(
    context: grpc.ServicerContext, error: SteadfeastError, code: grpc.StatusCode | None = None
) -> NoReturn:
    """End a call with what an error is on the wire, its kind and data as details."""
    data = {name: str(value)[:_DETAIL] for name, value in vars(error).items()}
    detail = error_info(type(error).__name__, data)
    abort(context, code or answer_of(error).grpc, str(error)[:2000], detail)


class Edge:
    """Both servers; a context manager that starts and drains them.

    Args:
        store: Answers; stays open.
        grpc_address: `host:port`; port 0 takes a free one.
        http_address: The same for HTTP.
        siblings: Folder of the workers that share the addresses, if there are any.

    Raises:
        AddressError: An address is no loopback address, is taken or is not `host:port`.

    Attributes:
        grpc_port: The port taken.
        http_port: The port taken.
    """

    def __init__(
        self, store: Store, grpc_address: str, http_address: str, siblings: Path | None = None
    ) -> None:
        figures = Figures()
        self._draining = Event()
        self._siblings: Siblings | None = None
        shared = siblings is not None
        with ExitStack() as undo:
            self._socket = undo.enter_context(listen(http_address, shared=shared))
            self.http_port: int = self._socket.getsockname()[1]
            self._grpc = grpc.server(
                ThreadPoolExecutor(WORKERS, "grpc"),
                options=[
                    ("grpc.so_reuseport", int(shared)),
                    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                    ("grpc.max_send_message_length", -1),
                ],
            )
            self._health = health.HealthServicer()
            features_pb2_grpc.add_FeatureServiceServicer_to_server(
                Features(store, figures), self._grpc
            )
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
            split(grpc_address)
            try:
                self.grpc_port: int = self._grpc.add_insecure_port(grpc_address)
            except RuntimeError as error:
                raise AddressError(grpc_address, "is taken or unknown") from error
            if siblings is not None:
                self._siblings = Siblings(siblings, figures.plain)
                figures.others = self._siblings.others
            undo.pop_all()
        self._http = uvicorn.Server(
            uvicorn.Config(
                Application(store, figures, lambda: not self._draining.is_set()),
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=int(GRACE_SECONDS),
            )
        )
        self._thread = Thread(target=self._http.run, args=([self._socket],), name="http")

    def __enter__(self) -> Self:
        self._grpc.start()
        self._thread.start()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draining.set()
        self._health.enter_graceful_shutdown()
        self._grpc.stop(GRACE_SECONDS).wait()
        self._http.should_exit = True
        self._thread.join()
        self._socket.close()
        if self._siblings is not None:
            self._siblings.close()


def serve(store: Store, grpc_address: str, http_address: str, siblings: Path | None = None) -> None:
    """Serve `store` until SIGTERM or SIGINT, then drain.

    With `siblings`, as one worker of several: also until standard input ends.

    Raises:
        AddressError: See `Edge`.
    """
    inbox: SimpleQueue[int] = SimpleQueue()
    if siblings is not None:
        until_orphaned(lambda: inbox.put(signal.SIGTERM))
    with Edge(store, grpc_address, http_address, siblings) as edge:
        before = {
            number: signal.signal(number, lambda caught, _: inbox.put(caught))
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        sys.stdout.write(f"serving gRPC on port {edge.grpc_port}, HTTP on {edge.http_port}\n")
        sys.stdout.flush()
        try:
            inbox.get()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def split(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`.

    Raises:
        AddressError: It is something else, or is not on loopback.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal():
        raise AddressError(address, "is not host:port")
    if not is_loopback(address):
        raise AddressError(address, "is served in plaintext, which only loopback may be")
    return host, int(port)


def listen(address: str, *, shared: bool = False) -> socket.socket:
    """Return a socket that listens on `host:port`.

    Raises:
        AddressError: It is no loopback address, or is taken.
    """
    host, port = split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024, reuse_port=shared)
    except OSError as error:
        raise AddressError(address, str(error.strerror)) from error
