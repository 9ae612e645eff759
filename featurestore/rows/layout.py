"""Packed rows: an Arrow batch to one small blob per row, and many blobs back to a batch.

Pure: arrays in, bytes out; the online stores keep what is made here and nothing else. A row is

    order    16  event time, then created time: big-endian µs with the sign bit flipped, so that
                 comparing bytes compares (event time, created time); no created time is lowest
    layout    8  hash of the (column name, Arrow type) list: a row says how it must be read
    valid     b  one bit per column, 1 when the value is not null
    fixed     f  fixed-width values, widest first, little-endian; zero where null
    ends    4 v  per variable-width column, the end of its bytes in `data`
    data         the bytes of the variable-width columns, one after the other
    check     4  CRC-32 of all the above

Columns stand in the order of their names, so a view that lists its features differently has
the same layout. Nothing loops per value in Python: values move as whole columns of bytes.
`nested.py` turns a variable-width value into bytes and back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import UnsupportedTypeError
from steadfeast.featurestore.rows.values import (
    buffer_of,
    canonical_type,
    every,
    fixed_bytes,
    from_pieces,
    join_pieces,
    pieces_of,
    to_pieces,
    width_of,
)
from steadfeast.featurestore.tables import cast_array, flat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ORDER_BYTES = 16
LAYOUT_BYTES = 8
HEADER_BYTES = ORDER_BYTES + LAYOUT_BYTES
NO_TIME = -(2**63)
"""Stands for "no created time", before every time."""

_MOST_TTL = 2**62
_CHECK = 4
_RESIDUE = 0x2144DF1C  # CRC-32 of anything followed by its own CRC-32, little-endian
_SIGN = np.uint64(1 << 63)
_ORDER = Struct(">QQ")


Micros = TypeVar("Micros", int, "NDArray[np.int64]")


def usable(event_us: Micros, ttl_us: int, at_us: int | NDArray[np.int64]) -> Any:
    """Say which values may be used at `at_us`: the one rule for training and serving.

    A value is usable from its event time until, and including, `ttl_us` microseconds later;
    a `ttl_us` of 0 sets no limit. Shapes broadcast; of numbers the answer is one bool.
    """
    known = event_us <= at_us
    if ttl_us == 0:
        return known
    # One time is a Python integer, which has no end; below all times means the same. From an array
    # at most 146,000 years are taken, which is before the first date there is.
    one = isinstance(at_us, int)
    oldest = max(at_us - ttl_us, NO_TIME) if one else at_us - min(ttl_us, _MOST_TTL)
    return known & (event_us >= oldest)


class _Fixed(NamedTuple):
    """A run of columns of one width: where it starts in a row, and its columns' indices."""

    start: int
    width: int
    is_bool: bool
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How the rows of one schema are laid out; make one with `layout_of`.

    Attributes:
        schema: Columns in the order of their names, with canonical types.
        id: 8 bytes, a hash of the names and types.
    """

    schema: pa.Schema
    id: bytes

    @cached_property
    def types(self) -> tuple[pa.DataType, ...]:
        """The columns' types; `schema.types` makes them anew each time."""
        return tuple(self.schema.types)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each column by its name."""
        return {name: i for i, name in enumerate(self.schema.names)}

    @cached_property
    def variable(self) -> tuple[int, ...]:
        """Indices of the variable-width columns."""
        return tuple(i for i, t in enumerate(self.types) if width_of(t) is None)

    @cached_property
    def fixed(self) -> tuple[_Fixed, ...]:
        """The runs of fixed-width columns, in the order in which they are stored."""
        order = sorted(
            (-width, pa.types.is_boolean(t), i)
            for i, t in enumerate(self.types)
            if (width := width_of(t)) is not None
        )
        start, runs = HEADER_BYTES + self._valid_bytes, []
        for (negative, is_bool), items in groupby(order, key=itemgetter(0, 1)):
            run = _Fixed(start, -negative, is_bool, tuple(item[2] for item in items))
            start += run.width * len(run.columns)
            runs.append(run)
        return tuple(runs)

    @cached_property
    def prefix(self) -> int:
        """Bytes before the variable part."""
        fixed = sum(run.width * len(run.columns) for run in self.fixed)
        return HEADER_BYTES + self._valid_bytes + fixed + 4 * len(self.variable)

    @cached_property
    def null_row(self) -> bytes:
        """A row of nulls, which fills the places of entities that are not there."""
        order = (NO_TIME + 2**63).to_bytes(8, "big") * 2
        row = (order + self.id).ljust(self.prefix, b"\0")
        return row + crc32(row).to_bytes(_CHECK, "little")

    @cached_property
    def all_valid(self) -> NDArray[np.uint8]:
        """The bytes that say that no value is null."""
        return np.packbits(np.ones(len(self.types), np.uint8), bitorder="little")

    @cached_property
    def _all_valid_bytes(self) -> bytes:
        return self.all_valid.tobytes()

    def says_all_valid(self, row: bytes) -> bool:
        """Whether no value of `row` is null."""
        return row.startswith(self._all_valid_bytes, HEADER_BYTES)

    @property
    def _valid_bytes(self) -> int:
        return (len(self.types) + 7) // 8

    def serialize(self) -> bytes:
        """Return the layout as bytes that `Layout.deserialize` reads."""
        return cast("bytes", self.schema.serialize().to_pybytes())

    @staticmethod
    def deserialize(data: bytes) -> Layout:
        """Read what `serialize` returned."""
        return layout_of(pa.ipc.read_schema(pa.py_buffer(data)))


@lru_cache(maxsize=1024)
def layout_of(schema: pa.Schema) -> Layout:
    """Return the layout of rows with the columns of `schema`, in whatever order they are.

    Raises:
        UnsupportedTypeError: A column's type has no packed form.
    """
    columns = sorted((field.name, canonical_type(field.name, field.type)) for field in schema)
    text = json.dumps([[name, str(type_)] for name, type_ in columns], separators=(",", ":"))
    return Layout(
        pa.schema(columns), blake2b(text.encode("utf-8"), digest_size=LAYOUT_BYTES).digest()
    )


def layout_id(row: bytes) -> bytes:
    """Return the layout id that `row` carries."""
    return row[ORDER_BYTES:HEADER_BYTES]


def biased(micros: int) -> bytes:
    """Return a time in µs as rows hold it: bytes that compare as times do."""
    return (micros - NO_TIME).to_bytes(8, "big")


def order_of(row: bytes) -> tuple[int, int]:
    """Return the event and created time of `row` in µs; the latter is `NO_TIME` without one."""
    event, created = _ORDER.unpack_from(row)
    return event + NO_TIME, created + NO_TIME


def times_of(data: bytes, n: int, stride: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return event and created times in µs of n rows that stand `stride` bytes apart."""
    event_us, created_us = (np.ndarray((2, n), ">u8", data, 0, (8, stride)) ^ _SIGN).view(np.int64)
    return event_us, created_us


