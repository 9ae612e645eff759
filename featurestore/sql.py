"""The text of every DuckDB query; pure: names and types in, text out.

Above `errors` and `config`; `featurestore.offline` runs what is written here. Names and paths
come from feature definitions and are quoted, never trusted; times are integers.

Time is microseconds since the epoch in UTC, as BIGINT, so that no session time zone and no unit
of a source changes a comparison. Nanoseconds are floored: the microsecond that holds the instant.

**The total order of one key's rows** is `(event_ts, created_ts, canonical row bytes)`, greatest
wins; a null `created_ts` is least. Canonical row bytes are the concatenation, over *all* features
of the view (requested or not) in order of their names' UTF-8 bytes, of `value(feature)`:

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
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EPOCH_DAY = date(1970, 1, 1)
_INT64 = 2**63


class Type(Protocol):
    """What is needed of a DuckDB type; `duckdb.sqltypes.DuckDBPyType` is one."""

    @property
    def id(self) -> str:
        """Lower-case name without parameters: `double`, `list`, `struct`."""

    @property
    def children(self) -> list[tuple[str, Any]]:
        """Named children of a nested type."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a source, as DuckDB reads it."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class View:
    """One feature view, bound to its source: everything that decides its values.

    Attributes:
        scan: Table expression of the source.
        keys: Source columns of the join keys, in the order of the spine's `k0`, `k1`, ...
        timestamp: Source column of the event time.
        created: Source column of the created time, if there is one.
        features: `(source column, result name)` of each requested feature.
        order: `(feature name, source column)` of all features: the tie rule's columns.
        ttl: Microseconds a value stays usable, the last one included; 0 is no limit.
    """

    scan: str
    keys: tuple[Column, ...]
    timestamp: Column
    created: Column | None
    features: tuple[tuple[Column, str], ...]
    order: tuple[tuple[str, Column], ...]
    ttl: int = 0


def identifier(name: str) -> str:
    """Quote one identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote one string, for text that must stand alone: paths, and what `to_sql` returns."""
    return "'" + text.replace("'", "''") + "'"


def parquet(paths: Sequence[str], *, hive: bool = False) -> str:
    """Return a table expression over Parquet files, columns united by name."""
    files = ", ".join(map(literal, paths))
    united = ", union_by_name=true" if len(paths) > 1 else ""
    return f"read_parquet([{files}], hive_partitioning={str(hive).lower()}{united})"


def micros(expression: str, kind: str) -> str:
    """Return `expression` of DuckDB type id `kind` as microseconds since the epoch, UTC."""
    if kind in {"timestamp_ns", "timestamptz_ns"}:
        nanos = f"epoch_ns({expression})"
        return f"(({nanos} - ({nanos} % 1000 + 1000) % 1000) // 1000)"
    if kind in {"timestamp_s", "timestamp_ms"}:
        return f"epoch_us({expression}::TIMESTAMP)"
    return f"epoch_us({expression})"


def within(column: Column, since: int | None, until: int | None) -> str:
    """Return a condition that is true at least for `since <= column <= until`.

    Plain comparisons of the bare column, so that Parquet row groups are skipped by their
    statistics. For nanoseconds it is exact too; dates are widened to whole days.
    """
    bounds = []
    for bound, sign in ((since, ">="), (until, "<=")):
        if bound is None:
            continue
        if not -_INT64 <= bound < _INT64:  # before or after everything that a column can hold
            continue
        name, kind = identifier(column.name), column.type.id
        if kind == "timestamp with time zone":
            bounds.append(f"{name} {sign} make_timestamptz({bound})")
        elif kind == "timestamp":
            bounds.append(f"{name} {sign} make_timestamp({bound})")
        else:
            bounds.append(f"{micros(name, kind)} {sign} {bound}")
    return " AND ".join(bounds) or "true"


def canonical_keys(features: Iterable[tuple[str, Column]]) -> list[str]:
    """Return expressions that order rows as their canonical bytes do, ascending, nulls first."""
    keys: list[str] = []
    for _, column in sorted(features, key=lambda item: item[0].encode()):
        name = identifier(column.name)
        if column.type.id in {"float", "double"}:
            keys += [name, f"CASE WHEN {name} = 0 THEN NOT signbit({name}) END"]
        else:
            keys.append(_comparable(name, column.type))
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
        plain = f"{value}::{_sql(child)}[]" if kind.id == "array" else value
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
            f"'f{i}': {_present(f'{value}.{identifier(name)}', child, depth + 1)}"
            for i, (name, child) in enumerate(kind.children)
        )
        return f"CASE WHEN {value} IS NOT NULL THEN {{{fields}}} END"
    return value


