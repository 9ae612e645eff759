"""Packed rows give back what went in, bit for bit, and notice when they are damaged."""

import datetime as dt
from decimal import Decimal
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.featurestore.errors import UnsupportedTypeError
from steadfeast.featurestore.rows.layout import (
    NO_TIME,
    Layout,
    damaged,
    decode,
    encode,
    layout_id,
    layout_of,
    order_of,
    usable,
)
from steadfeast.featurestore.tables.casting import cast_array

UTC = dt.UTC
micros = st.integers(-(2**63) + 1, 2**63 - 1)
# Hypothesis takes naive bounds and adds the zone.
BOUNDS = dt.datetime(1678, 1, 1), dt.datetime(2262, 1, 1)  # noqa: DTZ001
stamps = st.datetimes(*BOUNDS, timezones=st.just(UTC))
SCALARS = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.string(): st.text(max_size=8),
    pa.binary(): st.binary(max_size=8),
    pa.timestamp("us", tz="UTC"): stamps,
    pa.date32(): st.dates(),
    pa.time64("us"): st.times(),
    pa.decimal128(9, 2): st.integers(-(10**8), 10**8).map(lambda n: Decimal(n) / 100),
}


def _typed(t, values):
    return st.tuples(st.just(t), st.just(values))


def _entries(pairs):
    """The entries of a map as they are kept: in the order of their keys."""
    return sorted(pairs.items(), key=lambda pair: pair[0].encode())


def _wider(inner):
    """A list, struct or map around a type."""
    return st.one_of(
        inner.map(lambda i: (pa.list_(i[0]), st.lists(st.none() | i[1], max_size=3))),
        st.tuples(inner, inner).map(
            lambda p: (
                pa.struct([("a", p[0][0]), ("b", p[1][0])]),
                st.fixed_dictionaries({"a": st.none() | p[0][1], "b": st.none() | p[1][1]}),
            )
        ),
        inner.map(
            lambda i: (
                pa.map_(pa.string(), i[0]),
                st.dictionaries(st.text(max_size=3), st.none() | i[1], max_size=3).map(_entries),
            )
        ),
    )


types = st.recursive(
    st.sampled_from(list(SCALARS.items())).flatmap(lambda item: _typed(*item)), _wider, max_leaves=3
)


@st.composite
def tables(draw):
    rows = draw(st.integers(0, 6))
    columns = {}
    for i in range(draw(st.integers(1, 5))):
        t, values = draw(types)
        items = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[f"c{i}"] = pa.array(items, t)
    return pa.table(columns)


def _shown(array):
    """Text that tells null from NaN and 0.0 from -0.0."""
    return repr(array.to_pylist())


def _times(table, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(-(2**62), 2**62, table.num_rows)


@given(tables(), st.integers(0, 2**16))
def test_what_is_packed_comes_back(table, seed):
    layout = layout_of(table.schema)
    event, created = _times(table, seed), _times(table, seed + 1)
    rows = encode(layout, table, event, created)
    assert damaged(rows) == []
    back = decode(layout, rows, table.column_names)
    for name, array in zip(table.column_names, back.arrays, strict=True):
        array.validate(full=True)
        assert array.type == table.schema.field(name).type
        assert array.null_count == table[name].null_count
        assert _shown(array) == _shown(table[name])
    assert back.event_us.tolist() == event.tolist()
    assert back.created_us.tolist() == created.tolist()
    assert [order_of(row) for row in rows] == list(zip(event, created, strict=True))


@given(tables(), st.data())
def test_a_slice_packs_like_its_copy_and_rows_decode_in_any_company(table, data):
    layout = layout_of(table.schema)
    zeros = np.zeros(table.num_rows, np.int64)
    rows = encode(layout, table, zeros, zeros)
    start = data.draw(st.integers(0, table.num_rows))
    part = table.slice(start)
    assert encode(layout, part, zeros[start:], zeros[start:]) == rows[start:]
    picks = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5)) if rows else []
    chosen = data.draw(st.lists(st.sampled_from(table.column_names), unique=True))
    back = decode(layout, [rows[i] for i in picks] + [layout.null_row], chosen)
    for name, array in zip(chosen, back.arrays, strict=True):
        expected = [table[name][i].as_py() for i in picks] + [None]
        assert repr(array.to_pylist()) == repr(expected)


@given(tables().filter(lambda table: table.num_rows > 0), st.data())
def test_any_flipped_bit_is_noticed(table, data):
    zeros = np.zeros(table.num_rows, np.int64)
    rows = encode(layout_of(table.schema), table, zeros, zeros)
    broken = data.draw(st.integers(0, len(rows) - 1))
    bit = data.draw(st.integers(0, 8 * len(rows[broken]) - 1))
    number = int.from_bytes(rows[broken], "little") ^ (1 << bit)
    rows[broken] = number.to_bytes(len(rows[broken]), "little")
    assert damaged(rows) == [broken]


