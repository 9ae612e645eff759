"""The model edge over HTTP: `/predict`, the Open Inference Protocol v2, health, metrics.

Above `answers`, below `edge`. Errors are problem details (RFC 9457) with the member `error` that
the protocol's clients look for.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version as library_version
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from steadfeast.featurestore.errors import RequestError, SteadfeastError
from steadfeast.featurestore.security import Role, refusal
from steadfeast.featurestore.server import (
    PROBLEM,
    REQUEST_ID,
    Named,
    problem,
    read_body,
    request_id,
)
from steadfeast.pipeline.inference import tensors
from steadfeast.pipeline.inference.answers import Models, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    from steadfeast.featurestore.security import Access
    from steadfeast.pipeline.inference.model import Predictions

_JSON_LENGTH = "inference-header-content-length"
"""Header of the protocol's binary extension: tensors follow the JSON as bytes."""


class Asked(BaseModel, frozen=True, extra="forbid"):
    """Body of `POST /predict/MODEL`.

    Attributes:
        entities: Column of values per join key and request field.
        version: Of the model; the champion's, when empty.
        request_ids: Ids of the rows in the served log; absent, they are named after the request.
    """

    entities: dict[str, list[Any]]
    version: str = ""
    request_ids: list[str] = []


class Tensor(BaseModel, frozen=True):
    """One input of the protocol; other members are ignored."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class Inference(BaseModel, frozen=True):
    """Body of `.../infer`; other members are ignored."""

    inputs: list[Tensor]
    id: str = ""


_Shape = TypeVar("_Shape", bound=BaseModel)


def application(
    models: Models, registry: CollectorRegistry, draining: Callable[[], bool], access: Access
) -> Starlette:
    """Return the ASGI application.

    Args:
        models: Answer.
        registry: What `/metrics` shows.
        draining: Whether the edge is about to end.
        access: Who may ask.
    """
    edge = _Edge(models, registry, draining, access)
    one = "/v2/models/{model}"
    versions, infer = (one, one + "/versions/{version}"), edge.guarded(edge.infer)
    return Starlette(
        routes=[
            Route("/predict/{model}", edge.guarded(edge.predict), methods=["POST"]),
            Route("/v2", edge.server),
            Route("/v2/health/live", edge.live),
            Route("/v2/health/ready", edge.ready),
            *(Route(f"{path}/ready", edge.guarded(edge.model_ready)) for path in versions),
            *(Route(path, edge.guarded(edge.metadata)) for path in versions),
            *(Route(f"{path}/infer", infer, methods=["POST"]) for path in versions),
            Route("/healthz", edge.live),
            Route("/metrics", edge.metrics),
        ]
    )


class _Edge:
    def __init__(
        self,
        models: Models,
        registry: CollectorRegistry,
        draining: Callable[[], bool],
        access: Access,
    ) -> None:
        self._models, self._registry, self._draining = models, registry, draining
        self._access = access

    def guarded(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Answer an error as what it is, and count what asked for predictions."""

        async def guard(request: Request) -> Response:
            refused = refusal(self._access, Role.PREDICT, request.scope)
            if refused is not None:
                return _problem(refused, refused.status)
            code = grpc.StatusCode.OK
            try:
                return await answer(request)
            except SteadfeastError as error:
                code, status = status_of(error)
                return _problem(error, status)
            finally:
                if request.method == "POST":
                    self._models.count(request.path_params["model"], "http", code)

        return guard

    async def predict(self, request: Request) -> Response:
        model, name = request.path_params["model"], request_id(request.headers.get(REQUEST_ID, ""))
        asked = _parsed(Asked, await _read(request))
        named = Named(name, asked.request_ids)
        got = await asyncio.to_thread(
            lambda: self._models.ask(
                model,
                asked.version,
                self._models.table(model, asked.version, asked.entities),
                named,
            )
        )
        body = {
            "predictions": got.values.tolist(),
            "version": got.version,
            "contract": got.contract,
            "request_ids": list(got.request_ids),
        }
        if got.classes:
            body["classes"] = list(got.classes)
        return JSONResponse(body, headers={REQUEST_ID: name})

    async def infer(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version", "")
        content = await _read(request)
        length = _json_length(request, len(content))
        asked = _parsed(Inference, content[:length])
        name = request_id(asked.id or request.headers.get(REQUEST_ID, ""))
        got = await asyncio.to_thread(self._inferred, model, version, asked, content[length:], name)
        outputs = [
            {
                "name": "prediction",
                "datatype": "FP64",
                "shape": list(got.values.shape),
                "data": got.values.ravel().tolist(),
            }
        ]
        body = {"model_name": model, "model_version": got.version, "id": name, "outputs": outputs}
        return JSONResponse(body, headers={REQUEST_ID: name})

    def _inferred(
        self, model: str, version: str, asked: Inference, binary: bytes, name: str
    ) -> Predictions:
        wanted = self._models.model(model).entities(version)
        columns, place = {}, 0
        for tensor in asked.inputs:
            rows = tensors.rows_of(tensor.name, tensor.shape)
            size = tensor.parameters.get("binary_data_size")
            if size is None:
                values = _flat(tensor.data or [])
                if len(values) != rows:
                    problem = f"has {len(values)} values; its shape says {rows}"
                    raise RequestError(f"inputs.{tensor.name}.data", problem)
            else:
                part = binary[place : place + int(size)]
                place += int(size)
                values = tensors.plain(tensor.name, tensor.datatype, tensor.shape, part)
            if tensor.name in wanted:
                values = tensors.as_text(values, wanted[tensor.name])
            columns[tensor.name] = values
        table = self._models.table(model, version, columns)
        return self._models.ask(model, version, table, Named(name))

    async def metadata(self, request: Request) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        model = self._models.model(name)
        loaded = await asyncio.to_thread(model.loaded, version)
        shape = tensors.shape_of(loaded.facts.target)
        return JSONResponse(
            {
                "name": name,
                "versions": list(model.versions),
                "platform": "steadfeast",
                "inputs": [
                    {"name": column, "datatype": tensors.datatype_of(kind), "shape": [-1]}
                    for column, kind in model.entities(version).items()
                ],
                "outputs": [{"name": "prediction", "datatype": "FP64", "shape": shape}],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        await asyncio.to_thread(self._models.model(name).loaded, version)
        return Response()

    async def server(self, _: Request) -> Response:
        version = library_version("steadfeast")
        return JSONResponse(
            {"name": "steadfeast", "version": version, "extensions": ["binary_tensor_data"]}
        )

    async def live(self, _: Request) -> Response:
        return Response()

    async def ready(self, _: Request) -> Response:
        problems = self._models.problems
        if self._draining():
            problems = {"": "draining"}
        return JSONResponse(problems, 503) if problems else Response()

    async def metrics(self, request: Request) -> Response:
        self._models.show()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})


async def _read(request: Request) -> bytes:
    return await read_body(request.receive, request.headers.get("content-encoding", ""))


def _parsed(shape: type[_Shape], body: bytes) -> _Shape:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        detail = error.errors()[0]
        raise RequestError(".".join(map(str, detail["loc"])) or "body", detail["msg"]) from error


def _json_length(request: Request, whole: int) -> int:
    text = request.headers.get(_JSON_LENGTH, str(whole))
    if not text.isdecimal() or int(text) > whole:
        raise RequestError(_JSON_LENGTH, f"is {text!r}; the body has {whole} bytes")
    return int(text)


def _flat(values: list[Any]) -> list[Any]:
    """Return values that may come nested, as the protocol allows for shape (rows, 1)."""
    return [v[0] if isinstance(v, list) and len(v) == 1 else v for v in values]


def _problem(error: SteadfeastError, status: int) -> Response:
    return Response(problem(error, status), status, media_type=PROBLEM)
