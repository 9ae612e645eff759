"""Feast's own gRPC: `ServingService`, answered as Feast's feature servers in other languages do.

Beside `feast_json`, above `http_app`, whose reading and logging it shares. A feature service is
read as everywhere, and logged; a list of single features is answered by Feast's SDK.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version as library_version
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
from feast.errors import FeastError
from feast.protos.feast.serving import ServingService_pb2 as pb
from feast.protos.feast.serving import ServingService_pb2_grpc as rpc
from feast.type_map import feast_value_type_to_python_type, pa_to_feast_value_type
from google.protobuf.timestamp_pb2 import Timestamp

from steadfeast.featurestore.errors import RequestError, SteadfeastError
from steadfeast.featurestore.grpc_errors import abort, error_info
from steadfeast.featurestore.online import to_values
from steadfeast.featurestore.security import Role
from steadfeast.featurestore.server.http_app import Query, read_service, single_features
from steadfeast.featurestore.server.metrics import Figures, answer_of
from steadfeast.featurestore.server.request_log import REQUEST_ID, request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import grpc
    from feast.value_type import ValueType

    from steadfeast.featurestore.definitions import OnDemandView, ServicePlan, StoredView
    from steadfeast.featurestore.serving import OnlineFeatures
    from steadfeast.featurestore.store import Store

SERVICE = pb.DESCRIPTOR.services_by_name["ServingService"].full_name
ROLES = {f"{SERVICE}/GetFeastServingInfo": None, f"{SERVICE}/GetOnlineFeatures": Role.READ}
add_to_server: Callable[[Any, Any], None] = rpc.add_ServingServiceServicer_to_server

_PRESENT = 1
_NO_TIME = Timestamp()


class Serving(rpc.ServingServiceServicer):
    """ServingService over one store."""

    def __init__(self, store: Store, figures: Figures) -> None:
        self._store, self._figures = store, figures

    def GetFeastServingInfo(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Say which Feast is installed."""
        return pb.GetFeastServingInfoResponse(version=library_version("feast"))

    def GetOnlineFeatures(  # noqa: N802 - the protocol's name
        self, request: pb.GetOnlineFeaturesRequest, context: grpc.ServicerContext
    ) -> pb.GetOnlineFeaturesResponse:
        """Answer with the values that Feast would, and log those of a feature service."""
        try:
            name = request_id(str(dict(context.invocation_metadata()).get(REQUEST_ID, "")))
            query = _query(request)
            if query.feature_service is None:
                return single_features(self._store, query)
            plan, got = read_service(self._store, self._figures, "grpc", query, name)
            return _response(plan, got, full_names=query.full_feature_names)
        except SteadfeastError as error:
            _refuse(context, error, answer_of(error).grpc)
        except FeastError as error:
            _refuse(context, error, error.grpc_status_code())


def _refuse(context: grpc.ServicerContext, error: Exception, code: grpc.StatusCode) -> NoReturn:
    abort(context, code, str(error)[:2000], error_info(type(error).__name__, {}))


def _query(request: pb.GetOnlineFeaturesRequest) -> Query:
    columns = {**_columns("entities", request.entities)}
    columns |= _columns("request_context", request.request_context)
    kind = request.WhichOneof("kind")
    if kind is None:
        raise RequestError("kind", "is not set; give feature_service, or features")
    return Query(
        entities=columns,
        feature_service=request.feature_service if kind == "feature_service" else None,
        features=list(request.features.val),
        full_feature_names=request.full_feature_names,
    )


def _columns(field: str, given: Mapping[str, Any]) -> dict[str, list[Any]]:
    try:
        return {
            name: [_plain(feast_value_type_to_python_type(value)) for value in column.val]
            for name, column in given.items()
        }
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(field, str(error)) from error


def _plain(value: Any) -> Any:
    """Return a value as JSON would have it, which is what entity columns are read from."""
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _response(
    plan: ServicePlan, got: OnlineFeatures, *, full_names: bool
) -> pb.GetOnlineFeaturesResponse:
    rows = got.rows
    response = pb.GetOnlineFeaturesResponse(status=True)
    times = {
        view: [_time(us) for us in column.cast(pa.int64()).to_pylist()]
        for view, column in got.event_times.items()
    }
    none = [_NO_TIME] * rows
    views: list[StoredView | OnDemandView] = [*plan.views, *plan.on_demand]
    kinds = {
        (view.name, feature.name): feature.dtype.to_value_type()
        for view in views
        for feature in view.view.features
    }
    for name in plan.keys:
        column = got.table.column(name)
        _add(response, name, column, None, [_PRESENT] * rows, none)
    for output in plan.outputs:
        name = f"{output.view}__{output.feature}" if full_names else output.name
        statuses = got.statuses[output.name].tolist()
        column = got.table.column(output.name)
        kind = kinds.get((output.view, output.feature))
        _add(response, name, column, kind, statuses, times.get(output.view, none))
    return response


def _add(
    response: pb.GetOnlineFeaturesResponse,
    name: str,
    column: pa.ChunkedArray,
    kind: ValueType | None,
    statuses: list[int],
    times: list[Timestamp],
) -> None:
    array = column.combine_chunks()
    # What a key is declared as follows from its type.
    try:
        values = to_values(array, kind or pa_to_feast_value_type(str(array.type)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = (
            "has a value that Feast's messages cannot hold, such as a null in a list; ask "
            "FeatureService.GetFeatures"
        )
        raise RequestError(f"features.{name}", problem) from error
    response.metadata.feature_names.val.append(name)
    response.results.add(values=values, statuses=statuses, event_timestamps=times)


def _time(micros: int | None) -> Timestamp:
    if micros is None:
        return _NO_TIME
    made = Timestamp()
    made.FromMicroseconds(micros)
    return made
