"""Values become one type by the same rules wherever they come from, as Feast reads them."""

import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.featurestore.errors import UnsupportedTypeError
from steadfeast.featurestore.tables.casting import array_of, cast_array, instants
from steadfeast.featurestore.tables.columns import TIMESTAMP

NEW_YEAR = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
SECONDS = 1_704_067_200  # of NEW_YEAR, by `date -u -d 2024-01-01 +%s`
MAP = pa.map_(pa.string(), pa.string())


@pytest.mark.parametrize(
    "given_as",
    [
        pa.array([SECONDS, None]),
        pa.array([SECONDS, None], pa.int32()),
        pa.array([SECONDS, None], pa.uint64()),
        pa.array([float(SECONDS), float("nan")]),
        pa.array(["2024-01-01T00:00:00", None]),
        pa.array(["2024-01-01T01:00:00+01:00", None]),
        pa.array(["2024-01-01", None]).dictionary_encode(),
        pa.array([dt.date(2024, 1, 1), None]),
        pa.array([SECONDS * 10**9 + 999, None]).cast(pa.timestamp("ns")),
        pa.array([SECONDS, None]).cast(pa.timestamp("s", "America/New_York")),
    ],
    ids=lambda array: str(array.type),
)
def test_whatever_a_time_is_written_as_it_is_that_time(given_as):
    assert cast_array(given_as, TIMESTAMP, "t").to_pylist() == [NEW_YEAR, None]
    nested = pa.ListArray.from_arrays([0, 1, 2], given_as)
    assert cast_array(nested, pa.list_(TIMESTAMP), "t").to_pylist() == [[NEW_YEAR], [None]]
    deep = pa.StructArray.from_arrays([nested], names=["a"])
    kind = pa.struct([("a", pa.list_(TIMESTAMP))])
    assert cast_array(deep, kind, "t").to_pylist() == [{"a": [NEW_YEAR]}, {"a": [None]}]


@given(st.integers(-(10**11), 10**11))
def test_whole_numbers_are_the_seconds_that_feast_reads(seconds):
    theirs = python_values_to_proto_values([seconds], ValueType.UNIX_TIMESTAMP)
    ours = cast_array(pa.array([seconds]), TIMESTAMP, "t").cast(pa.int64())
    assert ours.to_pylist() == [theirs[0].unix_timestamp_val * 10**6]
    assert array_of([seconds], TIMESTAMP, "t").cast(pa.int64()) == ours


@pytest.mark.parametrize(
    "values",
    [
        pa.array([SECONDS + 0.5]),
        pa.array([2**62]),
        pa.array([True]),
        pa.array(["yesterday"]),
        pa.array([dt.time(1)]),
    ],
    ids=str,
)
def test_what_is_no_time_is_refused_by_name(values):
    with pytest.raises(UnsupportedTypeError, match="'seen'"):
        cast_array(values, TIMESTAMP, "seen")


def test_python_values_are_never_cut():
    assert array_of([1.0, None], pa.int64(), "n").to_pylist() == [1, None]
    for value, kind in ((1.5, pa.int64()), (2**40, pa.int32()), ("x", pa.int64())):
        with pytest.raises(UnsupportedTypeError, match="'n'"):
            array_of([value], kind, "n")


entries = st.lists(st.tuples(st.text(max_size=2), st.none() | st.text(max_size=2)), max_size=4)


@given(st.lists(st.none() | entries, max_size=5), st.integers(0, 5))
def test_a_map_is_kept_in_the_order_of_its_keys_as_the_dictionary_it_is(rows, start):
    expected = [
        row and sorted(dict(row).items(), key=lambda pair: pair[0].encode()) for row in rows
    ]
    maps = pa.array(rows, MAP).slice(start)
    found = cast_array(maps, MAP, "m")
    found.validate(full=True)
    assert found.to_pylist() == expected[start:]
    lists = cast_array(pa.array([rows], pa.list_(MAP)), pa.list_(MAP), "m")
    assert lists.to_pylist() == [expected]


def test_times_of_an_entity_frame_have_one_meaning():
    nanos = pd.to_datetime([SECONDS + 0.1234567], unit="s").astype("datetime64[ns]")
    floored = NEW_YEAR.replace(microsecond=123456)
    for column in (pa.array(nanos), pa.array(["2024-01-01 00:00:00.123456"])):
        assert instants(pa.chunked_array([column])).to_pylist() == [floored]
    before = pa.chunked_array([pa.array([-1], pa.int64()).cast(pa.timestamp("ns"))])
    assert instants(before).cast(pa.int64()).to_pylist() == [-1]
    for column in (pa.array([SECONDS]), pa.array([np.float64(SECONDS)])):
        with pytest.raises(pa.ArrowInvalid, match=r'unit="s", utc=True'):
            instants(pa.chunked_array([column]))
