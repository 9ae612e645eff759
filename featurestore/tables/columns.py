"""The columns that every part agrees on, and the Arrow type of a Feast field.

Bottom of `featurestore.tables`: no I/O. What is named here is named nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from feast import types as feast_types

from steadfeast.featurestore.errors import EntityRowsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast import Field

TIMESTAMP = pa.timestamp("us", tz="UTC")
"""The type of every time: UTC microseconds."""

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"


def arrow_type(field: Field) -> pa.DataType:
    """Return the Arrow type that a Feast field is held in."""
    if field.dtype == feast_types.Bytes:  # absent from Feast's own table
        return pa.binary()
    if field.dtype in (feast_types.UnixTimestamp, feast_types.ZonedTimestamp):
        return TIMESTAMP
    return feast_types.from_feast_to_pyarrow_type(field.dtype)


def is_personal(tags: Mapping[str, str] | None) -> bool:
    """Tell whether Feast tags mark personal data: `pii` with any value but "false"."""
    return (tags or {}).get("pii", "false").lower() != "false"


def typed(service: str, table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Cast the columns of `types`, exactly.

    Raises:
        EntityRowsError: One is missing, or holds what its type cannot.
    """
    for name, kind in types.items():
        index = table.schema.get_field_index(name)
        if index < 0:
            known = ", ".join(table.column_names)
            raise EntityRowsError(service, name, f"is missing; there are {known}")
        column = table.column(index)
        if column.type == kind:
            continue
        try:
            table = table.set_column(index, name, column.cast(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise EntityRowsError(
                service, name, f"is {column.type} and does not fit {kind}: {error}"
            ) from error
    return table
