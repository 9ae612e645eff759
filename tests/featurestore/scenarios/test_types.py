"""Every Feast type through every path: what the source holds is what each of them gives.

One view has a feature of each type; the oracle is the Python value that was put into the source,
written down here. Maps are the dictionaries that they are, in the order of their keys.
"""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import json
import math

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feast import types as ft
from feast.protos.feast.serving import ServingService_pb2 as pb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steadfeast.featurestore.errors import RequestError
from steadfeast.featurestore.server.feast_grpc import _add, _response
from steadfeast.featurestore.server.feast_json import answer
from steadfeast.featurestore.server.grpc_server import Features
from steadfeast.featurestore.server.http_app import Query, read_service
from steadfeast.featurestore.server.metrics import Figures
from steadfeast.featurestore.tables.hashing import content_sha256
from steadfeast.featurestore.training.pins import over_pins
from steadfeast.featurestore.training.training_set import features_at
from steadfeast.protos.steadfeast.v1 import features_pb2
from support.tiny_repo import one_view, tiny_repo

UTC = dt.UTC
AT = dt.datetime(2024, 1, 1, tzinfo=UTC)
LATER = AT + dt.timedelta(hours=1)
US = pa.timestamp("us", tz="UTC")
MAP = pa.map_(pa.string(), pa.string())
NULL = None
FIRST, LAST = (
    dt.datetime(1700, 1, 1, tzinfo=UTC),
    dt.datetime(2200, 12, 31, 23, 59, 59, 999999, UTC),
)
NAN = float("nan")

# Expression -> Arrow type of the source, and what rows hold: ordinary, least, most or odd, empty.
SCALARS = {
    "Bytes": (pa.binary(), [b"a", b"\x00", b"\xff" * 40, b""]),
    "PdfBytes": (pa.binary(), [b"%PDF", b"\x00", b"\xff", b""]),
    "ImageBytes": (pa.binary(), [b"PNG", b"\x00", b"\xff", b""]),
    "String": (pa.string(), ["a", "\x00", "\U0010ffff'\"\\", ""]),
    "Bool": (pa.bool_(), [True, False, True, False]),
    "Int32": (pa.int32(), [1, -(2**31), 2**31 - 1, 0]),
    "Int64": (pa.int64(), [2**53 + 1, -(2**63), 2**63 - 1, 0]),
    "Float32": (pa.float32(), [0.5, -math.inf, NAN, -0.0]),
    "Float64": (pa.float64(), [5e-324, 1.7976931348623157e308, NAN, -0.0]),
    "UnixTimestamp": (US, [AT, FIRST, LAST, dt.datetime(1970, 1, 1, tzinfo=UTC)]),
    "ZonedTimestamp": (US, [AT, FIRST, LAST, dt.datetime(1970, 1, 1, tzinfo=UTC)]),
    "Map": (MAP, [[("b", "2"), ("a", "1")], [("", "")], [("a", NULL), ("z", "\x00")], []]),
    "Json": (pa.string(), ['{"a": [1, null]}', "null", '"\\u0000"', "{}"]),
    "Uuid": (pa.string(), ["6b1f9f0e-0c3b-4b3c-9d2e-0a1b2c3d4e5f"] * 4),
    "TimeUuid": (pa.string(), ["6b1f9f0e-0c3b-11ee-9d2e-0a1b2c3d4e5f"] * 4),
    "Decimal": (pa.string(), ["1.50", "-9999999999.999999999", "1E+30", "0"]),
}
NESTED = {
    "Struct({'a': Int64, 'b': String, 'c': Array(Float64)})": (
        pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.list_(pa.float64()))]),
        [
            {"a": 2**53 + 1, "b": "x", "c": [0.5, NULL]},
            {"a": NULL, "b": NULL, "c": NULL},
            {"a": -(2**63), "b": "", "c": []},
            {"a": 0, "b": "\x00", "c": [NAN]},
        ],
    ),
    "Struct({'a': Struct({'b': Bytes, 'm': Map})})": (
        pa.struct([("a", pa.struct([("b", pa.binary()), ("m", MAP)]))]),
        [
            {"a": {"b": b"x", "m": [("k", "v")]}},
            {"a": NULL},
            {"a": {"b": NULL, "m": NULL}},
            {"a": {"b": b"", "m": []}},
        ],
    ),
    "Array(Struct({'t': UnixTimestamp, 'n': Int32}))": (
        pa.list_(pa.struct([("t", US), ("n", pa.int32())])),
        [[{"t": AT, "n": 1}], [{"t": NULL, "n": NULL}, NULL], [{"t": LAST, "n": 2**31 - 1}], []],
    ),
    "Array(Array(Int64))": (
        pa.list_(pa.list_(pa.int64())),
        [[[1], [2, NULL]], [NULL, []], [[2**63 - 1]], []],
    ),
    "Set(Array(String))": (
        pa.list_(pa.list_(pa.string())),
        [[["a"], ["b", ""]], [NULL], [[]], []],
    ),
    "Array(Array(Array(Bool)))": (
        pa.list_(pa.list_(pa.list_(pa.bool_()))),
        [[[[True], []]], [[NULL]], [[]], []],
    ),
}
_LISTED = [name for name in SCALARS if name != "ZonedTimestamp"]
# Feast's registry has no list of the first two, and no set of the others.
_NO_LIST = {"PdfBytes", "ImageBytes"}
_NO_SET = {*_NO_LIST, "Map", "Json"}


