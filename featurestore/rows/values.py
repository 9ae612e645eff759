"""Values as bytes: strings, lists, structs and maps as pieces, fixed-width values as cells.

Below `rows.py`, which says where in a row the bytes go. A *piece* is one value of a
variable-width column as bytes; the pieces of a column are an Arrow `large_binary` array. Nulls
have an empty piece, the row says that they are null. Encodings, by type:

- string, binary: the bytes themselves;
- list of fixed-width values: per element a byte that is 1 when it is not null, then the value;
- list of anything else: a *bundle*: u32 number of elements, u32 length of each (`_NULL` for a
  null), then their pieces; a struct is a bundle of its fields, a map a list of (key, value).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import UnsupportedTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_NULL = 0xFFFFFFFF
_EMPTY = b""


def canonical_type(column: str, t: pa.DataType) -> pa.DataType:  # noqa: PLR0911 - one per type
    """Return the type that values of type `t` are stored as: one for all that mean the same.

    Raises:
        UnsupportedTypeError: There is no packed form.
    """
    is_a = pa.types
    if is_a.is_dictionary(t):
        return canonical_type(column, t.value_type)
    if is_a.is_string(t) or is_a.is_large_string(t) or is_a.is_string_view(t):
        return pa.string()
    if is_a.is_binary(t) or is_a.is_large_binary(t) or is_a.is_binary_view(t):
        return pa.binary()
    if is_a.is_timestamp(t):
        return pa.timestamp("us", tz="UTC")
    if is_a.is_list(t) or is_a.is_large_list(t) or is_a.is_fixed_size_list(t):
        return pa.list_(canonical_type(column, t.value_type))
    if is_a.is_struct(t):
        return pa.struct([(f.name, canonical_type(column, f.type)) for f in t])
    if is_a.is_map(t):
        return pa.map_(canonical_type(column, t.key_type), canonical_type(column, t.item_type))
    if width_of(t) is None:
        raise UnsupportedTypeError(column, t, "it has no packed form")
    return t


def width_of(t: pa.DataType) -> int | None:
    """Return the bytes that a value of type `t` takes, or None when they vary."""
    if pa.types.is_boolean(t):
        return 1
    if pa.types.is_primitive(t) or pa.types.is_decimal(t) or pa.types.is_fixed_size_binary(t):
        return cast("int", t.bit_width) // 8 or None
    return None


def buffer_of(array: NDArray[np.generic]) -> pa.Buffer:
    """Return the memory of a contiguous `array` as an Arrow buffer, not copied."""
    return pa.py_buffer(array.reshape(-1).view(np.uint8))


def fixed_bytes(array: pa.Array, width: int) -> NDArray[np.uint8]:
    """Return the values as cells, shape (n, width); zero where null, one NaN for all NaNs."""
    n = len(array)
    if pa.types.is_boolean(array.type):
        filled = array.fill_null(False) if array.null_count else array
        return cast(
            "NDArray[np.uint8]",
            filled.to_numpy(zero_copy_only=False).astype(np.uint8).reshape(n, 1),
        )
    data = array.buffers()[1]
    if data is None or n == 0:
        return np.zeros((n, width), np.uint8)
    start = array.offset * width
    cells = np.frombuffer(data, np.uint8)[start : start + n * width].reshape(n, width)
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        cells = np.where(valid[:, None], cells, np.uint8(0))
    if pa.types.is_floating(array.type):
        values = np.ascontiguousarray(cells).view(f"f{width}").reshape(n)
        nans = np.isnan(values)
        if nans.any():
            values = np.where(nans, np.array(np.nan, values.dtype), values)
            cells = values.view(np.uint8).reshape(n, width)
    return cast("NDArray[np.uint8]", cells)


def fixed_array(
    t: pa.DataType, cells: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return the array of type `t` whose values are `cells`, shape (n, width)."""
    n = len(cells)
    bitmap = None if valid is None or valid.all() else _bitmap(valid)
    if pa.types.is_boolean(t):
        data = pa.py_buffer(np.packbits(cells.reshape(-1), bitorder="little"))
    else:
        data = buffer_of(np.ascontiguousarray(cells))
    return pa.Array.from_buffers(t, n, [bitmap, data])


