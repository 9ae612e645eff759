"""Values as one type, by the same rules wherever they come from: sources, requests, functions.

What Feast reads in one way is read so here, at any depth: whole numbers for times are seconds since
the epoch, text without a zone is UTC, and the entries of a map stand in the order of their keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import EntityRowsError, UnsupportedTypeError
from steadfeast.featurestore.tables.columns import TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EXACT = 2**53
"""The greatest whole number up to which a float64 holds all."""


def cast_array(array: pa.Array, to: pa.DataType, name: str) -> pa.Array:
    """Cast without losing anything but digits: floats round, nanoseconds are cut to µs.

    What Feast reads in one way is read so here, at any depth: whole numbers for times are seconds
    since the epoch, text without a zone is UTC, and the entries of a map stand in the order of
    their keys. A struct becomes a map of its fields' names: so Parquet holds dictionaries.

    Raises:
        UnsupportedTypeError: A value does not fit.
    """
    if array.type == to and not _holds(to, pa.types.is_map):
        return array
    try:
        return _cast(array, to)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise UnsupportedTypeError(name, array.type, f"as {to}: {error}") from error


def array_of(values: Sequence[Any], to: pa.DataType, name: str) -> pa.Array:
    """Return Python values as an array, by the rules of `cast_array`.

    Arrow itself would cut 1.5 to a whole number, and take a number of seconds for microseconds.

    Raises:
        UnsupportedTypeError: A value does not fit.
    """
    try:
        if _holds(to, pa.types.is_timestamp) or (
            pa.types.is_integer(to) and any(isinstance(value, float) for value in values)
        ):
            return cast_array(pa.array(values), to, name)
        return pa.array(values, to)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise UnsupportedTypeError(name, to, str(error)) from error


def _cast(array: pa.Array, to: pa.DataType) -> pa.Array:  # noqa: PLR0911 - one per kind
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _cast(array.dictionary_decode(), to)
    if pa.types.is_timestamp(to):
        return _times(array, to)
    if pa.types.is_map(to) and (pa.types.is_map(kind) or pa.types.is_struct(kind)):
        return _sorted_map(_map_of(array, to) if pa.types.is_struct(kind) else array, to, _cast)
    if pa.types.is_fixed_size_list(kind):
        return _cast(array.cast(pa.list_(kind.value_type)), to)
    if pa.types.is_list(to) and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        child = _cast(pc.list_flatten(array), to.value_type)
        return _list_of(pc.list_value_length(array), child, to)
    if pa.types.is_struct(to) and pa.types.is_struct(kind):
        there = {field.name: part for field, part in zip(kind, array.flatten(), strict=True)}
        parts = [
            _cast(there[field.name], field.type)
            if field.name in there
            else pa.nulls(len(array), field.type)
            for field in to
        ]
        return pa.StructArray.from_arrays(parts, fields=list(to), mask=array.is_null())
    return array.cast(to)


def _times(array: pa.Array, to: pa.DataType) -> pa.Array:
    kind = array.type
    if pa.types.is_floating(kind):  # whole numbers that pandas made floating beside a null
        array = pc.if_else(pc.is_nan(array), None, array).cast(pa.int64())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return flat(instants(pa.chunked_array([array]))).cast(to)
    elif not pa.types.is_integer(kind):
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            array = pc.floor_temporal(array, unit="microsecond")
            return array.cast(pa.timestamp("us", kind.tz), safe=False).cast(to)
        return array.cast(to)
    return pc.multiply_checked(array.cast(pa.int64()), 10**6).cast(to)


def _holds(kind: pa.DataType, check: Callable[[pa.DataType], bool]) -> bool:
    if check(kind):
        return True
    if not pa.types.is_nested(kind):
        return False
    return any(_holds(kind.field(i).type, check) for i in range(kind.num_fields))


def typed(service: str, table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Cast the columns of `types`, exactly.

    Raises:
        EntityRowsError: One is missing, or holds what its type cannot.
    """
    for name, kind in types.items():
        index = index_of(service, table, name)
        column = table.column(index)
        if column.type == kind:
            continue
        try:
            table = table.set_column(index, name, cast_array(flat(column), kind, name))
        except UnsupportedTypeError as error:
            cause = error.__cause__ or error
            problem = f"is {column.type} and does not fit {kind}: {cause}"
            raise EntityRowsError(service, name, problem) from error
    return table


def index_of(service: str, table: pa.Table, name: str) -> int:
    """Return the place of a column.

    Raises:
        EntityRowsError: There is none of that name.
    """
    index: int = table.schema.get_field_index(name)
    if index < 0:
        known = ", ".join(table.column_names)
        raise EntityRowsError(service, name, f"is missing; there are {known}")
    return index


