"""The columns that every part agrees on, and the Arrow type of a Feast field.

Bottom of `featurestore.tables`: no I/O. What is named here is named nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast import types as feast_types

from steadfeast.featurestore.errors import RefusedDefinitionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast import FeatureView, Field

TIMESTAMP = pa.timestamp("us", tz="UTC")
"""The type of every time: UTC microseconds."""

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"

LOGGED = frozenset(
    ("request_id", "request_time", "model", "model_version", "contract", "prediction")
)
"""Columns that the served log has beside keys and features."""


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


def is_personal(tags: Mapping[str, str] | None) -> bool:
    """Tell whether Feast tags mark personal data: `pii` with any value but "false"."""
    return (tags or {}).get("pii", "false").lower() != "false"


def personal_fields(view: FeatureView) -> frozenset[str]:
    """Return which join keys and features of a view are personal.

    A tag on the view is one on each feature that does not say otherwise itself.
    """
    own = {item.name: item.tags or {} for item in (*view.entity_columns, *view.features)}
    whole = {item.name: {**(view.tags or {}), **own[item.name]} for item in view.features}
    return frozenset(name for name, tags in {**own, **whole}.items() if is_personal(tags))