def pieces_of(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> pa.Array:
    """Return the pieces `data[offsets[i]:offsets[i + 1]]`, not copied."""
    offsets = np.ascontiguousarray(offsets, np.int64)
    return pa.Array.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, buffer_of(offsets), pa.py_buffer(data)]
    )


def join_pieces(parts: Sequence[pa.Array]) -> pa.Array:
    """Join pieces row by row: piece i of the result is piece i of every part."""
    return pc.binary_join_element_wise(*parts, pa.scalar(_EMPTY, pa.large_binary()))


def every(pieces: pa.Array, first: int, step: int) -> pa.Array:
    """Return each `step`-th piece from `first` on."""
    if step == 1 and first == 0:
        return pieces
    return pieces.take(pa.array(np.arange(first, len(pieces), step)))


def to_pieces(array: pa.Array) -> pa.Array:
    """Return the pieces of `array`, which has a canonical type; a null's is empty."""
    t = array.type
    width = width_of(t)
    if width is not None:
        cells = fixed_bytes(array, width)
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        return pieces_of(np.ascontiguousarray(cells[valid]).reshape(-1), _offsets(valid * width))
    if pa.types.is_string(t) or pa.types.is_binary(t):
        return array.cast(pa.binary()).cast(pa.large_binary()).fill_null(_EMPTY)
    if pa.types.is_struct(t):
        return _struct_pieces(array)
    if pa.types.is_map(t):
        array = array.cast(_entries(t))
        t = array.type
    counts = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
    flat = pc.list_flatten(array)
    width = width_of(t.value_type)
    if width is None:
        present = array.is_valid().to_numpy(zero_copy_only=False)
        nulls = flat.is_null().to_numpy(zero_copy_only=False)
        return _bundle(to_pieces(flat), nulls, counts, present)
    valid = flat.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    cells = np.hstack([valid[:, None], fixed_bytes(flat, width)])
    return pieces_of(cells.reshape(-1), _offsets(counts * (width + 1)))


def from_pieces(
    t: pa.DataType, pieces: pa.Array, bitmap: pa.Buffer | None, null_count: int
) -> pa.Array:
    """Return the array of type `t` whose pieces are given; `bitmap` says which are not null."""
    n = len(pieces)
    data, offsets = _parts(pieces)
    width = width_of(t)
    if width is not None:
        cells = np.zeros((n, width), np.uint8)
        cells[np.diff(offsets) > 0] = data.reshape(-1, width)
        if pa.types.is_boolean(t):
            bits = np.packbits(cells.reshape(-1), bitorder="little")
            return pa.Array.from_buffers(t, n, [bitmap, buffer_of(bits)], null_count=null_count)
        return pa.Array.from_buffers(t, n, [bitmap, buffer_of(cells)], null_count=null_count)
    if pa.types.is_string(t) or pa.types.is_binary(t):
        return pa.Array.from_buffers(
            t, n, [bitmap, _narrow(offsets), pa.py_buffer(data)], null_count=null_count
        )
    if pa.types.is_struct(t):
        fields = _unbundle(data, offsets, len(t))[0]
        children = [_child(f.type, every(fields, i, len(t))) for i, f in enumerate(t)]
        return pa.Array.from_buffers(t, n, [bitmap], null_count=null_count, children=children)
    # A map's entries have keys that cannot be null: a child that says otherwise makes Parquet's
    # writer count levels that its schema does not have, and write past the end of its memory.
    is_map = pa.types.is_map(t)
    value_type = pa.struct([t.key_field, t.item_field]) if is_map else t.value_type
    width = width_of(value_type)
    if width is None:
        elements, counts = _unbundle(data, offsets, None)
        child, ends = _child(value_type, elements), _offsets(counts)
    else:
        matrix = data.reshape(-1, width + 1)
        child = fixed_array(value_type, matrix[:, 1:], matrix[:, 0] == 1)
        ends = offsets // (width + 1)
    return pa.Array.from_buffers(
        t, n, [bitmap, _narrow(ends)], null_count=null_count, children=[child]
    )


