"""The fast way to NumPy, lists and JSON says what the slow one through Arrow says."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steadfeast import Store
from steadfeast.featurestore.definitions.bundle import Bundle
from steadfeast.featurestore.definitions.plan import Output, ServicePlan, StoredView
from steadfeast.featurestore.errors import CorruptRowError, EntityRowsError
from steadfeast.featurestore.rows.layout import NO_TIME, usable
from steadfeast.featurestore.server.feast_json import STATUSES, answer
from steadfeast.featurestore.serving.features import settled
from steadfeast.featurestore.serving.reader import Reader

BASE = 1_700_000_000_000_000
STAMP = pa.timestamp("us", tz="UTC")
NOW = datetime.now(UTC)
TYPES = {
    "count": (Int64, pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "small": (Int32, pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "rate": (Float64, pa.float64(), st.floats()),
    "short": (Float32, pa.float32(), st.floats(width=32)),
    "other": (Float64, pa.float64(), st.floats()),
    "flag": (Bool, pa.bool_(), st.booleans()),
    "note": (String, pa.string(), st.text(max_size=3)),
    "name": (String, pa.string(), st.text(max_size=3)),
}
SLOW = {"path": (Array(Int64), pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=3))}


def _view(name, entity, key, types, ttl):
    source = FileSource(path="none.parquet", timestamp_field="ts")
    schema = [Field(name=entity.join_key, dtype=key)]
    schema += [Field(name=n, dtype=t) for n, (t, _, _) in types.items()]
    return FeatureView(name=name, entities=[entity], schema=schema, source=source, ttl=ttl)


DRIVER = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
TRIP = Entity(name="trip", join_keys=["trip"], value_type=ValueType.INT64)
VIEWS = (
    _view("drivers", DRIVER, String, TYPES | SLOW, timedelta(microseconds=3)),
    _view("trips", TRIP, Int64, {"rate": TYPES["rate"], "small": TYPES["small"]}, timedelta(0)),
)
KEYS = {"drivers": ("driver", pa.string()), "trips": ("trip", pa.int64())}


def _bundle(chosen):
    """Return a service of `(view, feature)` pairs."""
    stored, outputs = [], []
    for view in VIEWS:
        key, kind = KEYS[view.name]
        types = TYPES | SLOW if view.name == "drivers" else {n: TYPES[n] for n in ("rate", "small")}
        mine = {f: types[f][1] for name, f in chosen if name == view.name}
        if mine:
            ttl = view.ttl // timedelta(microseconds=1)
            stored.append(StoredView(view, view.name, {key: key}, {key: kind}, mine, ttl))
        outputs += [
            Output(name, f, f"{name}__{f}", types[f][1], {})
            for name, f in chosen
            if name == view.name
        ]
    plan = ServicePlan("service", stored, (), ())
    plan.outputs = tuple(outputs)
    return Bundle(plan, (), SimpleNamespace(sha256="00" * 32))


def _columns(types, n):
    values = {
        name: st.lists(st.none() | v, min_size=n, max_size=n) for name, (_, _, v) in types.items()
    }
    return st.fixed_dictionaries(values)


def _drawn(online, data):
    """Store rows of both views, some of them missing; return a service of some features."""
    online.store.teardown(online.config, VIEWS, [])
    names = {"driver": list("abc"), "trip": [1, -2, 2**63 - 1]}
    for view, types in (
        (VIEWS[0], TYPES | SLOW),
        (VIEWS[1], {"rate": TYPES["rate"], "small": TYPES["small"]}),
    ):
        there = data.draw(st.integers(0, 3))
        columns = data.draw(_columns(types, there))
        times = data.draw(st.lists(st.integers(BASE, BASE + 5), min_size=there, max_size=there))
        key, kind = KEYS[view.name]
        table = {n: pa.array(columns[n], types[n][1]) for n in types}
        table[key] = pa.array(names[key][:there], kind)
        table["event_timestamp"] = pa.array(times, pa.int64()).cast(STAMP)
        online.store.write_batch(online.config, view, pa.table(table))
    every = [("drivers", n) for n in TYPES] + [("trips", "rate"), ("trips", "small")]
    if data.draw(st.booleans()):
        every.append(("drivers", "path"))
    return _bundle(data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True)))


def _asked(data, least=1):
    return [
        {
            "driver": data.draw(st.sampled_from("abcd")),
            "trip": data.draw(st.sampled_from([1, -2, 9])),
        }
        for _ in range(data.draw(st.integers(least, 5)))
    ]


@pytest.mark.parametrize("online", ["sqlite"], indirect=True)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_answers_made_together_are_what_each_would_be_by_itself(online, data):
    bundle = _drawn(online, data)
    readers = [Reader(online.store, online.config, bundle) for _ in range(2)]
    answers, tables, times = [], [], []
    for _ in range(data.draw(st.integers(1, 6))):
        rows, at = _asked(data, least=0), BASE + data.draw(st.integers(-1, 9))
        columns = {name: [row[name] for row in rows] for name in bundle.plan.keys}
        typed = {name: pa.array(column, bundle.plan.keys[name]) for name, column in columns.items()}
        form = data.draw(st.sampled_from([columns, pa.table(typed)]))
        reader = data.draw(st.sampled_from(readers))
        alone = reader.read(form, at)
        tables.append(alone.table)
        times.append(alone.event_times)
        answers.append(reader.read(form, at))
        if data.draw(st.booleans()):
            answers[-1].table  # noqa: B018 - an answer somebody has made columns of
    packed = [answer.packed is not None for answer in answers]
    (got,) = settled(answers)
    assert got.members == list(range(len(answers)))
    assert repr(got.table.to_pydict()) == repr(pa.concat_tables(tables).to_pydict())
    assert got.table.schema == tables[0].schema
    for view, column in got.event_times.items():
        assert column.to_pylist() == [time for one in times for time in one[view].to_pylist()]
    assert [answer.packed is not None for answer in answers] == packed


@pytest.mark.parametrize("online", ["sqlite"], indirect=True)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_numpy_lists_and_json_say_what_arrow_says(online, data):
    bundle, rows = _drawn(online, data), _asked(data)
    reader = Reader(online.store, online.config, bundle)
    at = BASE + data.draw(st.integers(-1, 9))
    columns = {name: [row[name] for row in rows] for name in bundle.plan.keys}
    types = {name: pa.array(values, bundle.plan.keys[name]) for name, values in columns.items()}
    by_arrow = reader.read(rows, at)
    table, statuses, event_times = by_arrow.table, by_arrow.statuses, by_arrow.event_times
    for given_ in (rows, columns, pa.table(types)):
        got = reader.read(given_, at)
        assert reader.decoders is None or got.packed is not None
        arrays, tally, body = got.to_numpy(), got.tally(), answer(bundle.plan, got, full_names=True)
        assert list(arrays) == list(got.features)
        assert statuses.keys() == arrays.keys()
        lists = got.to_dict()
        assert repr(lists) == repr(table.to_pydict())
        for name, array in arrays.items():
            values = table[name].to_pylist()
            expected = table[name].to_numpy(zero_copy_only=False)
            if None in values and any(abs(v) > 2**53 for v in values if type(v) is int):
                expected = np.array(values, dtype=object)  # no float holds them beside a null
            assert array.dtype == expected.dtype
            assert repr(array.tolist()) == repr(expected.tolist())
        expected = sum(np.bincount(codes, minlength=5) for codes in statuses.values())
        assert tally.tolist() == expected.tolist()
        # By hand from Arrow: what Feast's JSON is.
        content = json.loads(body)
        assert content["metadata"]["feature_names"] == [*columns, *got.features]
        for result, (name, values) in zip(content["results"], columns.items(), strict=False):
            assert result["values"] == values, name
        for name, result in zip(got.features, content["results"][len(columns) :], strict=True):
            view = name.split("__")[0]
            shown = [_shown(value) for value in table[name].to_pylist()]
            assert repr(result["values"]) == repr(shown)
            assert result["statuses"] == [STATUSES[code] for code in statuses[name]]
            moments = [
                "1970-01-01T00:00:00Z" if t is None else t for t in event_times[view].to_pylist()
            ]
            assert [_moment(text) for text in result["event_timestamps"]] == [
                _moment(t) for t in moments
            ]


def _shown(value):
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _moment(time):
    return datetime.fromisoformat(time) if isinstance(time, str) else time


@pytest.mark.parametrize("online", ["sqlite"], indirect=True)
def test_errors_come_with_the_request(online):
    online.store.update(online.config, [], VIEWS, [], [], False)
    reader = Reader(online.store, online.config, _bundle([("trips", "rate")]))
    for wrong in ([{"trip": "x"}], [{"trip": 2**63}], {"trip": [1.5]}, [{}], {"tri": [1]}):
        with pytest.raises(EntityRowsError, match="'trip'"):
            reader.read(wrong, BASE)
    assert reader.read({"trip": [None, 1]}, BASE).to_numpy()["trips__rate"].shape == (2,)
    assert reader.read([], BASE).to_numpy()["trips__rate"].shape == (0,)
    table = {"trip": [1], "event_timestamp": pa.array([NOW], STAMP), "rate": [1.0], "small": [1]}
    online.store.write_batch(online.config, VIEWS[1], pa.table(table))
    get = type(online.store)._get

    def damaged(*arguments):
        return [row and row[:-1] + bytes([row[-1] ^ 1]) for row in get(online.store, *arguments)]

    online.store._get = damaged
    with pytest.raises(CorruptRowError, match=r"'trips'.*checksum"):
        reader.read([{"trip": 1}], BASE)


@given(
    event=st.integers(-(2**62), 2**62),
    ttl=st.integers(0, 2**70),
    at=st.integers(-(2**62), 2**62),
)
def test_the_ttl_rule_is_the_same_for_one_time_and_for_many(event, ttl, at):
    expected = event <= at and (ttl == 0 or at - event <= ttl)
    assert bool(usable(event, ttl, at)) == expected
    assert usable(np.array([event, NO_TIME]), ttl, at)[0] == expected


@pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")
def test_many_requests_wait_together(shop):
    shop.write([{"user_id": n, "spend": float(n), "at": NOW, "written": NOW} for n in range(9)], [])

    async def ask():
        return await asyncio.gather(
            *(store.online_features_async("small", [{"user_id": n}]) for n in range(9))
        )

    with Store.open(shop.config) as store:
        store.materialize(NOW)
        answers = asyncio.run(ask())
    assert [got.to_dict()["spend"] for got in answers] == [[float(n)] for n in range(9)]