def _present(value: str, kind: Type, depth: int) -> str:
    return f"{{'p': {value} IS NOT NULL, 'v': {_comparable(value, kind, depth)}}}"


def _sql(kind: Type) -> str:
    return str(kind)


def canonical_bytes(row: Mapping[str, Any]) -> bytes:
    """Return the canonical bytes of one row, given by feature name as Python values.

    Raises:
        TypeError: A value has no canonical form, such as a duration.
    """
    return b"".join(_value(row[name]) for name in sorted(row, key=str.encode))


def _value(value: Any) -> bytes:  # noqa: PLR0911 - one return per type is the clearest form
    if value is None:
        return b"\x00"
    if isinstance(value, bool):
        return b"\x01\x01" if value else b"\x01\x00"
    if isinstance(value, int):
        return b"\x01" + (value + (1 << 127)).to_bytes(16, "big")
    if isinstance(value, float):
        return b"\x01" + _float(value)
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return b"\x01" + raw.replace(b"\x00", b"\x00\xff") + b"\x00\x00"
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        since = aware - _EPOCH
        return _value((since.days * 86400 + since.seconds) * 10**6 + since.microseconds)
    if isinstance(value, date):
        return _value((value - _EPOCH_DAY).days)
    if isinstance(value, time):
        seconds = (value.hour * 60 + value.minute) * 60 + value.second
        return _value(seconds * 10**6 + value.microsecond)
    if isinstance(value, Decimal):
        sign, digits, _ = value.as_tuple()
        unscaled = int("".join(map(str, digits)))
        return _value(-unscaled if sign else unscaled)
    if isinstance(value, list):
        return b"\x01" + b"".join(b"\x01" + _value(item) for item in value) + b"\x00"
    if isinstance(value, dict):
        return b"\x01" + b"".join(map(_value, value.values()))
    if isinstance(value, tuple):  # pyarrow gives the entries of a map as pairs
        return b"\x01" + b"".join(map(_value, value))
    raise TypeError(f"{type(value).__name__} has no canonical bytes")


def _float(value: float) -> bytes:
    if value != value:  # noqa: PLR0124 - only NaN differs from itself
        return b"\xff" * 8
    (bits,) = struct.unpack(">Q", struct.pack(">d", value))
    flipped = bits ^ 0xFFFFFFFFFFFFFFFF if bits >> 63 else bits | 1 << 63
    return int(flipped).to_bytes(8, "big")


def source(
    view: View,
    since: int | None,
    until: int | None,
    *,
    made: bool = False,
    wide: bool = False,
    order: bool = False,
) -> str:
    """Return a query of the source rows in a time range, both ends included, under plain names.

    Columns: `k0`..., `ts`; with `made` the created time, if the view has one; with `wide` the
    requested features `f0`...; with `order` the canonical keys `c0`...
    """
    columns = [f"{identifier(key.name)} AS k{i}" for i, key in enumerate(view.keys)]
    columns.append(f"{_time(view.timestamp)} AS ts")
    if made and view.created is not None:
        columns.append(f"{_time(view.created)} AS made")
    if wide:
        columns += [f"{identifier(c.name)} AS f{i}" for i, (c, _) in enumerate(view.features)]
    if order:
        columns += [f"{key} AS c{i}" for i, key in enumerate(canonical_keys(view.order))]
    return (
        f"SELECT {', '.join(columns)} FROM {view.scan} WHERE {within(view.timestamp, since, until)}"
    )


def _time(column: Column) -> str:
    return micros(identifier(column.name), column.type.id)


def _keys(view: View) -> list[str]:
    return [f"k{i}" for i in range(len(view.keys))]


def _selected(prefix: str, names: Iterable[str]) -> str:
    return "".join(f"{prefix}.{name}, " for name in names)