def validity_of(layout: Layout, data: bytes, n: int, stride: int) -> NDArray[np.bool_] | None:
    """Return which values are not null, shape (columns, n), or None when none is.

    The rows carry `layout` and stand `stride` bytes apart.
    """
    count = len(layout.types)
    bits = np.ndarray((n, (count + 7) // 8), np.uint8, data, HEADER_BYTES, (stride, 1))
    if (bits == layout.all_valid).all():
        return None
    valid: NDArray[np.bool_] = np.unpackbits(bits, axis=1, count=count, bitorder="little").T == 1
    return valid


def sound(row: bytes) -> bool:
    """Say whether `row` is what was once written."""
    return crc32(row) == _RESIDUE


def damaged(rows: Sequence[bytes]) -> list[int]:
    """Return the positions of rows that are not what was once written."""
    checks = list(map(crc32, rows))
    if checks.count(_RESIDUE) == len(checks):
        return []
    return [i for i, check in enumerate(checks) if check != _RESIDUE]


def encode(
    layout: Layout,
    columns: pa.Table | pa.RecordBatch,
    event_us: NDArray[np.int64],
    created_us: NDArray[np.int64],
) -> list[bytes]:
    """Pack each row of `columns`.

    Args:
        layout: The layout of its schema.
        columns: The layout's columns; n rows.
        event_us: Event times, shape (n,).
        created_us: Created times, shape (n,); `NO_TIME` where there is none.

    Raises:
        UnsupportedTypeError: A value does not fit the column's type.
    """
    arrays = [
        cast_array(flat(columns[name]), layout.types[i], name) for name, i in layout.index.items()
    ]
    n = len(event_us)
    if n == 0:
        return []
    matrix = np.zeros((n, layout.prefix), np.uint8)
    for start, times in ((0, event_us), (8, created_us)):
        biased = (times.astype(np.int64).view(np.uint64) ^ _SIGN).astype(">u8")
        matrix[:, start : start + 8] = biased.view(np.uint8).reshape(n, 8)
    matrix[:, ORDER_BYTES:HEADER_BYTES] = np.frombuffer(layout.id, np.uint8)
    if arrays:
        valid = np.column_stack([_valid(array) for array in arrays])
        bits = np.packbits(valid, axis=1, bitorder="little")
        matrix[:, HEADER_BYTES : HEADER_BYTES + bits.shape[1]] = bits
    for run in layout.fixed:
        for place, column in enumerate(run.columns):
            at = run.start + place * run.width
            matrix[:, at : at + run.width] = fixed_bytes(arrays[column], run.width)
    if not layout.variable:
        return [row + crc32(row).to_bytes(_CHECK, "little") for row in _slices(matrix)]
    pieces = [to_pieces(arrays[column]) for column in layout.variable]
    lengths = np.column_stack([pc.binary_length(piece).to_numpy() for piece in pieces])
    ends = np.cumsum(lengths, axis=1)
    if ends[:, -1].max() >= 2**32:
        raise UnsupportedTypeError(
            layout.schema.names[layout.variable[-1]], "row", "a row is limited to 4 GiB"
        )
    matrix[:, -4 * len(pieces) :] = ends.astype("<u4").view(np.uint8).reshape(n, -1)
    prefixes = pieces_of(matrix.reshape(-1), np.arange(n + 1, dtype=np.int64) * layout.prefix)
    return [
        row + crc32(row).to_bytes(_CHECK, "little")
        for row in join_pieces([prefixes, *pieces]).to_pylist()
    ]


class Decoded(NamedTuple):
    """Rows read back: `arrays` in the order of the columns asked for, times in µs, shape (n,)."""

    arrays: list[pa.Array]
    event_us: NDArray[np.int64]
    created_us: NDArray[np.int64]


def decode(layout: Layout, rows: Sequence[bytes], columns: Sequence[str]) -> Decoded:
    """Unpack `columns` of rows that carry `layout` and that `damaged` found no fault with."""
    n, prefix = len(rows), layout.prefix
    if n == 0:
        empty = [pa.array([], layout.types[layout.index[name]]) for name in columns]
        return Decoded(empty, np.zeros(0, np.int64), np.zeros(0, np.int64))
    if layout.variable:
        head = b"".join([row[:prefix] for row in rows])
        matrix = np.frombuffer(head, np.uint8).reshape(n, prefix)
    else:
        matrix = np.frombuffer(b"".join(rows), np.uint8).reshape(n, prefix + _CHECK)
    order = np.ascontiguousarray(matrix[:, :ORDER_BYTES]).view(">u8") ^ _SIGN
    times = order.astype(np.uint64).view(np.int64).reshape(n, 2)

    validity = _Validity(layout, matrix)
    wanted = [layout.index[name] for name in columns]
    asked = frozenset(wanted)
    made: dict[int, pa.Array] = {}
    for run in layout.fixed:
        places = [place for place, column in enumerate(run.columns) if column in asked]
        if places:
            made.update(_decode_run(layout, run, places, matrix, validity))
    if not asked.isdisjoint(layout.variable):
        pieces = _pieces(layout, rows, matrix)
        for place, column in enumerate(layout.variable):
            if column in asked:
                mine = every(pieces, place, len(layout.variable))
                made[column] = from_pieces(layout.types[column], mine, *validity[column])
    return Decoded([made[column] for column in wanted], times[:, 0].copy(), times[:, 1].copy())


class _Validity:
    """Bitmap (None when all are valid) and number of nulls of each column."""

    def __init__(self, layout: Layout, matrix: NDArray[np.uint8]) -> None:
        n, count = len(matrix), len(layout.types)
        bits = matrix[:, HEADER_BYTES : HEADER_BYTES + (count + 7) // 8]
        valid = np.unpackbits(bits, axis=1, count=count, bitorder="little")
        self._nulls = (n - valid.sum(axis=0, dtype=np.int64)).tolist()
        self._stride = (n + 7) // 8
        self._bits = pa.py_buffer(np.packbits(valid.T, axis=1, bitorder="little").tobytes())

    def __getitem__(self, column: int) -> tuple[pa.Buffer | None, int]:
        nulls = self._nulls[column]
        if nulls == 0:
            return None, 0
        return self._bits.slice(column * self._stride, self._stride), nulls


def _decode_run(
    layout: Layout,
    run: _Fixed,
    places: Sequence[int],
    matrix: NDArray[np.uint8],
    validity: _Validity,
) -> Iterator[tuple[int, pa.Array]]:
    """Yield the columns of `run` at `places`: one transposition makes all of them."""
    n, width = len(matrix), run.width
    block = matrix[:, run.start : run.start + width * len(run.columns)]
    cells = np.ascontiguousarray(block).view(f"V{width}").reshape(n, len(run.columns))
    chosen = np.ascontiguousarray(cells[:, places].T)
    size = n * width
    if run.is_bool:
        flags = chosen.view(np.uint8).reshape(-1, n)
        chosen, size = np.packbits(flags, axis=1, bitorder="little"), (n + 7) // 8
    buffer = buffer_of(chosen)
    for i, place in enumerate(places):
        column = run.columns[place]
        bitmap, nulls = validity[column]
        buffers = [bitmap, buffer.slice(i * size, size)]
        yield column, pa.Array.from_buffers(layout.types[column], n, buffers, null_count=nulls)


def _pieces(layout: Layout, rows: Sequence[bytes], matrix: NDArray[np.uint8]) -> pa.Array:
    """Return the variable-width values of all rows, row by row, as pieces."""
    n, count = len(rows), len(layout.variable)
    data = b"".join([row[layout.prefix : -_CHECK] for row in rows])
    ends = np.ascontiguousarray(matrix[:, layout.prefix - 4 * count : layout.prefix])
    ends = ends.view("<u4").reshape(n, count).astype(np.int64)
    starts = np.cumsum(ends[:, -1]) - ends[:, -1]
    offsets = np.zeros(n * count + 1, np.int64)
    offsets[1:] = (starts[:, None] + ends).reshape(-1)
    return pieces_of(np.frombuffer(data, np.uint8), offsets)


def _valid(array: pa.Array) -> NDArray[np.bool_]:
    if array.null_count == 0:
        return np.ones(len(array), np.bool_)
    return cast("NDArray[np.bool_]", array.is_valid().to_numpy(zero_copy_only=False))


def _slices(matrix: NDArray[np.uint8]) -> list[bytes]:
    n, width = matrix.shape
    data = matrix.tobytes()
    return [data[i : i + width] for i in range(0, n * width, width)]
