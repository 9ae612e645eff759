"""Errors as gRPC tells them: a status, a message, and a google.rpc detail with what they carry.

Above `episodes`; `server` raises and maps what is here. Everything else is a bug and stays
UNKNOWN, with its traceback in the log.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from steadfeast.featurestore.errors import NotFoundError, SourceError, UserError
from steadfeast.monitor.decisions import NotDecidableError
from steadfeast.monitor.ledger import LedgerWriteError

if TYPE_CHECKING:
    from collections.abc import Iterator

DOMAIN = "steadfeast"


class OutOfRangeError(UserError):
    """A field of a request is outside of its range.

    Attributes:
        field: Its name.
        problem: What is expected.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}")


class TooManyWatchersError(UserError):
    """No more WatchAlerts streams can be served."""

    def __init__(self, readers: int) -> None:
        super().__init__(f"{readers} readers watch already; try again later")


class ShuttingDownError(UserError):
    """The daemon stops; a stream resumes once it is back."""

    def __init__(self) -> None:
        super().__init__("the daemon is shutting down; resume once it is back")


class BehindError(UserError):
    """A reader fell too far behind.

    Attributes:
        sequence: The last alert that it got; where to resume.
    """

    def __init__(self, sequence: int, behind: int) -> None:
        self.sequence = sequence
        super().__init__(f"fell behind by {behind} alerts; resume after {sequence}")


STATUS: dict[type[Exception], grpc.StatusCode] = {
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    NotDecidableError: grpc.StatusCode.FAILED_PRECONDITION,
    OutOfRangeError: grpc.StatusCode.INVALID_ARGUMENT,
    TooManyWatchersError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BehindError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    LedgerWriteError: grpc.StatusCode.UNAVAILABLE,
    SourceError: grpc.StatusCode.FAILED_PRECONDITION,
}
"""What each error is on the wire; anything else is a bug and stays UNKNOWN."""


def required(field: str, value: str) -> None:
    """Refuse an empty `value`.

    Raises:
        OutOfRangeError: It is.
    """
    if not value:
        raise OutOfRangeError(field, "must not be empty")


def between(field: str, value: float, low: float, high: float) -> float:
    """Return `value`, which has to be from `low` to `high`.

    Raises:
        OutOfRangeError: It is not.
    """
    if not low <= value <= high:
        raise OutOfRangeError(field, f"must be {low:g} to {high:g}, is {value:g}")
    return value


@contextmanager
def errors(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn the errors of `STATUS` into their status, with what they carry as details."""
    try:
        yield
    except tuple(STATUS) as error:
        _abort(context, error)


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    code = STATUS[type(error)]
    status = Status(code=code.value[0], message=str(error), details=[_packed(_details(error))])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError  # abort_with_status does not return


def _details(error: Exception) -> Any:
    """Return the google.rpc detail that says it in the fewest words."""
    details = error_details_pb2
    if isinstance(error, NotFoundError):
        return details.ResourceInfo(
            resource_type=error.kind, resource_name=error.name, description=str(error)
        )
    if isinstance(error, OutOfRangeError):
        violation = details.BadRequest.FieldViolation(field=error.field, description=error.problem)
        return details.BadRequest(field_violations=[violation])
    if isinstance(error, NotDecidableError):
        failed = details.PreconditionFailure.Violation(
            type="TRIGGER", subject=error.request_id, description=error.reason
        )
        return details.PreconditionFailure(violations=[failed])
    metadata = {"resume_after": str(error.sequence)} if isinstance(error, BehindError) else {}
    reason = type(error).__name__.removesuffix("Error").upper()
    return details.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _packed(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
