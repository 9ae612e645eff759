"""The edge: features over gRPC and over HTTP, with health, reflection and metrics.

Above `http_app`; `cli` calls `serve`. What is served is logged first; predictions and labels of it
come in by streams. Protobuf in, one call of the store, protobuf out. Ports, tokens and limits are
those of every server, see `security`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pyarrow as pa

from steadfeast.featurestore.errors import (
    LogUnavailableError,
    RequestError,
    SteadfeastError,
)
from steadfeast.featurestore.grpc_errors import abort, error_info
from steadfeast.featurestore.security import (
    GRACE_SECONDS,
    Ports,
    Role,
    Security,
    load_security,
    signals,
    until_stopped,
)
from steadfeast.featurestore.server import arrow_stream, feast_grpc
from steadfeast.featurestore.server.http_app import Application, is_brief
from steadfeast.featurestore.server.metrics import Figures, answer_of
from steadfeast.featurestore.server.request_log import REQUEST_ID, Named, log, request_id
from steadfeast.featurestore.server.workers import Siblings, until_orphaned
from steadfeast.featurestore.tracing import configure, span
from steadfeast.protos.steadfeast.v1 import features_pb2, features_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import grpc

    from steadfeast.featurestore.store import Store

SERVICE = features_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name
_DETAIL = 200  # characters; all details travel in one HTTP/2 header of 8 KiB


ROLES = {
    f"{SERVICE}/{name}": role
    for name, role in (
        ("GetFeatures", Role.READ),
        ("LogPredictions", Role.LOG),
        ("LogLabels", Role.LOG),
    )
}


class Features(features_pb2_grpc.FeatureServiceServicer):
    """FeatureService over one store."""

    def __init__(self, store: Store, figures: Figures) -> None:
        self._store, self._figures = store, figures

    async def GetFeatures(  # noqa: N802 - the protocol's name
        self, request: features_pb2.GetFeaturesRequest, context: grpc.ServicerContext
    ) -> features_pb2.GetFeaturesResponse:
        """See features.proto."""
        try:
            with self._figures.request("grpc", request.service):
                given = dict(context.invocation_metadata()).get(REQUEST_ID, "")
                name = request_id(str(given))
                entities = arrow_stream.read("entities", request.entities)
                asked = (request, name, entities)
                if is_brief(self._store, request.service, request.contract, entities.num_rows):
                    return self._answer(*asked)
                return await asyncio.to_thread(self._answer, *asked)
        except SteadfeastError as error:
            refuse(context, error)

    async def LogPredictions(  # noqa: N802
        self,
        requests: AsyncIterator[features_pb2.LogPredictionsRequest],
        context: grpc.ServicerContext,
    ) -> features_pb2.LogResponse:
        """See features.proto."""
        service = model = version = ""
        accepted, now = 0, datetime.now(UTC)
        try:
            async for request in requests:
                service = request.service or service
                model, version = request.model or model, request.model_version or version
                some = request.predictions
                await asyncio.to_thread(
                    self._store.served.append_predictions,
                    service,
                    [one.request_id for one in some],
                    [one.value for one in some],
                    request_time=[time_of(one, "request_time", now) for one in some],
                    model=model,
                    model_version=version,
                )
                accepted += len(some)
            await asyncio.to_thread(self._written, "predictions", service)
        except SteadfeastError as error:
            refuse(context, error)
        self._figures.logged("predictions", service, accepted)
        return features_pb2.LogResponse(accepted=accepted)

    async def LogLabels(  # noqa: N802
        self, requests: AsyncIterator[features_pb2.LogLabelsRequest], context: grpc.ServicerContext
    ) -> features_pb2.LogResponse:
        """See features.proto."""
        service, accepted, now = "", 0, datetime.now(UTC)
        try:
            async for request in requests:
                service, some = request.service or service, request.labels
                await asyncio.to_thread(
                    self._store.served.append_labels,
                    service,
                    [one.request_id for one in some],
                    [one.value for one in some],
                    [time_of(one, "known_at", now) for one in some],
                )
                accepted += len(some)
            await asyncio.to_thread(self._written, "labels", service)
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
        self, request: features_pb2.GetFeaturesRequest, name: str, entities: pa.Table
    ) -> features_pb2.GetFeaturesResponse:
        named = Named(name, request.request_ids, request.model, request.model_version)
        at = time_of(request, "request_time", datetime.now(UTC))
        with span("read", request.service, (name,)):
            got = self._store.online_features(
                request.service, entities, request_time=at, contract=request.contract or None
            )
        with span("log", request.service, (name,)):
            log(self._store, request.service, got, named, at)
        self._figures.served("grpc", request.service, got, at)
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


class Edge(Ports):
    """Both ports of a store; a context manager that serves and drains them.

    Args:
        store: Answers; stays open.
        grpc_address: `host:port`; port 0 takes a free one.
        http_address: The same for HTTP.
        security: Who may ask what; without it, everybody on loopback.
        siblings: Folder of the workers that share the addresses, if there are any.

    Raises:
        AddressError: See `Ports`.
    """

    def __init__(
        self,
        store: Store,
        grpc_address: str,
        http_address: str,
        security: Security | None = None,
        siblings: Path | None = None,
    ) -> None:
        figures, security = Figures(), security or Security()
        figures.backlog = store.served.waiting
        self._draining = Event()

        def services(server: Any) -> None:
            features = Features(store, figures)
            features_pb2_grpc.add_FeatureServiceServicer_to_server(features, server)
            feast_grpc.add_to_server(feast_grpc.Serving(store, figures), server)

        super().__init__(
            security,
            roles={**ROLES, **feast_grpc.ROLES},
            services=services,
            names=(SERVICE, feast_grpc.SERVICE),
            grpc_address=grpc_address,
            http_address=http_address,
            app=Application(store, figures, lambda: not self._draining.is_set(), security.access),
            shared=siblings is not None,
            stopping=self._draining.set,
        )
        self._siblings: Siblings | None = None
        if siblings is not None:
            self._siblings = Siblings(siblings, figures.plain)
            figures.others = self._siblings.others

    def close(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """See `Ports`."""
        super().close(grace_seconds)
        if self._siblings is not None:
            self._siblings.close()


def serve(
    store: Store,
    grpc_address: str,
    http_address: str,
    config: Path,
    siblings: Path | None = None,
) -> None:
    """Serve `store` until SIGTERM or SIGINT, then drain; SIGHUP reads the tokens of `config` again.

    With `siblings`, as one worker of several: also until standard input ends.

    Raises:
        AddressError: See `Edge`.
        ConfigError: Section `security` is wrong.
        CertificateError: A certificate cannot be used.
    """
    inbox: SimpleQueue[int] = SimpleQueue()
    if siblings is not None:
        until_orphaned(lambda: inbox.put(signal.SIGTERM))
    security = Security(load_security(config))
    traced = configure("steadfeast-store")
    edge = Edge(store, grpc_address, http_address, security, siblings)
    with edge, signals(inbox):
        sys.stdout.write(f"serving gRPC on port {edge.grpc_port}, HTTP on {edge.http_port}\n")
        sys.stdout.flush()
        until_stopped(inbox, security, config)
    traced()
