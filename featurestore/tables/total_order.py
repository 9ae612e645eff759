"""The total order of one key's rows, which decides every tie, offline and online alike.

Above `errors` and `config`, beside nothing else: types and values in, SQL text or bytes out.

The rows of one key are ordered by `(event_ts, created_ts, canonical row bytes)`; the greatest
wins, and a null `created_ts` is least. Canonical row bytes are the concatenation, over *all*
features of the view (requested or not) in order of their names' UTF-8 bytes, of `value(feature)`:

- null: `00`; anything else: `01`, then by type
- boolean: `00` or `01`
- integer of any width or sign: the number plus 2^127, 16 bytes, big-endian;
  a date is its days, a time or timestamp its microseconds, a decimal its unscaled number
- float32 and float64: as float64; NaN of any payload is eight `FF`; otherwise the IEEE bits,
  big-endian, with all bits flipped when negative and the sign bit flipped when not (so -0.0 < 0.0)
- string (UTF-8) and bytes: each `00` doubled to `00 FF`, then `00 00`
- list and array: for each element `01` and `value(element)`; then `00`
- struct: `value(field)` in declared order; map: a list of (key, value) structs as stored

Compared as bytes, that equals DuckDB's ascending order with nulls first over the expressions of
`canonical_keys`; `canonical_bytes` writes the same from Python values. Rows that tie
on it agree in every feature, so which one is taken cannot be seen.
"""

from __future__ import annotations

import struct
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from steadfeast.featurestore.tables.times import EPOCH, micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Type(Protocol):
    """What is needed of a DuckDB type; `duckdb.sqltypes.DuckDBPyType` is one."""

    @property
    def id(self) -> str:
        """Lower-case name without parameters: `double`, `list`, `struct`."""

    @property
    def children(self) -> list[tuple[str, Any]]:
        """Named children of a nested type."""


def canonical_keys(features: Iterable[tuple[str, str, Type]]) -> list[str]:
    """Return SQL expressions that order rows as their canonical bytes do, ascending, nulls first.

    Args:
        features: Name, SQL expression and DuckDB type of each feature of the view, in any order.
    """
    keys: list[str] = []
    for _, value, kind in sorted(features, key=lambda item: item[0].encode()):
        if kind.id in {"float", "double"}:
            keys += [value, f"CASE WHEN {value} = 0 THEN NOT signbit({value}) END"]
        else:
            keys.append(_comparable(value, kind))
    return keys


def _comparable(value: str, kind: Type, depth: int = 0) -> str:
    """Rewrite a value so that DuckDB's comparison of it is the canonical one.

    DuckDB puts nulls inside nested values last and holds -0.0 equal to 0.0; here each nested
    value is preceded by whether it is there, and each float is followed by its sign.
    """
    if kind.id in {"float", "double"}:
        return f"{{'v': {value}, 's': CASE WHEN {value} = 0 THEN NOT signbit({value}) END}}"
    if kind.id in {"list", "array"}:
        child = next(t for name, t in kind.children if name == "child")
        item = f"x{depth}"
        plain = f"{value}::{child}[]" if kind.id == "array" else value
        return f"list_transform({plain}, lambda {item}: {_present(item, child, depth + 1)})"
    if kind.id == "map":
        (_, key), (_, item) = kind.children
        entry = f"x{depth}"
        pair = (
            f"{{'k': {_present(f'{entry}.key', key, depth + 1)}, "
            f"'i': {_present(f'{entry}.value', item, depth + 1)}}}"
        )
        return f"list_transform(map_entries({value}), lambda {entry}: {pair})"
    if kind.id == "struct":
        fields = ", ".join(
            f"'f{i}': {_present(_field(value, name), child, depth + 1)}"
            for i, (name, child) in enumerate(kind.children)
        )
        return f"CASE WHEN {value} IS NOT NULL THEN {{{fields}}} END"
    return value


def _present(value: str, kind: Type, depth: int) -> str:
    return f"{{'p': {value} IS NOT NULL, 'v': {_comparable(value, kind, depth)}}}"


def _field(value: str, name: str) -> str:
    quoted = name.replace("'", "''")
    return f"struct_extract({value}, '{quoted}')"


def canonical_bytes(row: Mapping[str, Any]) -> bytes:
    """Return the canonical bytes of one row, given by feature name as Python values.

    Raises:
        TypeError: A value has no canonical form, such as a duration.
    """
    return b"".join(_value(row[name]) for name in sorted(row, key=str.encode))


def _value(value: Any) -> bytes:
    if value is None:
        return b"\x00"
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return b"\x01" + write(value)
    raise TypeError(f"{type(value).__name__} has no canonical bytes")


def _bool(value: bool) -> bytes:
    return bytes([value])


def _integer(value: int) -> bytes:
    return (value + (1 << 127)).to_bytes(16, "big")


def _float(value: float) -> bytes:
    if value != value:  # noqa: PLR0124 - only NaN differs from itself
        return b"\xff" * 8
    (bits,) = struct.unpack(">Q", struct.pack(">d", value))
    flipped = bits ^ 0xFFFFFFFFFFFFFFFF if bits >> 63 else bits | 1 << 63
    return int(flipped).to_bytes(8, "big")


def _text(value: str) -> bytes:
    return _bytes(value.encode())


def _bytes(value: bytes) -> bytes:
    return value.replace(b"\x00", b"\x00\xff") + b"\x00\x00"


def _timestamp(value: datetime) -> bytes:
    return _integer(micros(value))


def _date(value: date) -> bytes:
    return _integer((value - EPOCH.date()).days)


def _time(value: time) -> bytes:
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    return _integer(seconds * 10**6 + value.microsecond)


def _decimal(value: Decimal) -> bytes:
    sign, digits, _ = value.as_tuple()
    unscaled = int("".join(map(str, digits)))
    return _integer(-unscaled if sign else unscaled)


def _list(value: list[Any]) -> bytes:
    return b"".join(b"\x01" + _value(item) for item in value) + b"\x00"


def _struct(value: dict[str, Any]) -> bytes:
    return b"".join(map(_value, value.values()))


def _pair(value: tuple[Any, ...]) -> bytes:
    return b"".join(map(_value, value))


_WRITERS: tuple[tuple[type, Callable[[Any], bytes]], ...] = (
    (bool, _bool),  # before int, which it is a kind of
    (int, _integer),
    (float, _float),
    (str, _text),
    (bytes, _bytes),
    (datetime, _timestamp),  # before date
    (date, _date),
    (time, _time),
    (Decimal, _decimal),
    (list, _list),
    (dict, _struct),
    (tuple, _pair),  # pyarrow gives the entries of a map as pairs
)
