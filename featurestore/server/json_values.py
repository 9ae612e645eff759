"""Values of JSON by the Arrow type that they are meant to have.

Below `http_app` and `feast_writes`. JSON has no times and no bytes: a number is seconds since 1970,
a text ISO 8601 or base64.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from steadfeast.featurestore.errors import RequestError, UnsupportedTypeError
from steadfeast.featurestore.tables import array_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_FEASTS_NULL_TIME = -(2**63)
"""What Feast's clients send for a time that is null: numpy's NaT as a number."""

_UNFIT = (
    *(pa.ArrowInvalid, pa.ArrowTypeError, OSError),
    *(OverflowError, TypeError, ValueError),
)
"""What a value that does not fit may raise; of a time beyond the platform's range, OSError."""


def column_of(field: str, values: Sequence[Any], to: pa.DataType) -> pa.Array:
    """Return values as a column of type `to`.

    Args:
        field: Where they stand in the request, for the error.
        values: As JSON has them.
        to: The declared type.

    Raises:
        RequestError: A value does not fit.
    """
    try:
        if pa.types.is_timestamp(to):
            return pa.array([_moment(value) for value in values], to)
        if pa.types.is_binary(to):
            return pa.array([v if v is None else base64.b64decode(v) for v in values], to)
        return array_of(values, to, field)
    except UnsupportedTypeError as error:
        raise RequestError(field, f"does not fit {to}: {error.__cause__}") from error
    except _UNFIT as error:
        raise RequestError(field, f"does not fit {to}: {error}") from error


def _moment(value: Any) -> datetime | None:
    """Read a time as JSON has it: seconds since the epoch, or ISO 8601; a naive one is UTC."""
    if value is None or value == _FEASTS_NULL_TIME:
        return None
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.fromtimestamp(value, UTC)
