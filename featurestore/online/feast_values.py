"""Arrow columns to Feast's `Value` messages and back, for Feast's own API.

Below the stores. This is Feast's slow path, a message per value; `Store.online_features` goes
round it. What a `Value` cannot hold is lost here and nowhere else: a timestamp is whole seconds,
a null inside a list becomes Feast's default for its type, and a set comes in its values' order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import (
    NULL_TIMESTAMP_INT_VALUE,
    feast_value_type_to_python_type,
    python_values_to_proto_values,
)
from feast.value_type import ValueType

from steadfeast.featurestore.errors import UnsupportedTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECOND = 1_000_000
_SCALARS = {
    ValueType.BOOL: "bool_val",
    ValueType.BYTES: "bytes_val",
    ValueType.DOUBLE: "double_val",
    ValueType.FLOAT: "float_val",
    ValueType.IMAGE_BYTES: "bytes_val",
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.PDF_BYTES: "bytes_val",
    ValueType.STRING: "string_val",
}
_STRUCTURED = {"map_val", "map_list_val", "struct_val", "struct_list_val", "list_val", "set_val"}


def to_values(array: pa.Array, value_type: ValueType) -> list[Value]:
    """Return a message per value; an empty one stands for null."""
    field = _SCALARS.get(value_type)
    if field is not None:
        return [Value() if item is None else Value(**{field: item}) for item in array.to_pylist()]
    if value_type == ValueType.UNIX_TIMESTAMP:
        return [
            Value() if item is None else Value(unix_timestamp_val=item // _SECOND)
            for item in array.cast(pa.int64()).to_pylist()
        ]
    items = array.to_pylist()
    if all(item is None for item in items):
        return [Value() for _ in items]
    items = [_with_dictionaries(item, array.type) for item in items]
    values: list[Value] = python_values_to_proto_values(items, value_type)
    return values


def _with_dictionaries(item: Any, kind: pa.DataType) -> Any:
    """Return a value whose maps, at any depth, are dictionaries; pyarrow gives pairs."""
    if item is None:
        return None
    if pa.types.is_map(kind):
        return {key: _with_dictionaries(value, kind.item_type) for key, value in item}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        made = [_with_dictionaries(value, kind.value_type) for value in item]
        # Feast's lists of maps hold no null.
        return [value or {} for value in made] if pa.types.is_map(kind.value_type) else made
    return item


def to_array(values: Sequence[Value], to: pa.DataType, name: str) -> pa.Array:
    """Return the array of type `to` that `values` hold; an unset one is null.

    Raises:
        UnsupportedTypeError: A value is not of that type.
    """
    items = [_item(value) for value in values]
    try:
        if pa.types.is_timestamp(to):
            return pa.array(items, pa.int64()).cast(to)
        if pa.types.is_list(to) and pa.types.is_timestamp(to.value_type):
            return pa.array(items, pa.list_(pa.int64())).cast(to)
        if pa.types.is_string(to) or pa.types.is_large_string(to):
            return _strings(items, to)
        return pa.array(items, to)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        kinds = sorted({str(value.WhichOneof("val")) for value in values})
        raise UnsupportedTypeError(name, to, f"given {', '.join(kinds)}: {error}") from error


def _item(value: Value) -> Any:
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    if kind in _STRUCTURED:
        return feast_value_type_to_python_type(value)
    content = getattr(value, kind)
    if kind == "zoned_timestamp_val":
        content = content.unix_timestamp
    is_time = "timestamp" in kind
    if hasattr(content, "val"):
        # Python's sets have no order of their own: that of strings changes with the hash seed.
        items = sorted(content.val) if kind.endswith("_set_val") else content.val
        return [_microseconds(item) if is_time else item for item in items]
    return _microseconds(content) if is_time else content


def _microseconds(seconds: int) -> int | None:
    return None if seconds == NULL_TIMESTAMP_INT_VALUE else seconds * _SECOND


def _strings(items: list[Any], to: pa.DataType) -> pa.Array:
    """Feast takes any value for a string key, as its text."""
    return pa.array(
        [item if item is None or isinstance(item, str) else str(item) for item in items], to
    )
