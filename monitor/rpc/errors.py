"""Errors as gRPC tells them: a status, a message, and a google.rpc detail with what they carry.

Above `episodes`; `server` raises and maps what is here. Everything else is a bug and stays
UNKNOWN, with its traceback in the log.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc.error_details_pb2 import ResourceInfo

from steadfeast.featurestore.errors import NotFoundError, SourceError, UserError
from steadfeast.featurestore.grpc_errors import (
    abort,
    bad_request,
    error_info,
    precondition_failure,
)
from steadfeast.monitor.decisions import NotDecidableError
from steadfeast.monitor.ledger import LedgerWriteError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        abort(context, STATUS[type(error)], str(error), _details(error))


def _details(error: Exception) -> Any:
    """Return the google.rpc detail that says it in the fewest words."""
    if isinstance(error, NotFoundError):
        return ResourceInfo(
            resource_type=error.kind, resource_name=error.name, description=str(error)
        )
    if isinstance(error, OutOfRangeError):
        return bad_request([(error.field, error.problem)])
    if isinstance(error, NotDecidableError):
        return precondition_failure("TRIGGER", error.request_id, error.reason)
    metadata = {"resume_after": str(error.sequence)} if isinstance(error, BehindError) else {}
    return error_info(type(error).__name__.removesuffix("Error").upper(), metadata)
