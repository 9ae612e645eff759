"""The HTTP edge: the request and the JSON of Feast's `/get-online-features`, health, metrics.

Above `edge`, below `server`. A feature service is answered by `Store.online_features`; a list of
single features by Feast's own SDK on the same online store, which is slower and just as right.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.errors import FeastError
from feast.feature_server_utils import convert_response_to_dict
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from featurestore.edge import MAX_REQUEST_BYTES, STATUSES, Figures, answer_of
from featurestore.errors import RequestError, SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from featurestore.answers import OnlineFeatures
    from featurestore.service import ServicePlan
    from featurestore.store import Store

_NO_TIME = "1970-01-01T00:00:00Z"


class Query(BaseModel, frozen=True):
    """Body of a request, as Feast's server takes it; other keys are ignored.

    Attributes:
        entities: Column of values per join key and request field.
        feature_service: Name of a feature service; else `features` says what.
        features: `view:feature` references.
        full_feature_names: Whether features are called `view__feature`.
        contract: Serve only under this contract; empty means any. Steadfeast's own.
    """

    entities: dict[str, list[Any]]
    feature_service: str | None = None
    features: list[str] = []
    full_feature_names: bool = False
    contract: str = ""


class TooLargeError(RequestError):
    """The body is larger than what is read."""

    def __init__(self) -> None:
        super().__init__("body", f"is larger than {MAX_REQUEST_BYTES} bytes")


def app(store: Store, figures: Figures, ready: Callable[[], bool]) -> Starlette:
    """Return the application to serve.

    Args:
        store: Answers.
        figures: Shown on `/metrics`.
        ready: Whether requests are welcome; false while draining.
    """

    async def features(request: Request) -> Response:
        try:
            query = _query(await _body(request))
            content = await run_in_threadpool(_features, store, figures, query)
        except SteadfeastError as error:
            code = 413 if isinstance(error, TooLargeError) else answer_of(error).http
            return _error(code, error)
        except FeastError as error:  # of a list of features, which Feast's SDK answers
            return _error(error.http_status_code(), error)
        return JSONResponse(content)

    async def health(_: Request) -> Response:
        up = ready()
        return PlainTextResponse("ok\n" if up else "draining\n", status_code=200 if up else 503)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(figures.registry), headers={"content-type": content_type})

    return Starlette(
        routes=[
            Route("/get-online-features", features, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
        ]
    )


def _features(store: Store, figures: Figures, query: Query) -> dict[str, Any]:
    if query.feature_service is None:
        return _single_features(store, query)
    service = query.feature_service
    with figures.request("http", service):
        plan = store.bundle(service).plan
        table = _table(query.entities, plan)
        got = store.online_features(service, table, contract=query.contract or None)
        figures.served("http", service, got)
        return _content(plan, got, full_names=query.full_feature_names)


def _single_features(store: Store, query: Query) -> dict[str, Any]:
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
    return convert_response_to_dict(response.proto)


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_REQUEST_BYTES:
            raise TooLargeError
        parts.append(part)
    return b"".join(parts)


def _query(body: bytes) -> Query:
    try:
        return Query.model_validate(json.loads(body))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError("body", f"is not JSON: {error}") from error
    except ValidationError as error:
        detail = error.errors()[0]
        raise RequestError(".".join(map(str, detail["loc"])) or "body", detail["msg"]) from error


def _table(entities: Mapping[str, list[Any]], plan: ServicePlan) -> pa.Table:
    """Return the columns that the service takes; which are missing, the store says."""
    lengths = {len(values) for values in entities.values()}
    if len(lengths) > 1:
        raise RequestError("entities", f"columns have different lengths: {sorted(lengths)}")
    columns = {
        name: _column(name, entities[name], t)
        for name, t in plan.entity_columns.items()
        if name in entities
    }
    return pa.table(columns)


def _column(name: str, values: list[Any], to: pa.DataType) -> pa.Array:
    try:
        if pa.types.is_timestamp(to):
            return pa.array([_moment(value) for value in values], to)
        if pa.types.is_binary(to):
            return pa.array([v if v is None else base64.b64decode(v) for v in values], to)
        return pa.array(values, to)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError, ValueError) as error:
        raise RequestError(f"entities.{name}", f"does not fit {to}: {error}") from error


def _moment(value: Any) -> datetime | None:
    """Read a time as JSON has it: seconds since the epoch, or ISO 8601; a naive one is UTC."""
    if value is None:
        return None
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.fromtimestamp(value, UTC)


def _content(plan: ServicePlan, got: OnlineFeatures, *, full_names: bool) -> dict[str, Any]:
    n = got.table.num_rows
    names, results = [], []
    for name in plan.keys:
        names.append(name)
        results.append(_result(got.table.column(name), ["PRESENT"] * n, [_NO_TIME] * n))
    times = {view: list(map(_text, column.to_pylist())) for view, column in got.event_times.items()}
    for output in plan.outputs:
        names.append(f"{output.view}__{output.feature}" if full_names else output.name)
        statuses = [STATUSES[code] for code in got.statuses[output.name].tolist()]
        column = got.table.column(output.name)
        results.append(_result(column, statuses, times.get(output.view, [_NO_TIME] * n)))
    return {"results": results, "metadata": {"feature_names": names}}


def _result(column: pa.ChunkedArray, statuses: list[str], times: list[str]) -> dict[str, Any]:
    values = [_plain(value) for value in column.to_pylist()]
    return {"values": values, "statuses": statuses, "event_timestamps": times}


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one per type
    """Return a value as Feast's JSON has it: times in seconds, bytes in base64, NaN by name."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return math.floor(value.timestamp())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):  # the entries of a map
            return {key: _plain(item) for key, item in value}
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _text(time: datetime | None) -> str:
    """Write a time as protobuf's JSON does: as many digits as it needs, in threes."""
    if time is None:
        return _NO_TIME
    micros = time.microsecond
    precision = "seconds" if not micros else "microseconds" if micros % 1000 else "milliseconds"
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def _error(code: int, error: Exception) -> Response:
    return JSONResponse({"error": type(error).__name__, "detail": str(error)}, status_code=code)
