"""What means one thing to training and another to serving works on both sides, or is refused."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast.featurestore.errors import (
    InvalidKeysError,
    RefusedDefinitionError,
    SourceError,
)
from support.tiny_repo import one_view, tiny_repo

AT = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
LATER = AT + dt.timedelta(hours=1)
US = pa.timestamp("us", tz="UTC")
V = 'Field(name="v", dtype=Int64)'


def keyed(kind, dtype):
    """Definitions of a view whose key is declared so."""
    entity = f'e = Entity(name="e", join_keys=["k"], value_type=ValueType.{kind})\n'
    return entity + one_view(f'Field(name="k", dtype={dtype}), {V}')


def table(keys, **more):
    times = pa.array([AT] * len(keys), US)
    return pa.table({"k": keys, "at": times, "v": pa.array(range(len(keys)), pa.int64()), **more})


SAME = {
    "dates as text": (pa.array([dt.date(2024, 1, 1), dt.date(2024, 2, 2)]), "STRING", "String",
                      ["2024-01-01", "2024-02-02"]),
    "whole decimals": (pa.array([Decimal(7), Decimal(-8)], pa.decimal128(9, 0)), "INT64", "Int64",
                       [7, -8]),
    "decimals as text": (pa.array([Decimal("1.50"), Decimal("-2.00")]), "STRING", "String",
                         ["1.50", "-2.00"]),
    "numbers as text": (pa.array([7, 8]), "STRING", "String", ["7", "8"]),
    "floats beside a null": (pa.array([7.0, 8.0]), "INT64", "Int64", [7, 8]),
    "narrow numbers": (pa.array([7, 8], pa.int16()), "INT64", "Int64", [7, 8]),
    "seconds": (pa.array([1_704_067_200, 0]), "UNIX_TIMESTAMP", "UnixTimestamp",
                [AT, dt.datetime(1970, 1, 1, tzinfo=dt.UTC)]),
    "bytes as text": (pa.array([b"a", b"b"]), "STRING", "String", ["a", "b"]),
    "categories": (pa.array(["a", "b"]).dictionary_encode(), "STRING", "String", ["a", "b"]),
    "UUIDs": (pa.array([UUID(int=1).bytes, UUID(int=2).bytes], pa.uuid()), "STRING", "String",
              [str(UUID(int=1)), str(UUID(int=2))]),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_a_key_is_its_declared_type_on_both_sides(case, tmp_path):
    source, kind, dtype, asked = SAME[case]
    with tiny_repo(tmp_path, table(source), keyed(kind, dtype)) as store:
        store.apply()
        store.materialize(LATER)
        online = store.online_features("svc", {"k": asked}, request_time=LATER)
        offline = store.point_in_time("svc", {"k": asked, "event_timestamp": [LATER, LATER]})
        assert online.table["v"].to_pylist() == offline["v"].to_pylist() == [0, 1]
        assert not [check for check in store.audit("svc").checks if check.mismatches]


def test_a_folder_s_name_is_a_text_key_whichever_other_folders_there_are(tmp_path):
    definitions = one_view(f'Field(name="k", dtype=String), {V}', path="data/days")
    entity = 'e = Entity(name="e", join_keys=["k"], value_type=ValueType.STRING)\n'
    for names in (["20002", "10001"], ["20002", "00501"], ["2024-01-01", "x"]):
        folder = tmp_path / names[1]
        for number, name in enumerate(names):
            part = folder / f"data/days/k={name}"
            part.mkdir(parents=True)
            pq.write_table(
                pa.table({"at": pa.array([AT], US), "v": pa.array([number])}), part / "p.parquet"
            )
        with tiny_repo(folder, None, entity + definitions) as store:
            store.apply()
            store.materialize(LATER)
            online = store.online_features("svc", {"k": names}, request_time=LATER)
            offline = store.point_in_time("svc", {"k": names, "event_timestamp": [LATER, LATER]})
            assert online.table["v"].to_pylist() == offline["v"].to_pylist() == [0, 1]


def two_views(one, other, kind):
    return f"""
e2 = Entity(name="e2", join_keys=["k"], value_type=ValueType.{kind})
a = FeatureView(name="a", entities=[e], schema=[{one}], source=FileSource(
    name="s", path="data/s.parquet", timestamp_field="at"))
b = FeatureView(name="b", entities=[e2], schema=[{other}], source=FileSource(
    name="t", path="data/s.parquet", timestamp_field="at", field_mapping={{"v": "w"}}))
svc = FeatureService(name="svc", features=[a, b])
"""


def on_demand(field):
    return (
        one_view(V)
        + f"""