def _lists(name):
    kind, values = SCALARS[name]
    return pa.list_(kind), [values[:2], [values[2], NULL], [values[3]] * 2, []]


TYPES = {
    **SCALARS,
    **{f"Array({name})": _lists(name) for name in _LISTED if name not in _NO_LIST},
    **{f"Set({name})": _lists(name) for name in _LISTED if name not in _NO_SET},
    **NESTED,
}
COLUMNS = {f"f{i}": text for i, text in enumerate(TYPES)}
KEYS = [1, 2, 3, 4, 5]
FRESH = itertools.count(100)


def canonical(value):
    """The value as every path gives it: maps in the order of their keys."""
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):
            return sorted((key, canonical(item)) for key, item in value)
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        return {name: canonical(item) for name, item in value.items()}
    return value


def told(value):
    """A value as text that tells null from NaN, and 0.0 from -0.0; times in one zone."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(told, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {told(item)}' for name, item in sorted(value.items()))}}}"
    return value.astimezone(UTC).isoformat() if isinstance(value, dt.datetime) else repr(value)


def expected(name):
    return [*map(canonical, TYPES[COLUMNS[name]][1]), NULL]


def source():
    columns = {"k": pa.array(KEYS, pa.int64()), "at": pa.array([AT] * len(KEYS), US)}
    for name, text in COLUMNS.items():
        kind, values = TYPES[text]
        columns[name] = pa.array([*values, NULL], kind)
    return pa.table(columns)


SCHEMA = ", ".join(f'Field(name="{name}", dtype={text})' for name, text in COLUMNS.items())


# Of these Feast itself makes messages of what pandas holds; of the others it cannot.
_SIMPLE = ["Bytes", "String", "Bool", "Int32", "Int64", "Float32", "Float64", "UnixTimestamp"]
_PUSHED = {*SCALARS, *(f"{kind}({name})" for kind in ("Array", "Set") for name in _SIMPLE)}
PUSHED = {name: text for name, text in COLUMNS.items() if text in _PUSHED - {"ZonedTimestamp"}}
PUSH = f"""
p = FeatureView(name="pushed", entities=[e], ttl=timedelta(0), schema=[{
    ", ".join(f'Field(name="{name}", dtype={text})' for name, text in PUSHED.items())
}], source=FileSource(name="t", path="data/s.parquet", timestamp_field="at"))
pushed = FeatureService(name="pushed", features=[p])
"""


@pytest.fixture(
    scope="module",
    params=["sqlite", pytest.param("redis", marks=pytest.mark.service("redis-server"))],
)
def store(request, tmp_path_factory):
    folder, online = tmp_path_factory.mktemp("types"), None
    if request.param == "redis":
        port = request.getfixturevalue("redis_port")
        online = {"type": "steadfeast.RedisOnlineStore", "url": f"redis://127.0.0.1:{port}"}
    with tiny_repo(folder, source(), one_view(SCHEMA) + PUSH, online=online) as opened:
        opened.apply()
        opened.materialize(LATER)
        yield opened


@pytest.fixture(scope="module")
def got(store):
    return store.online_features("svc", {"k": KEYS}, request_time=LATER)


def same(table, rows=slice(None)):
    for name, text in COLUMNS.items():
        found = table.column(name).to_pylist()
        assert told(found) == told(expected(name)[rows]), (text, name)


def test_every_type_of_feast_is_here():
    names = {item.name.lower().replace("_", "") for item in ft.PrimitiveFeastType}
    here = {name.lower() for name in SCALARS}
    assert names - here == {"invalid", "scalarmap"}  # which `apply` refuses by name


def test_online(got):
    same(got.table)
    lists = got.to_dict()
    for name in COLUMNS:
        assert told(lists[name]) == told(expected(name))


def test_arrow_ipc_and_parquet(got, tmp_path):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, got.table.schema) as writer:
        writer.write_table(got.table)
    back = pa.ipc.open_stream(sink.getvalue()).read_all()
    same(back)
    pq.write_table(got.table, tmp_path / "t.parquet")
    read = pq.read_table(tmp_path / "t.parquet")
    same(read)
    assert content_sha256(got.table) == content_sha256(back) == content_sha256(read)


def test_grpc(store):
    sink = pa.BufferOutputStream()
    entities = pa.table({"k": KEYS})
    with pa.ipc.new_stream(sink, entities.schema) as writer:
        writer.write_table(entities)
    request = features_pb2.GetFeaturesRequest(service="svc", entities=sink.getvalue().to_pybytes())
    request.request_time.FromDatetime(LATER)
    response = Features(store, Figures())._answer(request, "r1", entities)
    same(pa.ipc.open_stream(response.features).read_all())


def test_feasts_grpc(store):
    """Each type as Feast's own SDK gives it; what its messages cannot hold is refused by name."""
    query = Query(entities={"k": KEYS}, feature_service="svc")
    plan, got = read_service(store, Figures(), "grpc", query, "feast")
    kinds = {feature.name: feature.dtype.to_value_type() for feature in plan.views[0].view.features}
    for name in PLAIN:
        response = pb.GetOnlineFeaturesResponse()
        _add(response, name, got.table.column(name), kinds[name], [1] * got.rows, [])
        [ours] = response.results
        right = store.feast.get_online_features([f"view:{name}"], [{"k": key} for key in KEYS])
        place = list(right.proto.metadata.feature_names.val).index(name)
        assert list(map(str, ours.values)) == list(map(str, right.proto.results[place].values)), (
            name
        )
    with pytest.raises(RequestError, match="Feast's messages cannot hold"):
        _response(plan, got, full_names=False)


