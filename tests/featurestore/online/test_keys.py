"""Entity keys: two keys have the same bytes when, and only when, they are the same key."""

import datetime as dt

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.featurestore.errors import InvalidKeysError
from steadfeast.featurestore.online.keys import KeyCodec, key_hash

TYPES = {
    "name": pa.string(),
    "place": pa.string(),
    "number": pa.int64(),
    "raw": pa.binary(),
    "day": pa.timestamp("us", tz="UTC"),
}
FIRST = dt.datetime(1900, 1, 1)  # noqa: DTZ001 - Hypothesis adds the zone
codec = KeyCodec("view", TYPES)
keys = st.fixed_dictionaries(
    {
        "name": st.text("a\0b", max_size=3),
        "place": st.text("a\0b", max_size=3),
        "number": st.integers(-2, 2) | st.integers(-(2**63), 2**63 - 1),
        "raw": st.binary(max_size=3),
        "day": st.datetimes(FIRST, timezones=st.just(dt.UTC)),
    }
)


def _table(rows, types=TYPES):
    return pa.table({name: pa.array([row[name] for row in rows], t) for name, t in types.items()})


@given(st.lists(keys, min_size=1, max_size=6))
def test_bytes_are_equal_exactly_when_keys_are_and_decode(rows):
    encoded = codec.encode(_table(rows))
    for a, first in zip(rows, encoded, strict=True):
        for b, second in zip(rows, encoded, strict=True):
            assert (a == b) == (first == second)
    decoded = pa.table(codec.decode(encoded)).select(list(TYPES))
    assert decoded.to_pylist() == rows


@given(st.lists(keys, min_size=1, max_size=4), st.data())
def test_a_null_in_any_part_is_no_key(rows, data):
    whole = codec.encode(_table(rows))
    empty = data.draw(st.integers(0, len(rows) - 1))
    rows[empty] = rows[empty] | {data.draw(st.sampled_from(sorted(TYPES))): None}
    encoded = codec.encode(_table(rows))
    assert encoded[empty] is None
    assert encoded[:empty] + encoded[empty + 1 :] == whole[:empty] + whole[empty + 1 :]


def test_the_order_of_join_keys_is_irrelevant_and_their_names_and_types_are_not():
    def one(**columns):
        types = {name: array.type for name, array in columns.items()}
        return KeyCodec("view", types).encode(pa.table(columns))[0]

    five, text = pa.array([5]), pa.array(["5"])
    assert one(a=five, b=text) == one(b=text, a=five)
    assert len({one(a=five), one(b=five), one(a=five.cast(pa.int32())), one(a=text)}) == 4
    assert one(a=five, b=text) != one(a=text, b=five)


def test_values_are_cast_to_the_declared_type_or_refused():
    number = KeyCodec("view", {"k": pa.int64()})
    assert number.encode(pa.table({"k": pa.array([7], pa.int8())})) == number.encode(
        pa.table({"k": pa.chunked_array([[7]])})
    )
    with pytest.raises(InvalidKeysError, match=r"'view'.*'k'"):
        number.encode(pa.table({"k": ["seven"]}))
    with pytest.raises(InvalidKeysError, match="'k' is missing; given are other"):
        number.encode(pa.table({"other": [1]}))
    with pytest.raises(InvalidKeysError, match="cannot be a key"):
        KeyCodec("view", {"k": pa.float64()})


def test_no_keys_and_no_rows():
    assert KeyCodec("view", {}).encode(pa.table({"x": [1, 2]}))[0] is not None
    assert codec.encode(_table([])) == []
    assert len(key_hash(b"key")) == 16
