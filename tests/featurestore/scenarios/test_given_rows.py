"""Rows as Feast's users give them, or one message that says what would be right."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from steadfeast.featurestore.errors import ConfigError, EntityRowsError, RequestError
from support.tiny_repo import one_view, tiny_repo

AT = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
LATER = AT + dt.timedelta(hours=1)
US = pa.timestamp("us", tz="UTC")
BIG = 2**53 + 1
TIMES = pd.to_datetime([LATER] * 2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    table = pa.table({"k": [1, 2], "at": pa.array([AT, AT], US), "v": pa.array([BIG, None])})
    folder = tmp_path_factory.mktemp("given")
    with tiny_repo(folder, table, one_view('Field(name="v", dtype=Int64)')) as opened:
        opened.apply()
        opened.materialize(LATER)
        yield opened


ACCEPTED = {
    "Arrow": pa.table({"k": [1, 2], "event_timestamp": pa.array([LATER] * 2, US)}),
    "pandas": pd.DataFrame({"k": [1, 2], "event_timestamp": TIMES}),
    "columns": {"k": [1, 2], "event_timestamp": [LATER] * 2},
    "rows": [{"k": key, "event_timestamp": LATER} for key in (1, 2)],
    "SQL": "SELECT unnest([1, 2]) AS k, TIMESTAMPTZ '2024-01-01 01:00:00Z' AS event_timestamp",
    "naive text": {"k": [1, 2], "event_timestamp": ["2024-01-01T01:00:00"] * 2},
    "mixed zones": pd.DataFrame(
        {"k": [1, 2], "event_timestamp": ["2024-01-01T01:00:00", "2024-01-01T03:00:00+02:00"]}
    ),
    "nanoseconds": pd.DataFrame(
        {"k": [1, 2], "event_timestamp": TIMES.as_unit("ns") + pd.Timedelta(999, "ns")}
    ),
    "dates": {"k": [1, 2], "event_timestamp": [dt.date(2024, 1, 2)] * 2},
}  # fmt: skip


@pytest.mark.parametrize("form", ACCEPTED)
def test_an_entity_frame_of_any_form_means_the_same(store, form):
    frame = ACCEPTED[form]
    built = store.training_set(frame, store.feast.get_feature_service("svc"))
    assert built.table["v"].to_pylist() == [BIG, None]
    frames = (pd.DataFrame, pa.Table, str)
    if isinstance(frame, frames):
        theirs = store.feast.get_historical_features(frame, ["view:v"]).to_arrow()
        assert theirs["v"].to_pylist() == [BIG, None]
        assert built.table["event_timestamp"].equals(theirs["event_timestamp"])


def test_an_empty_frame_is_no_error(store):
    empty = pd.DataFrame({"k": [], "event_timestamp": []})
    assert store.training_set(empty, "svc").table.num_rows == 0


TWICE = pd.DataFrame([[1, 2, LATER]], columns=["k", "k", "event_timestamp"])
REFUSED = {
    "seconds": ({"k": [1], "event_timestamp": [1_704_067_200]}, r'unit="s", utc=True'),
    "floats": ({"k": [1], "event_timestamp": [1_704_067_200.5]}, r'unit="s", utc=True'),
    "a name twice": (TWICE, "two columns named 'k'"),
    "mixed types": (
        pd.DataFrame({"k": [1, "a"], "event_timestamp": TIMES}), "'k' has no one Arrow type"),
    "no query": ("SELEC 1", "query failed"),
    "two queries": ("SELECT 1; SELECT 2", "not one query"),
    "nothing": (None, "NoneType"),
    "numbers": ([1, 2], "is a list"),
    "no times": ({"k": [1]}, "'event_timestamp' is missing; there are k"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_entity_frame_is_refused_in_one_line(store, form):
    frame, words = REFUSED[form]
    with pytest.raises(EntityRowsError, match=words) as caught:
        store.training_set(frame, "svc")
    assert "\n" not in str(caught.value)


def test_a_request_of_any_form(store):
    for rows in (
        pd.DataFrame({"k": [1, 2]}),
        pa.table({"k": [1, 2]}).to_batches()[0],
        [{"k": 1}, {"k": 2}],
        {"k": np.array([1, 2])},
    ):
        got = store.online_features("svc", rows, request_time=LATER)
        assert got.table["v"].to_pylist() == [BIG, None]
    for rows in ("SELECT 1", [1, 2], None, 5):
        with pytest.raises(EntityRowsError, match="entity rows: is a"):
            store.online_features("svc", rows)
    with pytest.raises(RequestError, match="define FeatureService"):
        store.online_features(["view:v"], {"k": [1]})


def test_rows_written_online_may_be_a_frame_or_dictionaries(store):
    row = {"k": 9, "at": pd.Timestamp(LATER), "v": 3}
    assert store.write_online("view", [row]) == 1
    assert store.write_online("view", pd.DataFrame([row | {"k": 10}])) == 1
    got = store.online_features("svc", {"k": [9, 10]}, request_time=LATER)
    assert got.table["v"].to_pylist() == [3, 3]


def test_no_way_out_rounds_a_whole_number(store):
    got = store.online_features("svc", {"k": [1, 2]}, request_time=LATER)
    assert got.to_numpy()["v"].tolist() == [BIG, None]
    assert got.table is not None
    assert got.to_numpy()["v"].tolist() == [BIG, None]
    built = store.training_set(ACCEPTED["Arrow"], "svc")
    theirs = store.feast.get_historical_features(ACCEPTED["pandas"], ["view:v"]).to_df()
    for frame in (built.to_pandas(), theirs):
        assert frame["v"][0] == BIG
        assert frame["v"].isna().tolist() == [False, True]


def test_a_registry_that_cannot_be_read_is_named(tmp_path):
    folder = tmp_path
    with tiny_repo(folder, None, "") as store:
        store.apply()
    (folder / "data/registry.db").write_bytes(b"\xff\xfe not a registry")
    with pytest.raises(ConfigError, match=r"data/registry\.db.*cannot be read"):
        tiny_repo(folder, None, "")