def as_json(value, kind):
    """What JSON has for a value: seconds, base64, names of what is no number, dictionaries."""
    if value is None:
        shown = None
    elif pa.types.is_floating(kind) and not math.isfinite(value):
        shown = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    elif pa.types.is_timestamp(kind):
        shown = math.floor(value.timestamp())
    elif pa.types.is_binary(kind):
        shown = base64.b64encode(value).decode()
    elif pa.types.is_struct(kind):
        shown = {field.name: as_json(value[field.name], field.type) for field in kind}
    elif pa.types.is_map(kind):
        shown = {key: as_json(item, kind.item_type) for key, item in value}
    elif pa.types.is_list(kind):
        shown = [as_json(item, kind.value_type) for item in value]
    else:
        shown = value
    return shown


def test_json(store, got):
    body = json.loads(answer(store.bundle("svc").plan, got, full_names=False))
    names = body["metadata"]["feature_names"]
    for name, text in COLUMNS.items():
        shown = body["results"][names.index(name)]["values"]
        wanted = [as_json(value, TYPES[text][0]) for value in expected(name)]
        assert told(shown) == told(wanted), text


def test_training_replay_log_and_audit(store, got):
    built = store.training_set({"k": KEYS, "event_timestamp": [LATER] * len(KEYS)}, "svc")
    same(built.table)
    same(store.replay(built.path / "manifest.json"))
    ids = [str(key) for key in KEYS]
    store.served.append("svc", got, request_ids=ids, request_time=LATER)
    store.served.flush()
    files = store.served.files("svc", AT, LATER + dt.timedelta(hours=1))
    logged = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    same(logged.filter(pc.is_in(logged["request_id"], pa.array(ids))))  # others asked the edges
    report = store.audit("svc")
    assert {check.invariant: (check.mismatches, check.void) for check in report.checks} == {
        name: ({}, "") for name in ("I1", "I2", "I9", "I11")
    }