@on_demand_feature_view(sources=[v, RequestSource(name="r", schema=[{field}])],
                        schema=[Field(name="w", dtype=Int64)])
def computed(inputs):
    return inputs[["v"]].rename(columns={{"v": "w"}})
svc = FeatureService(name="svc", features=[v, computed])
"""
    )


REFUSED = {
    "a float key": (keyed("FLOAT", "Float32"), InvalidKeysError, "'k'.*cannot be a key"),
    "a text key of floats": (
        keyed("STRING", "String"), SourceError, "'k': holds DOUBLE.*key of type string"),
    "a feature named as the time": (
        one_view('Field(name="event_timestamp", dtype=UnixTimestamp)'),
        RefusedDefinitionError, "'event_timestamp': has the name of the time"),
    "a type without one Arrow type": (
        one_view('Field(name="v", dtype=ScalarMap)'), RefusedDefinitionError, "'v': is ScalarMap"),
    "a type that the source never holds": (
        one_view('Field(name="v", dtype=Array(Bytes))'), SourceError, "'v': holds int64"),
    "a column of two types": (
        two_views(f'Field(name="k", dtype=Int64), {V}',
                  'Field(name="k", dtype=String), Field(name="w", dtype=Int64)', "STRING"),
        RefusedDefinitionError, "key 'k': is string, but feature view 'a' takes 'k' as int64"),
    "a request field of another type than the key": (
        on_demand('Field(name="k", dtype=String)'),
        RefusedDefinitionError, "request field 'k': is string"),
    "a request field named as the log's own": (
        on_demand('Field(name="contract", dtype=String)'),
        RefusedDefinitionError, "'contract' has the name of a column of our own"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_differ_is_refused_by_name_before_anything_is_stored(case, tmp_path):
    definitions, error, words = REFUSED[case]
    keys = pa.array([1.5, 2.0]) if "float" in case else pa.array([1, 2])
    with tiny_repo(tmp_path, table(keys), one_view(V)) as store:
        if "float" not in case:
            store.apply()
        before = store.feast.registry.proto().SerializeToString()
        (tmp_path / "features.py").write_text(
            (tmp_path / "features.py").read_text().partition("\nv = ")[0] + definitions
        )
        with pytest.raises(error, match=words):
            store.apply()
        store.feast.refresh_registry()
        assert store.feast.registry.proto().SerializeToString() == before


def test_whole_numbers_of_two_widths_are_one_key(tmp_path):
    definitions = two_views(
        f'Field(name="k", dtype=Int64), {V}',
        'Field(name="k", dtype=Int32), Field(name="w", dtype=Int64)',
        "INT32",
    )
    with tiny_repo(tmp_path, table(pa.array([1, 2])), definitions) as store:
        store.apply()
        store.materialize(LATER)
        keys = {"k": [1, 2**40]}  # the second is no key of view b
        online = store.online_features("svc", keys, request_time=LATER).table
        offline = store.point_in_time("svc", {**keys, "event_timestamp": [LATER, LATER]})
        for side in (online, offline):
            assert side.select(["v", "w"]).to_pydict() == {"v": [0, None], "w": [0, None]}


def test_names_that_meet_at_a_double_underscore_stay_apart(tmp_path):
    definitions = """
x = FeatureView(name="a__b", entities=[e], schema=[Field(name="v", dtype=Int64)], source=FileSource(
    name="s", path="data/s.parquet", timestamp_field="at"))
y = FeatureView(name="a", entities=[e], schema=[Field(name="b__v", dtype=Int64)], source=FileSource(
    name="t", path="data/s.parquet", timestamp_field="at", field_mapping={"w": "b__v"}))
svc = FeatureService(name="svc", features=[x, y])
"""
    both = table(pa.array([1, 2]), w=pa.array([10, 20]))
    with tiny_repo(tmp_path, both, definitions) as store:
        store.apply()
        store.materialize(LATER)
        online = store.online_features("svc", {"k": [1, 2]}, request_time=LATER).table
        offline = store.point_in_time("svc", {"k": [1, 2], "event_timestamp": [LATER, LATER]})
        for side in (online, offline):
            assert side.select(["v", "b__v"]).to_pydict() == {"v": [0, 1], "b__v": [10, 20]}


def test_a_feature_with_a_name_of_the_log_s_own_is_called_by_its_view(tmp_path):
    definitions = one_view('Field(name="model", dtype=Int64)')
    source = table(pa.array([1])).rename_columns(["k", "at", "model"])
    with tiny_repo(tmp_path, source, definitions) as store:
        store.apply()
        assert store.bundle("svc").plan.features == ("view__model",)
