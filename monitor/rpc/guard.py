"""What a gRPC call has to show: a token of the method's role, where one is needed.

Above `auth`, which knows the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from steadfeast.monitor.auth import RefusedError
from steadfeast.monitor.config import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from steadfeast.monitor.auth import Access, Principal

PREFIX = "/steadfeast.v1.MonitorService/"

METHODS = {
    "GetStatus": Role.READ,
    "ListAlerts": Role.READ,
    "ListAudit": Role.AUDIT,
    "ListTriggers": Role.READ,
    "WatchAlerts": Role.READ,
    "Acknowledge": Role.ACKNOWLEDGE,
    "DecideTrigger": Role.APPROVE,
    "Evaluate": Role.TRIGGER,
    "ResendTrigger": Role.TRIGGER,
}
"""What each method of MonitorService needs; health and reflection are for everybody."""

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Guard(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Asks every call of MonitorService for a token of the method's role, where one is needed.

    The name of a token becomes part of who did it. A method without a role is refused.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        """See `grpc.ServerInterceptor`."""
        handler = continuation(details)
        mine = handler is not None and details.method.startswith(PREFIX)
        role = METHODS.get(details.method.removeprefix(PREFIX))
        if not mine or (role is not None and not self._access.needed(role)):
            return handler
        metadata = dict(details.invocation_metadata)
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if role is None:
            return _refusing(handler, _CODES[403], "nobody may call this method")
        if scheme.lower() != "bearer":
            return _refusing(handler, _CODES[401], f"a token with the role {role} is needed")
        try:
            principal = self._access.authorize(token, role)
        except RefusedError as error:
            return _refusing(handler, _CODES[error.status], str(error))
        if handler.response_streaming:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _signed(handler.unary_unary, principal),
            handler.request_deserializer,
            handler.response_serializer,
        )


def _signed(
    behaviour: Callable[[Any, Any], Any], principal: Principal
) -> Callable[[Any, Any], Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        if "actor" in request.DESCRIPTOR.fields_by_name:
            request.actor = principal.signed(request.actor)
        return behaviour(request, context)

    return call


def _refusing(handler: Any, code: grpc.StatusCode, problem: str) -> Any:
    def refuse(_: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, problem)

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse, handler.request_deserializer)
    return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer)