# Feast's messages hold whole seconds, no zones, and nothing for a null in a list.
_OWN = {"UnixTimestamp", "ZonedTimestamp"}
PLAIN = {name: text for name, text in COLUMNS.items() if text in SCALARS and text not in _OWN}


def test_feast_api_reads_and_pushes(store):
    names = [f"view:{name}" for name in PLAIN]
    read = store.feast.get_online_features(names, [{"k": key} for key in KEYS]).to_dict()
    for name, text in PLAIN.items():
        wanted = expected(name)
        if text == "Map":
            wanted = [None if value is None else dict(value) for value in wanted]
        if text not in ("Map", "Json", "Uuid", "TimeUuid", "Decimal"):
            assert told(read[name]) == told(wanted), text
    frame = source().slice(0, 1).to_pandas()
    for name, text in COLUMNS.items():  # as a user has them
        if text == "Map":
            frame[name] = [dict(value) for value in frame[name]]
    frame["at"] += LATER - AT
    store.feast.write_to_online_store("pushed", frame[["k", "at", *PUSHED]])
    after = store.online_features("pushed", {"k": KEYS[:1]}, request_time=LATER)
    for name, text in PUSHED.items():
        [found], [wanted] = after.table[name].to_pylist(), expected(name)[:1]
        if text.startswith("Set("):  # Feast makes Python's sets of them, which have no order
            wanted = sorted(set(wanted))
        assert told(found) == told(wanted), text


def _values(kind):  # noqa: PLR0911 - one per kind
    """Values of an Arrow type, extremes and empty ones among them; None anywhere inside."""
    if pa.types.is_map(kind):
        return st.dictionaries(
            st.text(max_size=3), st.none() | st.text(max_size=3), max_size=3
        ).map(lambda pairs: list(pairs.items()))
    if pa.types.is_struct(kind):
        parts = {field.name: st.none() | _values(field.type) for field in kind}
        return st.fixed_dictionaries(parts)
    if pa.types.is_list(kind):
        return st.lists(st.none() | _values(kind.value_type), max_size=3)
    if pa.types.is_timestamp(kind):
        bounds = FIRST.replace(tzinfo=None), LAST.replace(tzinfo=None)
        return st.datetimes(*bounds, timezones=st.just(UTC))
    if pa.types.is_integer(kind):
        return st.integers(-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1)
    if pa.types.is_floating(kind):
        return st.floats(width=kind.bit_width)
    if pa.types.is_boolean(kind):
        return st.booleans()
    return st.binary(max_size=4) if pa.types.is_binary(kind) else st.text(max_size=4)


ROWS = st.fixed_dictionaries(
    {name: st.none() | _values(TYPES[t][0]) for name, t in COLUMNS.items()}
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(row=ROWS)
def test_any_value_is_the_same_online_and_in_training(store, row):
    """A row written to the source and online: both sides give what was written, to the bit."""
    key, kinds = next(FRESH), {name: TYPES[text][0] for name, text in COLUMNS.items()}
    columns = {"k": pa.array([key], pa.int64()), "at": pa.array([AT], US)}
    columns |= {name: pa.array([row[name]], kind) for name, kind in kinds.items()}
    table = pa.table(columns)
    store.write_online("view", table)
    folder = store.repo / "data"
    pq.write_table(table, folder / "one.parquet")
    online = store.online_features("svc", {"k": [key]}, request_time=LATER).table
    bundle = store.bundle("svc")
    (view,) = bundle.plan.views
    frame = pa.table({"k": [key], "event_timestamp": pa.array([LATER], US)})
    plan = over_pins(bundle.plan, {view.name: folder / "one.parquet"})
    offline = features_at(store.feast, plan, bundle.executors, frame)
    for name, text in COLUMNS.items():
        wanted = told([canonical(row[name])])
        assert told(online[name].to_pylist()) == wanted, text
        assert told(offline[name].to_pylist()) == wanted, text
    assert content_sha256(online.select(list(COLUMNS))) == content_sha256(offline)