def winners(view: View, since: int | None, until: int | None, *, as_known: bool) -> str:
    """Return the query that finds each spine row's event time: keys and times only.

    Spine: `i`, `t` and `k0`...; result: those and `ts`, for rows that have a usable value.
    With `as_known`, a source row counts from when it was both due and known, and what it then
    supersedes is decided by a running maximum.
    """
    keys = _keys(view)
    equal = "".join(f"s.{key} = f.{key} AND " for key in keys)
    fresh = f" WHERE s.t - f.ts <= {view.ttl}" if view.ttl else ""
    if as_known and view.created is not None:
        partition = f"PARTITION BY {', '.join(keys)} " if keys else ""
        rows = source(view, since, until, made=True)
        history = (
            f"SELECT {''.join(f'{key}, ' for key in keys)}greatest(ts, made) AS seen, "
            f"max(ts) OVER ({partition}ORDER BY greatest(ts, made)) AS ts "
            f"FROM ({rows}) WHERE made IS NOT NULL AND ts IS NOT NULL"
        )
        at = "seen"
    else:
        history = source(view, since, until)
        at = "ts"
    return (
        f"SELECT s.i, s.t, {_selected('s', keys)}f.ts FROM spine AS s "
        f"ASOF JOIN ({history}) AS f ON {equal}s.t >= f.{at}{fresh}"
    )


def values(view: View, since: int | None, until: int | None, *, as_known: bool, ties: bool) -> str:
    """Return the query that fetches the winners' features: `i`, `f0`...

    A row of `won` comes once for each source row with its keys and event time; with `ties` only
    the greatest in the total order is kept, at the price of reading every column of that order.
    """
    known = as_known and view.created is not None
    rows = source(view, since, until, made=ties or known, wide=True, order=ties)
    equal = "".join(f"w.{key} = f.{key} AND " for key in _keys(view))
    usable = " AND f.made <= w.t" if known else ""
    features = [f"f{i}" for i in range(len(view.features))]
    joined = f"FROM won AS w JOIN ({rows}) AS f ON {equal}w.ts = f.ts{usable}"
    if not ties:
        return f"SELECT w.i, {_selected('f', features).rstrip(', ')} {joined}"
    made = ["f.made"] if view.created is not None else []
    canonical = [f"f.c{i}" for i in range(len(canonical_keys(view.order)))]
    by = ", ".join(f"{key} DESC NULLS LAST" for key in [*made, *canonical]) or "1"
    return (
        f"SELECT i, {', '.join(features)} FROM (SELECT w.i, {_selected('f', features)}"
        f"row_number() OVER (PARTITION BY w.i ORDER BY {by}) AS place {joined}) WHERE place = 1"
    )


def newest(view: View, since: int | None, until: int | None, *, known_by: int | None) -> str:
    """Return the query of each key's greatest row in the total order, nulls in no key.

    Columns: the join keys, features, event time and created time under the source's own names
    or those that `view.features` gives.
    """
    rows = source(view, since, until, made=True, wide=True, order=True)
    where = [f"k{i} IS NOT NULL" for i in range(len(view.keys))]
    where.append("ts IS NOT NULL")
    if known_by is not None and view.created is not None:
        where.append(f"made <= {known_by}")
    made = ["made"] if view.created is not None else []
    canonical = [f"c{i}" for i in range(len(canonical_keys(view.order)))]
    by = ", ".join(f"{key} DESC NULLS LAST" for key in ["ts", *made, *canonical])
    partition = f"PARTITION BY {', '.join(_keys(view))} " if view.keys else ""
    return (
        f"SELECT {_named(view)} FROM (SELECT *, row_number() OVER ({partition}ORDER BY {by}) "
        f"AS place FROM ({rows}) WHERE {' AND '.join(where)}) WHERE place = 1"
    )


def everything(view: View, since: int | None, until: int | None) -> str:
    """Return the query of all rows of a source within a time range, both ends included."""
    return f"SELECT {_named(view)} FROM ({source(view, since, until, made=True, wide=True)})"


def _named(view: View) -> str:
    names = {key.name: f"k{i}" for i, key in enumerate(view.keys)}
    for i, (_, name) in enumerate(view.features):
        names.setdefault(name, f"f{i}")
    names.setdefault(view.timestamp.name, "make_timestamptz(ts)")
    if view.created is not None:
        names.setdefault(view.created.name, "make_timestamptz(made)")
    return ", ".join(f"{value} AS {identifier(name)}" for name, value in names.items())
