"""The Arrow type of a Feast field: one answer for serving and training.

Above `columns`; imports Feast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast import types as feast_types

from steadfeast.featurestore.errors import RefusedDefinitionError
from steadfeast.featurestore.tables.columns import TIMESTAMP

if TYPE_CHECKING:
    from feast import Field


def arrow_type(field: Field) -> pa.DataType:
    """Return the Arrow type that a Feast field is held in.

    Raises:
        RefusedDefinitionError: Nothing says what Arrow type its values are.
    """
    kind = _arrow_of(field.dtype)
    if kind is None:
        problem = f"is {field.dtype}, which Feast gives no one Arrow type; {_INSTEAD}"
        raise RefusedDefinitionError(f"field {field.name!r}", problem)
    return kind


_INSTEAD = "declare a type whose values have one type, such as Map, Json or String"
_BYTES = (feast_types.Bytes, feast_types.ImageBytes, feast_types.PdfBytes)
_TIMES = (feast_types.UnixTimestamp, feast_types.ZonedTimestamp)


def _arrow_of(kind: Any) -> pa.DataType | None:
    """Return the Arrow type of a Feast type, nested ones element by element; None without one.

    Feast's own table lacks bytes, alone and in lists.
    """
    if isinstance(kind, feast_types.Struct):
        parts = {name: _arrow_of(part) for name, part in kind.fields.items()}
        return None if None in parts.values() else pa.struct(list(parts.items()))
    if isinstance(kind, (feast_types.Array, feast_types.Set)):
        child = _arrow_of(kind.base_type)
        return None if child is None else pa.list_(child)
    if kind in _BYTES:
        return pa.binary()
    if kind in _TIMES:
        return TIMESTAMP
    found: pa.DataType | None = feast_types.FEAST_TYPES_TO_PYARROW_TYPES.get(kind)
    return found