def test_a_cut_row_is_noticed():
    layout = layout_of(pa.schema([("x", pa.string())]))
    [row] = encode(layout, pa.table({"x": ["text"]}), np.array([1]), np.array([2]))
    assert damaged([row, row[:-1], row + b"\0", b""]) == [1, 2, 3]
    assert crc32(row[:-4]).to_bytes(4, "little") == row[-4:]


@given(st.lists(st.tuples(micros, micros | st.just(NO_TIME)), min_size=2, max_size=6))
def test_bytes_of_rows_compare_as_their_times_do(times):
    layout = layout_of(pa.schema([("x", pa.int8())]))
    event, created = map(np.array, zip(*times, strict=True))
    rows = encode(layout, pa.table({"x": pa.array([0] * len(times), pa.int8())}), event, created)
    by_bytes = sorted(range(len(rows)), key=lambda i: (rows[i][:16], i))
    assert by_bytes == sorted(range(len(rows)), key=lambda i: (times[i], i))


def test_a_layout_is_its_names_and_types():
    a = pa.schema([("x", pa.int64()), ("y", pa.string())])
    assert layout_of(a) == layout_of(pa.schema(reversed(list(a))))
    assert layout_of(a) == layout_of(pa.schema([("x", pa.int64()), ("y", pa.large_string())]))
    others = [
        pa.schema([("x", pa.int32()), ("y", pa.string())]),
        pa.schema([("x", pa.int64()), ("z", pa.string())]),
        pa.schema([("x", pa.int64())]),
        pa.schema([("x", pa.string()), ("y", pa.int64())]),
    ]
    assert len({layout_of(s).id for s in [a, *others]}) == 5
    for schema in [a, *others]:
        assert Layout.deserialize(layout_of(schema).serialize()) == layout_of(schema)
    [row] = encode(layout_of(a), pa.table({"y": ["s"], "x": [1]}), np.array([0]), np.array([0]))
    assert layout_id(row) == layout_of(a).id


def test_every_nan_is_one_nan_and_signed_zeros_differ():
    layout = layout_of(pa.schema([("x", pa.float64())]))
    payloads = np.array([0x7FF8000000000000, 0xFFF8000000000001], np.uint64).view(np.float64)
    values = np.concatenate([payloads, [0.0, -0.0]])
    zeros = np.zeros(4, np.int64)
    first, second, zero, negative = encode(layout, pa.table({"x": values}), zeros, zeros)
    assert first == second
    assert zero != negative


def test_casts_lose_digits_and_nothing_else():
    nanos = pa.array([1_500, -1_500], pa.timestamp("ns"))
    assert cast_array(nanos, pa.timestamp("us", "UTC"), "t").cast(pa.int64()).to_pylist() == [1, -2]
    halves = cast_array(pa.array([0.1]), pa.float32(), "f")
    assert halves[0].as_py() == np.float32(0.1)
    with pytest.raises(UnsupportedTypeError, match=r"'i'.*int64"):
        cast_array(pa.array([2**40]), pa.int32(), "i")
    with pytest.raises(UnsupportedTypeError, match="'n'"):
        layout_of(pa.schema([("n", pa.null())]))


@pytest.mark.parametrize(
    ("age", "ttl", "expected"),
    [
        (9, 10, True),
        (10, 10, True),
        (11, 10, False),
        (10**15, 0, True),
        (-1, 10, False),
        (-1, 0, False),
    ],
)
def test_usable_from_its_time_until_the_ttl_inclusive(age, ttl, expected):
    at = 1_700_000_000_000_000
    assert usable(np.array([at - age]), ttl, at).tolist() == [expected]
    assert usable(np.array([at - age]), ttl, np.array([at])).tolist() == [expected]


@given(st.lists(st.none() | st.fixed_dictionaries({"a": st.none() | st.text(), "b": st.none()})))
def test_a_column_of_dictionaries_is_a_map(rows):
    structs = pa.array(rows, pa.struct([("a", pa.string()), ("b", pa.string())]))
    to = pa.map_(pa.string(), pa.string())
    for start in range(min(3, len(rows) + 1)):
        maps = cast_array(structs.slice(start), to, "m")
        maps.validate(full=True)
        assert maps.type == to
        expected = [row and [("a", row["a"]), ("b", None)] for row in rows[start:]]
        assert maps.to_pylist() == expected
