"""Errors over gRPC: a status, a message, and one google.rpc detail with what the error carries.

Imports nothing of ours; every gRPC server of the project aborts its calls through `abort`. Which
status and which detail an error has is for the server to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import grpc
    from google.protobuf.message import Message

DOMAIN = "steadfeast"
"""The domain of every `ErrorInfo`."""


class Context(Protocol):
    """A call that can be ended."""

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """See `grpc.ServicerContext`."""


def abort(context: Context, code: grpc.StatusCode, message: str, detail: Message) -> NoReturn:
    """End the call with this status, message and detail."""
    packed = AnyMessage()
    packed.Pack(detail)
    status = Status(code=code.value[0], message=message, details=[packed])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError  # abort_with_status does not return


def bad_request(violations: Iterable[tuple[str, str]]) -> BadRequest:
    """Return the detail of a malformed request, from its `(field, problem)` pairs."""
    return BadRequest(
        field_violations=[
            BadRequest.FieldViolation(field=field, description=problem)
            for field, problem in violations
        ]
    )


def error_info(reason: str, metadata: Mapping[str, str]) -> ErrorInfo:
    """Return the detail of an error that no other detail describes."""
    return ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def precondition_failure(type_: str, subject: str, description: str) -> PreconditionFailure:
    """Return the detail of a request that the state of `subject` does not allow."""
    violation = PreconditionFailure.Violation(type=type_, subject=subject, description=description)
    return PreconditionFailure(violations=[violation])