def _child(t: pa.DataType, pieces: pa.Array) -> pa.Array:
    if pieces.null_count == 0:
        return from_pieces(t, pieces, None, 0)
    valid = pieces.is_valid().to_numpy(zero_copy_only=False)
    return from_pieces(t, pieces.fill_null(_EMPTY), _bitmap(valid), pieces.null_count)


def _struct_pieces(array: pa.Array) -> pa.Array:
    width = array.type.num_fields
    present = array.is_valid().to_numpy(zero_copy_only=False)
    rows = int(present.sum())
    if rows == 0:
        return pieces_of(np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int64))
    fields = [field.filter(array.is_valid()) for field in array.flatten()]
    order = np.arange(rows * width).reshape(width, rows).T.reshape(-1)  # by row, then by field
    pieces = pa.concat_arrays([to_pieces(field) for field in fields]).take(pa.array(order))
    valid = np.concatenate([f.is_valid().to_numpy(zero_copy_only=False) for f in fields])
    return _bundle(pieces, ~valid[order], np.where(present, width, 0), present)


def _bundle(
    pieces: pa.Array,
    nulls: NDArray[np.bool_],
    counts: NDArray[np.int64],
    present: NDArray[np.bool_],
) -> pa.Array:
    """Bundle runs of `pieces`, `counts[i]` to row i; `nulls` says which pieces are of nulls."""
    data, offsets = _parts(pieces)
    lengths = np.diff(offsets).astype("<u4")
    lengths[nulls] = _NULL
    firsts = _offsets(counts)
    heads = pieces_of(counts[present].astype("<u4").view(np.uint8), _offsets(present * 4))
    return join_pieces(
        [heads, pieces_of(lengths.view(np.uint8), firsts * 4), pieces_of(data, offsets[firsts])]
    )


def _unbundle(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], fields: int | None
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Undo `_bundle`; with `fields`, an absent bundle gives that many nulls."""
    n = len(offsets) - 1
    present = np.diff(offsets) > 0
    starts = offsets[:-1]
    counts = np.zeros(n, np.int64)
    heads = data[_ranges(starts[present], np.full(int(present.sum()), 4))]
    counts[present] = np.ascontiguousarray(heads).view("<u4")
    lengths = np.ascontiguousarray(data[_ranges(starts + 4, counts * 4)]).view("<u4")
    bodies = data[_ranges(starts + 4 * (1 + counts), offsets[1:] - starts - 4 * (present + counts))]
    if fields is not None and not present.all():
        spread = np.full((n, fields), _NULL, np.uint32)
        spread[present] = lengths.reshape(-1, fields)
        lengths = spread.reshape(-1)
    nulls = lengths == _NULL
    pieces = pieces_of(np.ascontiguousarray(bodies), _offsets(np.where(nulls, 0, lengths)))
    if nulls.any():
        pieces = pa.Array.from_buffers(
            pieces.type, len(pieces), [_bitmap(~nulls), *pieces.buffers()[1:]]
        )
    return pieces, counts


def _entries(t: pa.MapType) -> pa.ListType:
    return pa.list_(pa.struct([("key", t.key_type), ("value", t.item_type)]))


def _offsets(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of all ranges one after the other."""
    offsets = _offsets(lengths)
    shift: NDArray[np.int64] = np.repeat(starts - offsets[:-1], lengths)
    return shift + np.arange(offsets[-1])


def _parts(pieces: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of `pieces` and their offsets, which start at 0."""
    _, offsets, data = pieces.buffers()
    if offsets is None:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    ends = np.frombuffer(offsets, np.int64)[pieces.offset : pieces.offset + len(pieces) + 1]
    if len(ends) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    everything = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return everything[ends[0] : ends[-1]], ends - ends[0]


def _narrow(offsets: NDArray[np.int64]) -> pa.Buffer:
    if offsets[-1] >= 2**31:
        raise UnsupportedTypeError("", "value", "one batch is limited to 2 GiB per column")
    return buffer_of(offsets.astype(np.int32))


def _bitmap(valid: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little"))