def instants(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return times as UTC microseconds, nanoseconds floored; what has no zone is UTC.

    Raises:
        pa.ArrowInvalid: The column holds something else, such as numbers: of these nothing says
            whether they count seconds, milliseconds or nanoseconds.
        ValueError: A text is not a time in ISO 8601.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if column.null_count == len(column):  # an empty frame's columns are of any type
        return pa.chunked_array([pa.nulls(len(column), TIMESTAMP)])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        parsed = pd.to_datetime(column.to_pandas(), utc=True, format="ISO8601")
        column = pa.chunked_array([pa.Array.from_pandas(parsed)])
        kind = column.type
    elif pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).cast(pa.int64()).cast(TIMESTAMP)
    if not pa.types.is_timestamp(kind):
        numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        remedy = '; for seconds since 1970, pd.to_datetime(column, unit="s", utc=True)'
        raise pa.ArrowInvalid(f"{kind} is not a type of times{remedy if numbers else ''}")
    number = column.cast(pa.int64())
    if kind.unit == "ns":
        floored = [
            pa.array(
                np.floor_divide(c.fill_null(0).to_numpy(zero_copy_only=False), 1000),
                mask=c.is_null().to_numpy(zero_copy_only=False),
            )
            for c in number.chunks
        ]
        number = pa.chunked_array(floored, pa.int64())
    else:
        number = pc.multiply_checked(number, {"us": 1, "ms": 10**3, "s": 10**6}[kind.unit])
    return number.cast(TIMESTAMP)


def _map_of(structs: pa.Array, t: pa.MapType) -> pa.Array:
    """Return structs as maps from their fields' names; a null field is a null item.

    Raises:
        pa.ArrowInvalid: A field does not fit the map's item type.
    """
    width = structs.type.num_fields
    present = structs.is_valid().to_numpy(zero_copy_only=False)
    rows = int(present.sum())
    fields = [field.filter(pa.array(present)).cast(t.item_type) for field in structs.flatten()]
    by_row = np.arange(rows * width).reshape(width, rows).T.reshape(-1)
    items = pa.concat_arrays([pa.array([], t.item_type), *fields]).take(pa.array(by_row))
    names = pa.array([field.name for field in structs.type] * rows, pa.string()).cast(t.key_type)
    lengths = pa.array(present * width, mask=~present)
    return pa.MapArray.from_arrays(_offsets(lengths), names, items)


def _list_of(lengths: pa.Array, child: pa.Array, t: pa.ListType) -> pa.Array:
    """Return the list array of type `t` whose rows take `lengths` of `child`, null where null."""
    return pa.ListArray.from_arrays(_offsets(lengths), child, type=t)


def _offsets(lengths: pa.Array) -> pa.Array:
    """Return where each row begins and the last ends; null where the row is null."""
    valid = lengths.is_valid().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False))
    return pa.array(np.append(0, ends).astype(np.int64), mask=np.append(~valid, False)).cast(
        pa.int32()
    )


def _sorted_map(
    array: pa.Array, t: pa.MapType, cast: Callable[[pa.Array, pa.DataType], pa.Array]
) -> pa.Array:
    """Return maps as type `t`, the entries of each in the order of their keys.

    Of several entries with one key the last stays, as in a dictionary.
    """
    kind = array.type
    lists = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    lengths, entries = pc.list_value_length(lists), pc.list_flatten(lists)
    keys, items = (
        cast(part, to)
        for part, to in zip(entries.flatten(), (t.key_type, t.item_type), strict=True)
    )
    counts = lengths.fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(array)), counts)
    ranks = pc.rank(keys, "ascending", tiebreaker="dense").to_numpy()
    order = np.lexsort((ranks, rows))  # stable: of equals, the last given is last
    repeated = (rows[order][1:] == rows[order][:-1]) & (ranks[order][1:] == ranks[order][:-1])
    chosen = order[np.append(~repeated, True)] if len(order) else order
    if len(chosen) < len(order) or (order[1:] < order[:-1]).any():
        keys, items = keys.take(pa.array(chosen)), items.take(pa.array(chosen))
        left = np.bincount(rows[chosen], minlength=len(array))
        lengths = pa.array(left, mask=lengths.is_null().to_numpy(zero_copy_only=False))
    return pa.MapArray.from_arrays(_offsets(lengths), keys, items, type=t)


def flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def data_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table as pandas does, but for whole numbers that a float beside a null would round.

    Such a column is of pandas' nullable Int64.
    """
    frame: pd.DataFrame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if rounds(column):
            frame[name] = pd.array(column.to_pylist(), dtype=pd.Int64Dtype())
    return frame


def numpy_array(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a column as Arrow's `to_numpy`, but exact: as objects what a float would round."""
    if rounds(column):
        return np.array(column.to_pylist(), np.object_)
    return np.asarray(flat(column).to_numpy(zero_copy_only=False))


def rounds(column: pa.ChunkedArray) -> bool:
    """Tell whether whole numbers stand beside a null and are too large for a float."""
    if not column.null_count or not pa.types.is_integer(column.type):
        return False
    least, most = pc.min_max(column).as_py().values()
    return most is not None and (most > EXACT or least < -EXACT)
