"""The model edge over gRPC: `Predict`, and the Open Inference Protocol v2.

Above `answers`, below `edge`. Protobuf in, one question to a model, protobuf out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version as library_version
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from steadfeast.featurestore.errors import RequestError, SteadfeastError
from steadfeast.featurestore.server import (
    REQUEST_ID,
    Named,
    read,
    refuse,
    request_id,
    time_of,
)
from steadfeast.pipeline.inference import tensors
from steadfeast.pipeline.inference.answers import status_of
from steadfeast.protos.steadfeast.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    open_inference_pb2,
    open_inference_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from steadfeast.pipeline.inference.answers import Models
    from steadfeast.pipeline.inference.model import Predictions

_Answer = TypeVar("_Answer")
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Field of InferTensorContents by datatype."""


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """InferenceService over the models of an edge."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(  # noqa: N802 - the protocol's name
        self, request: inference_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictResponse:
        """See inference.proto."""

        def answer() -> inference_pb2.PredictResponse:
            name = request_id(str(dict(context.invocation_metadata()).get(REQUEST_ID, "")))
            time = None
            if request.HasField("request_time"):
                time = time_of(request, "request_time", datetime.now(UTC))
            self._models.model(request.model)
            rows = read("entities", request.entities)
            typed = self._models.typed(request.model, request.version, rows)
            named = Named(name, request.request_ids)
            got = self._models.ask(request.model, request.version, typed, named, time)
            return inference_pb2.PredictResponse(
                values=got.values.ravel(),
                classes=map(str, got.classes),
                version=got.version,
                contract=got.contract,
                request_ids=got.request_ids,
            )

        return _answered(self._models, request.model, context, answer)


class OpenInference(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol's service over the models of an edge."""

    def __init__(self, models: Models, draining: Callable[[], bool]) -> None:
        self._models, self._draining = models, draining

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Say that the process answers."""
        return open_inference_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Say whether every model serves."""
        ready = not self._models.problems and not self._draining()
        return open_inference_pb2.ServerReadyResponse(ready=ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Say who answers."""
        return open_inference_pb2.ServerMetadataResponse(
            name="steadfeast", version=library_version("steadfeast")
        )

    def ModelReady(  # noqa: N802
        self, request: open_inference_pb2.ModelReadyRequest, context: grpc.ServicerContext
    ) -> open_inference_pb2.ModelReadyResponse:
        """Say whether a version serves."""
        try:
            self._models.model(request.name).loaded(request.version)
        except SteadfeastError as error:
            refuse(context, error, status_of(error)[0])
        return open_inference_pb2.ModelReadyResponse(ready=True)

    def ModelMetadata(  # noqa: N802
        self, request: open_inference_pb2.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> open_inference_pb2.ModelMetadataResponse:
        """Say what a version takes and gives."""
        tensor = open_inference_pb2.ModelMetadataResponse.TensorMetadata
        try:
            model = self._models.model(request.name)
            inputs = [
                tensor(name=name, datatype=tensors.datatype_of(kind), shape=[-1])
                for name, kind in model.entities(request.version).items()
            ]
            shape = tensors.shape_of(model.loaded(request.version).facts.target)
        except SteadfeastError as error:
            refuse(context, error, status_of(error)[0])
        return open_inference_pb2.ModelMetadataResponse(
            name=request.name,
            versions=model.versions,
            platform="steadfeast",
            inputs=inputs,
            outputs=[tensor(name="prediction", datatype="FP64", shape=shape)],
        )

    def ModelInfer(  # noqa: N802
        self, request: open_inference_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> open_inference_pb2.ModelInferResponse:
        """Predict."""

        def answer() -> open_inference_pb2.ModelInferResponse:
            name = request_id(request.id)
            got = self._infer(request, name)
            output = open_inference_pb2.ModelInferResponse.InferOutputTensor(
                name="prediction", datatype="FP64", shape=got.values.shape
            )
            return open_inference_pb2.ModelInferResponse(
                model_name=request.model_name,
                model_version=got.version,
                id=name,
                outputs=[output],
                raw_output_contents=[got.values.astype("<f8").tobytes()],
            )

        return _answered(self._models, request.model_name, context, answer)

    def _infer(self, request: open_inference_pb2.ModelInferRequest, name: str) -> Predictions:
        wanted = self._models.model(request.model_name).entities(request.model_version)
        raw = list(request.raw_input_contents)
        if raw and len(raw) != len(request.inputs):
            said = f"are {len(raw)} for {len(request.inputs)} inputs"
            raise RequestError("raw_input_contents", said)
        columns = {}
        for place, tensor in enumerate(request.inputs):
            if raw:
                values = tensors.plain(tensor.name, tensor.datatype, tensor.shape, raw[place])
            else:
                values = _values(tensor)
            if tensor.name in wanted:
                values = tensors.as_text(values, wanted[tensor.name])
            columns[tensor.name] = values
        table = self._models.table(request.model_name, request.model_version, columns)
        return self._models.ask(request.model_name, request.model_version, table, Named(name))


def _values(tensor: open_inference_pb2.ModelInferRequest.InferInputTensor) -> list[Any]:
    """Return the values of a tensor that came in typed fields."""
    rows = tensors.rows_of(tensor.name, tensor.shape)
    if tensor.datatype not in _CONTENTS:
        problem = f"is {tensor.datatype!r}; known are {list(_CONTENTS)}"
        raise RequestError(f"inputs.{tensor.name}.datatype", problem)
    values = list(getattr(tensor.contents, _CONTENTS[tensor.datatype]))
    if len(values) != rows:
        said = f"has {len(values)} {tensor.datatype} values; its shape says {rows}"
        raise RequestError(f"inputs.{tensor.name}", said)
    return values


def _answered(
    models: Models, model: str, context: grpc.ServicerContext, answer: Callable[[], _Answer]
) -> _Answer:
    """Count a request; an error ends the call with what it is on the wire."""
    try:
        given = answer()
    except SteadfeastError as error:
        code, _ = status_of(error)
        models.count(model, "grpc", code)
        refuse(context, error, code)
    models.count(model, "grpc", grpc.StatusCode.OK)
    return given
