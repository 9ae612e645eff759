"""The HTTP edge: the request and the JSON of Feast's `/get-online-features`, health, metrics.

Above `request_log`, below `grpc_server`. A feature service is answered by `Store.online_features`,
and logged; a list of single features by Feast's own SDK on the same online store, which is slower
and just as right, and is no service that could be logged.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from feast.errors import FeastError
from feast.feature_server_utils import convert_response_to_dict
from prometheus_client.exposition import choose_encoder
from pydantic import AwareDatetime, BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from steadfeast.featurestore.errors import EntityRowsError, RequestError, SteadfeastError
from steadfeast.featurestore.security import Role, refusal
from steadfeast.featurestore.server import feast_writes
from steadfeast.featurestore.server.arrow_stream import check_rows
from steadfeast.featurestore.server.bodies import TooLargeError, read_body
from steadfeast.featurestore.server.feast_json import answer
from steadfeast.featurestore.server.json_values import column_of
from steadfeast.featurestore.server.metrics import Figures, answer_of
from steadfeast.featurestore.server.problems import PROBLEM, problem
from steadfeast.featurestore.server.request_log import REQUEST_ID, Named, log, request_id
from steadfeast.featurestore.serving import rows_in
from steadfeast.featurestore.tracing import span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from steadfeast.featurestore.definitions import ServicePlan
    from steadfeast.featurestore.security import Access
    from steadfeast.featurestore.served_log import ServedLog
    from steadfeast.featurestore.serving import OnlineFeatures
    from steadfeast.featurestore.store import Store

_PATH = "/get-online-features"
ROLES = {
    _PATH: Role.READ,
    "/push": Role.WRITE,
    "/write-to-online-store": Role.WRITE,
    "/labels": Role.LOG,
    "/predictions": Role.LOG,
}
"""What each path needs; the others, for probes, are for everybody."""
_INLINE_ROWS = 1000
_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", PROBLEM.encode())
_REQUEST_ID = REQUEST_ID.encode()


class Query(BaseModel, frozen=True):
    """Body of a request, as Feast's server takes it; other keys are ignored.

    Attributes:
        entities: Column of values per join key and request field.
        feature_service: Name of a feature service; else `features` says what.
        features: `view:feature` references.
        full_feature_names: Whether features are called `view__feature`.
        contract: Serve only under this contract; empty means any. Steadfeast's own, as the rest.
        request_ids: Ids of the rows in the served log; absent, they are named after the request.
        model: The model that the features are for.
        model_version: Its version.
    """

    entities: dict[str, list[Any]]
    feature_service: str | None = None
    features: list[str] = []
    full_feature_names: bool = False
    contract: str = ""
    request_ids: list[str] = []
    model: str = ""
    model_version: str = ""


class Entry(BaseModel, frozen=True, extra="forbid"):
    """A prediction or a label, by the request that it is of.

    Attributes:
        request_id: As the served log has it.
        value: The prediction, or the outcome.
        time: When the features were read that the prediction was made of, or when the label became
            known; now, when absent.
    """

    request_id: str
    value: float
    time: AwareDatetime | None = None


class Logged(BaseModel, frozen=True, extra="forbid"):
    """What is logged later than its vector.

    Attributes:
        service: The feature service that was read.
    """

    service: str


class Labels(Logged, frozen=True):
    """Body of `POST /labels`.

    Attributes:
        labels: Outcomes of requests that were served.
    """

    labels: list[Entry]


class Predictions(Logged, frozen=True):
    """Body of `POST /predictions`.

    Attributes:
        model: Name of what predicted.
        model_version: Its version.
        predictions: What it said to requests that were served.
    """

    model: str
    model_version: str
    predictions: list[Entry]


_Body = TypeVar("_Body", bound=BaseModel)
_Logged = TypeVar("_Logged", bound=Logged)


class Application:
    """The ASGI application. Feature requests go round Starlette, which would take half the time.

    What needs no network and no user's code is answered in the event loop: a thread would cost
    more than the work.

    Args:
        store: Answers.
        figures: Shown on `/metrics`.
        ready: Whether requests are welcome; false while draining.
        access: Who may ask.
    """

    def __init__(
        self, store: Store, figures: Figures, ready: Callable[[], bool], access: Access
    ) -> None:
        self._store, self._figures, self._ready = store, figures, ready
        self._access = access
        self._rest = Starlette(
            routes=[
                Route(_PATH, self._features, methods=["POST"]),
                Route("/push", self._push, methods=["POST"]),
                Route("/write-to-online-store", self._write, methods=["POST"]),
                Route("/labels", self._labels, methods=["POST"]),
                Route("/predictions", self._predictions, methods=["POST"]),
                Route("/health", self._ready_now),
                Route("/readyz", self._ready_now),
                Route("/healthz", self._alive),
                Route("/metrics", self._metrics),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        role = ROLES.get(scope["path"])
        if role is not None:
            refused = refusal(self._access, role, scope)
            if refused is not None:
                await _problem(refused, refused.status)(scope, receive, send)
                return
        if scope["path"] != _PATH or scope["method"] != "POST":
            await self._rest(scope, receive, send)
            return
        sent = dict(scope["headers"])
        given = sent.get(_REQUEST_ID, b"").decode("latin-1")
        encoding = sent.get(b"content-encoding", b"").decode("latin-1")
        code, body, name = await self._answer(receive, given, encoding)
        kind = _JSON if code == HTTPStatus.OK else _PROBLEM
        headers = [kind, (b"content-length", b"%d" % len(body)), (_REQUEST_ID, name.encode())]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, receive: Receive, given: str, encoding: str) -> tuple[int, bytes, str]:
        name = ""
        try:
            name = request_id(given)
            query = _query(Query, await read_body(receive, encoding))
            asked = (self._store, self._figures, query, name)
            service = query.feature_service
            if service is not None and _is_brief(self._store, service, query):
                return 200, _features(*asked), name
            return 200, await asyncio.to_thread(_features, *asked), name
        except SteadfeastError as error:
            return _code(error), problem(error, _code(error)), name
        except FeastError as error:  # of a list of features, which Feast's SDK answers
            return error.http_status_code(), problem(error, error.http_status_code()), name

    async def _features(self, request: Request) -> Response:
        sent = request.headers
        code, body, name = await self._answer(
            request.receive, sent.get(REQUEST_ID, ""), sent.get("content-encoding", "")
        )
        kind = "application/json" if code == HTTPStatus.OK else PROBLEM
        return Response(body, code, {REQUEST_ID: name}, kind)

    async def _push(self, request: Request) -> Response:
        return await self._written(request, feast_writes.Pushed, feast_writes.push)

    async def _write(self, request: Request) -> Response:
        return await self._written(request, feast_writes.Written, feast_writes.write)

    async def _written(
        self, request: Request, shape: type[_Body], write: Callable[[Store, _Body], None]
    ) -> Response:
        try:
            body = _query(shape, await _body(request))
            await asyncio.to_thread(write, self._store, body)
        except SteadfeastError as error:
            return _problem(error, _code(error))
        return JSONResponse(None)

    async def _labels(self, request: Request) -> Response:
        return await self._taken_in(request, Labels, _take_labels)

    async def _predictions(self, request: Request) -> Response:
        return await self._taken_in(request, Predictions, _take_predictions)

    async def _taken_in(
        self, request: Request, shape: type[_Logged], take: Callable[[ServedLog, _Logged], int]
    ) -> Response:
        """Take in what is logged later than its vector; 202, since it is written later still."""
        try:
            body = _query(shape, await _body(request))
            accepted = await asyncio.to_thread(take, self._store.served, body)
        except SteadfeastError as error:
            return _problem(error, _code(error))
        self._figures.logged(shape.__name__.lower(), body.service, accepted)
        return JSONResponse({"accepted": accepted}, 202)

    async def _alive(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _ready_now(self, _: Request) -> Response:
        problem = "draining"
        if self._ready():
            problem = await asyncio.to_thread(self._store.online_problem)
        return PlainTextResponse(f"{problem or 'ok'}\n", status_code=503 if problem else 200)

    async def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._figures.registry), headers={"content-type": content_type})


def is_brief(store: Store, service: str, contract: str, rows: int) -> bool:
    """Whether a request is answered faster than a thread for it could start.

    It needs no network, no user's code, and finds room in the log. What is wrong with it is said,
    and counted, where it is answered.
    """
    if not store.online.embedded or rows > _INLINE_ROWS:
        return False
    try:
        return store.is_plain(service, contract or None) and store.served.has_room(service, rows)
    except SteadfeastError:
        return False


def _is_brief(store: Store, service: str, query: Query) -> bool:
    try:
        rows = rows_in(query.entities)
    except SteadfeastError:
        return False
    return is_brief(store, service, query.contract, rows)


def _take_labels(log: ServedLog, body: Labels) -> int:
    ids, values, times = _columns(body.labels)
    log.append_labels(body.service, ids, values, times)
    return len(ids)


def _take_predictions(log: ServedLog, body: Predictions) -> int:
    ids, values, times = _columns(body.predictions)
    named = {"model": body.model, "model_version": body.model_version}
    log.append_predictions(body.service, ids, values, request_time=times, **named)
    return len(ids)


def _columns(entries: list[Entry]) -> tuple[list[str], list[float], list[datetime]]:
    now = datetime.now(UTC)
    ids = [entry.request_id for entry in entries]
    return ids, [entry.value for entry in entries], [entry.time or now for entry in entries]


def _code(error: SteadfeastError) -> int:
    return 413 if isinstance(error, TooLargeError) else answer_of(error).http


def _features(store: Store, figures: Figures, query: Query, name: str) -> bytes:
    if query.feature_service is None:
        return json.dumps(convert_response_to_dict(single_features(store, query))).encode()
    plan, got = read_service(store, figures, "http", query, name)
    return answer(plan, got, full_names=query.full_feature_names)


def read_service(
    store: Store, figures: Figures, edge: str, query: Query, name: str
) -> tuple[ServicePlan, OnlineFeatures]:
    """Read and log the feature service that `query` names, and count it.

    Args:
        store: Answers.
        figures: Where the request is counted.
        edge: Under which protocol.
        query: What is asked.
        name: Id of the request.

    Raises:
        SteadfeastError: It cannot be answered, or not be logged.
    """
    service = query.feature_service or ""
    with figures.request(edge, service):
        plan = store.bundle(service, query.contract or None).plan
        at = datetime.now(UTC)
        named = Named(name, query.request_ids, query.model, query.model_version)
        with span("read", service, (name,)):
            got = _read(store, plan, query, at)
        with span("log", service, (name,)):
            log(store, service, got, named, at)
        figures.served(edge, service, got, at)
    return plan, got


def _read(store: Store, plan: ServicePlan, query: Query, at: datetime) -> OnlineFeatures:
    more: dict[str, Any] = {"contract": query.contract or None, "request_time": at}
    lengths = {len(values) for values in query.entities.values()}
    if len(lengths) > 1:
        raise RequestError("entities", f"columns have different lengths: {sorted(lengths)}")
    check_rows("entities", max(lengths, default=0))
    if not plan.requests:
        try:
            return store.online_features(plan.name, query.entities, **more)
        except EntityRowsError:
            pass  # JSON has no times and no bytes: they are made below, or refused by name
    return store.online_features(plan.name, _table(query.entities, plan), **more)


def single_features(store: Store, query: Query) -> GetOnlineFeaturesResponse:
    """Return what Feast's SDK says to a list of single features.

    Raises:
        RequestError: It cannot read the request.
        FeastError: It knows no such feature.
    """
    try:
        response = store.feast.get_online_features(
            features=query.features,
            entity_rows=query.entities,
            full_feature_names=query.full_feature_names,
        )
    except (KeyError, TypeError, ValueError) as error:  # what Feast raises for a wrong request
        if isinstance(error, SteadfeastError):
            raise
        raise RequestError("body", str(error)) from error
    found: GetOnlineFeaturesResponse = response.proto
    return found


async def _body(request: Request) -> bytes:
    return await read_body(request.receive, request.headers.get("content-encoding", ""))


def _query(shape: type[_Body], body: bytes) -> _Body:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "json_invalid":
            raise RequestError("body", f"is not JSON: {detail['ctx']['error']}") from error
        raise RequestError(".".join(map(str, detail["loc"])) or "body", detail["msg"]) from error


def _table(entities: Mapping[str, list[Any]], plan: ServicePlan) -> pa.Table:
    """Return the columns that the service takes; which are missing, the store says."""
    columns = {
        name: column_of(f"entities.{name}", entities[name], t)
        for name, t in plan.entity_columns.items()
        if name in entities
    }
    return pa.table(columns)


def _problem(error: SteadfeastError, status: int) -> Response:
    return Response(problem(error, status), status, media_type=PROBLEM)
