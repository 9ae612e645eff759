"""Entity keys as bytes: typed and injective, whole columns at a time.

Below the stores. A key is 8 bytes that identify the join keys' names and types, so that a view
whose entities change never reads rows of its old ones, then the value of each join key in the
order of their names: a fixed-width one big-endian, so that neighbouring numbers are stored side
by side, another as u32 length and bytes. Two different keys of one view never have the same
bytes.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import InvalidKeysError, UnsupportedTypeError
from steadfeast.featurestore.rows import (
    canonical_type,
    fixed_array,
    fixed_bytes,
    join_pieces,
    pieces_of,
)
from steadfeast.featurestore.rows import width_of as _width_of
from steadfeast.featurestore.tables import cast_array, flat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

_PREFIX = 8
_FORMAT = 2  # keys written in another one are not found, and never read as something else


def key_hash(key: bytes) -> str:
    """Return what an error says instead of a key: 16 hexadecimal digits."""
    return blake2b(key, digest_size=8).hexdigest()


class KeyCodec:
    """Turns the join keys of one feature view into bytes and back.

    Args:
        view: Name of the feature view, for messages.
        types: Arrow type per join key.

    Raises:
        InvalidKeysError: A type cannot be a key: a float or a nested one.
    """

    def __init__(self, view: str, types: Mapping[str, pa.DataType]) -> None:
        self.view = view
        self.types = {name: canonical_type(name, types[name]) for name in sorted(types)}
        for name, t in self.types.items():
            if pa.types.is_floating(t) or pa.types.is_nested(t):
                raise InvalidKeysError(view, f"{name!r} is of type {t}, which cannot be a key")
        self._plain = [_plain(t) for t in self.types.values()]
        self.prefix = _prefix(tuple((name, str(t)) for name, t in self.types.items()))

    def encode(self, keys: pa.Table | pa.RecordBatch) -> list[bytes | None]:
        """Return one key per row; None where a join key is null, which matches nothing.

        Raises:
            InvalidKeysError: A join key is missing or of a type that does not fit.
        """
        n = keys.num_rows
        parts = [_same(self.prefix, n)]
        valid: pa.Array | None = None
        for name, t in self.types.items():
            array = self._column(keys, name, t)
            if array.null_count:
                mask = array.is_valid()
                valid = mask if valid is None else pc.and_(valid, mask)
            width = _width_of(t)
            if width is not None:
                cells = np.ascontiguousarray(fixed_bytes(array, width)[:, ::-1])
                parts.append(pieces_of(cells.reshape(-1), np.arange(n + 1) * width))
                continue
            data = array.cast(pa.binary()).cast(pa.large_binary()).fill_null(b"")
            lengths = pc.binary_length(data).to_numpy().astype("<u4")
            parts += [pieces_of(lengths.view(np.uint8), np.arange(n + 1) * 4), data]
        joined = join_pieces(parts)
        if valid is not None:
            joined = pc.if_else(valid, joined, None)
        result: list[bytes | None] = joined.to_pylist()
        return result

    def plain(self, columns: Sequence[Sequence[Any]]) -> list[bytes | None] | None:
        """Encode Python values without a trip through Arrow, as a few keys are cheapest encoded.

        Args:
            columns: Values per join key, in the order of `types`.

        Returns:
            What `encode` would, or None: a value is neither a str nor an int that fits, and
            whether and how it can be converted is for Arrow to say.
        """
        parts = []
        for values, how in zip(columns, self._plain, strict=True):
            if how is None or set(map(type, values)) != {how.kind}:
                return None
            try:
                parts.append(how.encode(values))
            except (OverflowError, UnicodeEncodeError):
                return None
        prefix = self.prefix
        if len(parts) == 1:
            return [prefix + part for part in parts[0]]
        return [prefix + b"".join(pieces) for pieces in zip(*parts, strict=True)]

    def decode(self, keys: Sequence[bytes]) -> dict[str, pa.Array]:
        """Return the join keys of keys that have this codec's prefix."""
        lengths = np.fromiter(map(len, keys), np.int64, len(keys))
        data = np.frombuffer(b"".join(keys), np.uint8)
        at = np.concatenate([[0], np.cumsum(lengths)])[:-1] + _PREFIX
        arrays: dict[str, pa.Array] = {}
        for name, t in self.types.items():
            width = _width_of(t)
            if width is not None:
                arrays[name] = fixed_array(t, data[at[:, None] + np.arange(width)[::-1]])
                at = at + width
                continue
            size = data[at[:, None] + np.arange(4)].view("<u4").reshape(-1).astype(np.int64)
            ends = np.column_stack([at + 4, at + 4 + size]).reshape(-1)
            spans = pieces_of(data, np.append(ends, data.size))
            pieces = spans.take(pa.array(np.arange(0, 2 * len(keys), 2)))
            arrays[name] = pieces.cast(pa.binary()).cast(t)
            at = at + 4 + size
        return arrays

    def _column(self, keys: pa.Table | pa.RecordBatch, name: str, t: pa.DataType) -> pa.Array:
        if name not in keys.schema.names:
            given = ", ".join(keys.schema.names) or "none"
            raise InvalidKeysError(self.view, f"join key {name!r} is missing; given are {given}")
        try:
            return cast_array(flat(keys.column(name)), t, name)
        except UnsupportedTypeError as error:
            raise InvalidKeysError(self.view, str(error)) from error


class _Plain(NamedTuple):
    """How values of one Python type are encoded."""

    kind: type
    encode: Callable[[Sequence[Any]], list[bytes]]


def _plain(t: pa.DataType) -> _Plain | None:
    if pa.types.is_string(t):
        return _Plain(str, _texts)
    if not pa.types.is_integer(t):
        return None
    width, signed = t.bit_width // 8, pa.types.is_signed_integer(t)
    return _Plain(int, lambda values: [v.to_bytes(width, "big", signed=signed) for v in values])


def _texts(values: Sequence[str]) -> list[bytes]:
    texts = [value.encode() for value in values]
    return [len(text).to_bytes(4, "little") + text for text in texts]


@lru_cache(maxsize=1024)
def _prefix(columns: tuple[tuple[str, str], ...]) -> bytes:
    described = json.dumps([_FORMAT, columns]).encode("utf-8")
    return blake2b(described, digest_size=_PREFIX).digest()


def _same(value: bytes, n: int) -> pa.Array:
    data: NDArray[np.uint8] = np.frombuffer(value * n, np.uint8)
    return pieces_of(data, np.arange(n + 1) * len(value))
