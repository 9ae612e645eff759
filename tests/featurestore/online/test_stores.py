"""What the stores read back: types, ages, layouts, erasure, damage and absence."""

import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import redis
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    String,
    UnixTimestamp,
)

from steadfeast.featurestore.errors import (
    CorruptRowError,
    InvalidBatchError,
    InvalidKeysError,
    NotFoundError,
    StoreUnavailableError,
    UnsupportedTypeError,
)
from steadfeast.featurestore.online import RedisOnlineStore, SQLiteOnlineStore
from steadfeast.featurestore.online.batches import space_of
from steadfeast.featurestore.online.keys import KeyCodec, key_hash

STAMP = pa.timestamp("us", tz="UTC")
NOW = datetime.now(UTC).replace(microsecond=123456)
driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
trip = Entity(name="trip", join_keys=["trip"], value_type=ValueType.INT64)


def _view(fields, name="trips", ttl=timedelta(0), entities=(driver,), **keys):
    schema = [Field(name=n, dtype=t) for n, t in (keys or {"driver": String}).items()]
    return FeatureView(
        name=name,
        entities=list(entities),
        schema=schema + [Field(name=n, dtype=t) for n, t in fields.items()],
        source=FileSource(path="trips.parquet", timestamp_field="ts"),
        ttl=ttl,
    )


def _batch(keys, times=NOW, created=None, **columns):
    times = times if isinstance(times, list) else [times] * len(keys)
    made = {} if created is None else {"created_timestamp": pa.array(created, STAMP)}
    return pa.table({"driver": keys, "event_timestamp": pa.array(times, STAMP), **made, **columns})


def _read(online, view, keys, *names):
    read = online.store.read_batch(online.config, view, pa.table({"driver": keys}), names)
    return read, read.values.to_pydict()


EVERY = {
    "i32": (Int32, pa.array([-(2**31), None, 7], pa.int32())),
    "i64": (Int64, pa.array([2**63 - 1, None, 2**53 + 1])),
    "f32": (Float32, pa.array([0.1, None, float("nan")], pa.float32())),
    "f64": (Float64, pa.array([-0.0, None, float("inf")])),
    "yes": (Bool, pa.array([True, None, False])),
    "text": (String, pa.array(["ünïcode\0", None, ""])),
    "raw": (Bytes, pa.array([b"\xff\0", None, b""])),
    "when": (UnixTimestamp, pa.array([NOW, None, datetime(1901, 2, 3, tzinfo=UTC)], STAMP)),
    "ints": (Array(Int64), pa.array([[1, None, 2**62], None, []], pa.list_(pa.int64()))),
    "texts": (Array(String), pa.array([["a", None, ""], None, []], pa.list_(pa.string()))),
    "flags": (Array(Bool), pa.array([[True, False], None, [None]], pa.list_(pa.bool_()))),
    "moments": (Array(UnixTimestamp), pa.array([[NOW], None, []], pa.list_(STAMP))),
    "doc": (Json, pa.array(['{"a": 1}', None, "[]"], pa.large_string())),
    "tags": (Map, pa.array([[("a", "b")], None, []], pa.map_(pa.string(), pa.string()))),
}


def test_every_type_comes_back_bit_for_bit(online):
    view = _view({name: t for name, (t, _) in EVERY.items()})
    columns = {name: values for name, (_, values) in EVERY.items()}
    created = [NOW, None, NOW]
    batch = _batch(["a", "b", "c"], [NOW, NOW - timedelta(days=9), NOW], created, **columns)
    assert online.store.write_batch(online.config, view, batch) == 3
    keys = ["c", "zz", "a", None, "b", "c"]
    read, _ = _read(online, view, keys, *EVERY)
    places = [2, None, 0, None, 1, 2]
    for name, (_, values) in EVERY.items():
        column = read.values[name].combine_chunks()
        assert column.type == values.type
        expected = [None if i is None else values[i].as_py() for i in places]
        assert repr(column.to_pylist()) == repr(expected)
    assert read.found.tolist() == [True, False, True, False, True, True]
    assert read.event_times.type == read.created_times.type == STAMP
    times = [batch["event_timestamp"][i].as_py() if i is not None else None for i in places]
    assert read.event_times.to_pylist() == times
    assert read.created_times.to_pylist() == [NOW, None, NOW, None, None, NOW]
    assert read.absent == {}
    [scanned] = online.store.scan(online.config, view)
    ordered = pa.table(scanned).sort_by("driver")
    for name in EVERY:
        assert repr(ordered[name].to_pylist()) == repr(columns[name].to_pylist())


def test_sixty_four_threads_read_what_they_wrote_bit_for_bit(online):
    view = _view({name: t for name, (t, _) in EVERY.items()})
    columns = {name: values for name, (_, values) in EVERY.items()}
    start = threading.Barrier(64)

    def work(number):
        keys = [f"{number}-{i}" for i in range(3)]
        start.wait()
        online.store.write_batch(online.config, view, _batch(keys, **columns))
        read, _ = _read(online, view, keys, *EVERY)
        return [repr(read.values[name].to_pylist()) for name in EVERY]

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(work, range(64)))
    assert answers == [[repr(values.to_pylist()) for values in columns.values()]] * 64


_READ = """
import json, sys
import pyarrow as pa
from steadfeast.featurestore.online import RedisOnlineStore, SQLiteOnlineStore
import feast.repo_config
given = json.loads(sys.stdin.read())
config = feast.repo_config.RepoConfig(**given["config"])
view = feast.FeatureView.from_proto(
    feast.protos.feast.core.FeatureView_pb2.FeatureView.FromString(bytes.fromhex(given["view"]))
)
sqlite = "SQLite" in given["config"]["online_store"]["type"]
store = SQLiteOnlineStore() if sqlite else RedisOnlineStore()
read = store.read_batch(config, view, pa.table({"driver": given["keys"]}), given["names"])
print(json.dumps([repr(read.values[name].to_pylist()) for name in given["names"]]))
store.release()
"""


def test_other_processes_read_the_same_bits(online):
    view = _view({name: t for name, (t, _) in EVERY.items()})
    columns = {name: values for name, (_, values) in EVERY.items()}
    online.store.write_batch(online.config, view, _batch(["a", "b", "c"], **columns))
    given = {
        "config": {
            "project": online.config.project,
            "provider": "local",
            "registry": "none.db",
            "online_store": online.options,
            "entity_key_serialization_version": 3,
        },
        "view": view.to_proto().SerializeToString().hex(),
        "keys": ["a", "b", "c"],
        "names": list(EVERY),
    }
    readers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _READ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [json.loads(reader.communicate(json.dumps(given))[0]) for reader in readers]
    assert answers == [[repr(values.to_pylist()) for values in columns.values()]] * 2


def test_many_keys_at_once_and_none(online):
    view = _view({"x": Int64})
    keys = [f"driver {i}" for i in range(3000)]
    assert online.store.write_batch(online.config, view, _batch(keys, x=range(3000))) == 3000
    order = np.random.default_rng(1).permutation(3000)
    _, values = _read(online, view, [keys[i] for i in order], "x")
    assert values["x"] == order.tolist()
    read, values = _read(online, view, pa.array([], pa.string()), "x")
    assert (values, read.found.tolist()) == ({"x": []}, [])
    assert sum(batch.num_rows for batch in online.store.scan(online.config, view)) == 3000


def test_views_and_projects_do_not_see_each_other(online):
    one, two = _view({"x": Int64}), _view({"x": Int64}, name="trips:2")
    online.store.write_batch(online.config, one, _batch(["a"], x=[1]))
    online.store.write_batch(online.config, two, _batch(["a"], x=[2]))
    elsewhere = online.config.model_copy(update={"project": online.config.project + "0"})
    assert _read(online, one, ["a"], "x")[1] == {"x": [1]}
    assert _read(online, two, ["a"], "x")[1] == {"x": [2]}
    other = online._replace(config=elsewhere)
    assert not _read(other, one, ["a"], "x")[0].found.any()
    online.store.update(online.config, [two], [one], [], [], False)
    assert _read(online, one, ["a"], "x")[1] == {"x": [1]}
    assert not _read(online, two, ["a"], "x")[0].found.any()


def test_composite_keys_are_typed_and_never_run_together(online):
    view = _view({"x": Int64}, entities=(driver, trip), driver=String, trip=Int64)
    keys = {"driver": ["a", "a1", "", "1"], "trip": [11, 1, 0, 1]}
    times = pa.array([NOW] * 4, STAMP)
    batch = pa.table({**keys, "event_timestamp": times, "x": [1, 2, 3, 4]})
    online.store.write_batch(online.config, view, batch)
    asked = pa.table({"trip": pa.array([1, 11, 1], pa.int8()), "driver": ["1", "a", "a"]})
    read = online.store.read_batch(online.config, view, asked, ["x"])
    assert read.values["x"].to_pylist() == [4, 1, None]
    [scanned] = online.store.scan(online.config, view)
    assert sorted(zip(*(scanned[k].to_pylist() for k in ("driver", "trip", "x")), strict=True)) == [
        ("", 0, 3),
        ("1", 1, 4),
        ("a", 11, 1),
        ("a1", 1, 2),
    ]


def test_an_older_layout_is_read_by_its_own_and_yields_at_the_same_times(online):
    old = _view({"x": Int32, "gone": String})
    new = _view({"x": Int64, "more": Float64})
    online.store.update(online.config, [], [old], [], [], False)
    online.store.write_batch(
        online.config, old, _batch(["a", "b"], x=pa.array([1, 2], pa.int32()), gone=["p", "q"])
    )
    online.store.update(online.config, [], [new], [], [], False)
    online.store.write_batch(online.config, new, _batch(["b", "c"], x=[20, 30], more=[0.5, 0.7]))
    for store in (online.store, type(online.store)()):  # one that knows no layouts yet, too
        fresh = online._replace(store=store)
        read, values = _read(fresh, new, ["c", "a", "none", "b"], "more", "x")
        assert values == {"more": [0.7, None, None, 0.5], "x": [30, 1, None, 20]}
        assert read.values.schema.field("x").type == pa.int64()
        assert read.absent["more"].tolist() == [False, True, False, False]
        assert set(read.absent) == {"more"}
        assert sum(batch.num_rows for batch in store.scan(online.config, new)) == 3
        store.release()
    # Applied again, the old layout wins ties; newer rows still stay.
    online.store.update(online.config, [], [old], [], [], False)
    back = _batch(["b", "c"], [NOW, NOW - timedelta(seconds=1)], x=[2, 3], gone=["q", "r"])
    assert online.store.write_batch(online.config, old, back) == 1
    assert _read(online, old, ["b", "c"], "x")[1] == {"x": [2, 30]}
    # A value of the newer layout that does not fit the older type is reported, not cut.
    big = _batch(["c"], NOW + timedelta(seconds=1), x=[2**40], more=[0.0])
    online.store.write_batch(online.config, new, big)
    with pytest.raises(UnsupportedTypeError, match="'x'"):
        _read(online, old, ["c"], "x")


def test_a_view_whose_keys_change_does_not_see_its_old_rows(online):
    before = _view({"x": Int64}, driver=String)
    after = _view({"x": Int64}, entities=(trip,), trip=Int64)
    online.store.write_batch(online.config, before, _batch(["a"], x=[1]))
    read = online.store.read_batch(online.config, after, pa.table({"trip": [97]}), ["x"])
    assert not read.found.any()
    assert list(online.store.scan(online.config, after)) == []


def test_an_erased_entity_is_gone_and_the_others_stay(online):
    view = _view({"x": Int64})
    online.store.write_batch(online.config, view, _batch(["a", "b"], x=[1, 2]))
    erase = online.store.delete_entities
    assert erase(online.config, view, pa.table({"driver": ["a", "a", "none", None]})) == 1
    assert erase(online.config, view, pa.table({"driver": ["a"]})) == 0
    read, _ = _read(online, view, ["a", "b"], "x")
    assert read.found.tolist() == [False, True]


def test_erasing_by_some_of_the_keys_takes_every_row_that_has_them(online):
    view = _view({"x": Int64}, entities=(driver, trip), driver=String, trip=Int64)
    keys = {"driver": ["a", "a", "b", "ab"], "trip": [1, 2, 1, 1]}
    batch = pa.table({**keys, "event_timestamp": pa.array([NOW] * 4, STAMP), "x": [1, 2, 3, 4]})
    online.store.write_batch(online.config, view, batch)
    erase = online.store.erase
    assert erase(online.config, view, pa.table({"driver": ["a", "none"]})) == 2
    assert erase(online.config, view, pa.table({"driver": ["b"], "trip": ["1"]})) == 1
    with pytest.raises(InvalidKeysError, match="'trip'"):
        erase(online.config, view, pa.table({"trip": ["x"]}))
    [left] = online.store.scan(online.config, view)
    assert left["x"].to_pylist() == [4]


def _tamper(online, view, key, change):
    """Change the stored row of `key` behind the store's back."""
    space = space_of(online.config, view)
    if online.kind == "sqlite":
        connection = sqlite3.connect(online.options["path"])
        [(row,)] = connection.execute(f'SELECT row FROM "rows:{space}" WHERE key = ?', (key,))
        changed = (change(row), key)
        connection.execute(f'UPDATE "rows:{space}" SET row = ? WHERE key = ?', changed)
        connection.commit()
        connection.close()
        return
    name = b"steadfeast:%b:{%b}" % (space.encode(), key)
    with redis.Redis.from_url(online.options["url"]) as client:
        client.set(name, change(client.get(name)))


def test_a_damaged_row_is_reported_by_its_keys_hash_and_never_served(online):
    view = _view({"x": Int64})
    online.store.write_batch(online.config, view, _batch(["secret", "b"], x=[1, 2]))
    [key] = KeyCodec("trips", {"driver": pa.string()}).encode(pa.table({"driver": ["secret"]}))
    for change in (
        lambda row: row[:-9] + bytes([row[-9] ^ 4]) + row[-8:],
        lambda row: row[:-1],
        lambda _: b"",
    ):
        _tamper(online, view, key, change)
        with pytest.raises(CorruptRowError, match=f"'trips'.*{key_hash(key)}.*checksum") as caught:
            _read(online, view, ["b", "secret"], "x")
        assert "secret" not in str(caught.value)
        assert caught.value.key_hash == key_hash(key)
        with pytest.raises(CorruptRowError, match=key_hash(key)):
            list(online.store.scan(online.config, view))
        assert _read(online, view, ["b"], "x")[1] == {"x": [2]}
        assert online.store.write_batch(online.config, view, _batch(["secret"], x=[1])) == 1
        assert _read(online, view, ["secret"], "x")[1] == {"x": [1]}


def test_a_row_of_an_unknown_layout_is_reported(online):
    old, view = _view({"y": Int64}), _view({"x": Int64})
    online.store.write_batch(online.config, old, _batch(["a"], y=[1]))
    space = space_of(online.config, view)
    if online.kind == "sqlite":
        connection = sqlite3.connect(online.options["path"])
        connection.execute("DELETE FROM steadfeast_layouts")
        connection.commit()
        connection.close()
    else:
        with redis.Redis.from_url(online.options["url"]) as client:
            client.delete(f"steadfeast:{space}:layouts")
    stranger = online._replace(store=type(online.store)())
    with pytest.raises(CorruptRowError, match="layout that is not known"):
        _read(stranger, view, ["a"], "x")
    stranger.store.release()


def test_what_does_not_fit_is_refused_by_name(online):
    view = _view({"x": Int64})
    write = online.store.write_batch
    with pytest.raises(InvalidBatchError, match="'x': is missing"):
        write(online.config, view, _batch(["a"]))
    with pytest.raises(InvalidBatchError, match="'event_timestamp': is null in 1 rows"):
        write(online.config, view, _batch(["a"], [None], x=[1]))
    wrong = pa.table({"driver": ["a"], "event_timestamp": [1], "x": [1]})
    with pytest.raises(InvalidBatchError, match=r"'event_timestamp'.*int64, not a timestamp"):
        write(online.config, view, wrong)
    with pytest.raises(InvalidKeysError, match="'driver' is missing"):
        write(online.config, view, _batch(["a"], x=[1]).drop_columns(["driver"]))
    with pytest.raises(UnsupportedTypeError, match="'x'"):
        write(online.config, view, _batch(["a"], x=["text"]))
    with pytest.raises(NotFoundError, match="'trips' 'y'; did you mean x"):
        _read(online, view, ["a"], "y")
    assert not _read(online, view, ["a"], "x")[0].found.any()


def _key(name):
    return EntityKey(join_keys=["driver"], entity_values=[Value(string_val=name)])


def test_feasts_own_reads_and_writes_keep_types_and_apply_the_ttl(online):
    view = _view({name: t for name, (t, _) in EVERY.items()}, ttl=timedelta(hours=1))
    columns = {name: values for name, (_, values) in EVERY.items()}
    ages = [timedelta(minutes=59), timedelta(minutes=1), timedelta(minutes=61)]
    batch = _batch(["a", "b", "c"], [datetime.now(UTC) - age for age in ages], **columns)
    online.store.write_batch(online.config, view, batch)
    answer = online.store.online_read(
        online.config, view, [_key(name) for name in ("c", "a", "none", "b")], list(EVERY)
    )
    times = [when and when.replace(tzinfo=UTC) for when, _ in answer]
    stored = batch["event_timestamp"].to_pylist()
    assert times == [stored[2], stored[0], None, stored[1]]
    expired, full, nothing, empty = (values for _, values in answer)
    assert nothing is None
    assert set(expired) == set(full) == set(empty) == set(EVERY)
    for values in (expired, empty):
        assert all(value.WhichOneof("val") is None for value in values.values())
    assert full["i64"].int64_val == 2**63 - 1
    assert full["f32"].float_val == np.float32(0.1)
    assert repr(full["f64"].double_val) == "-0.0"
    assert full["when"].unix_timestamp_val == int(NOW.timestamp())
    assert full["texts"].string_list_val.val == ["a", "", ""]
    assert full["tags"].map_val.val["a"].string_val == "b"
    # What Feast read can be written by Feast, under another name, and reads the same.
    copy = _view({name: t for name, (t, _) in EVERY.items()}, name="copy")
    seen = []
    online.store.online_write_batch(
        online.config, copy, [(_key("a"), full, NOW.replace(tzinfo=None), None)], seen.append
    )
    assert seen == [1]
    [(when, again)] = online.store.online_read(online.config, copy, [_key("a")])
    assert when == NOW
    assert again == full
    assert online.store.online_read(online.config, copy, []) == []
    online.store.online_write_batch(online.config, copy, [], None)


REDIS = pytest.param("redis", marks=pytest.mark.service("redis-server"))


@pytest.mark.parametrize("online", [REDIS], indirect=True)
def test_a_redis_that_is_down_is_an_error_within_the_deadline(free_port, online):
    options = {
        **online.options,
        "url": f"redis://user:hidden@127.0.0.1:{free_port()}/1",
        "password": "hidden",
        "timeout_seconds": 0.2,
    }
    config = online.config.model_copy(deep=True)
    config.online_config = options
    config._online_store = None
    view, store = _view({"x": Int64}), RedisOnlineStore()
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"redis 127.0.0.1:\d+/1") as caught:
        store.read_batch(config, view, pa.table({"driver": ["a"]}), ["x"])
    assert time.monotonic() - began < 3
    assert "hidden" not in str(caught.value) + repr(config.online_store)
    store.release()


@pytest.mark.parametrize("cluster", [False, True])
def test_a_redis_that_accepts_and_never_answers_is_an_error_within_the_deadline(
    configured, cluster
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {
            "type": "steadfeast.RedisOnlineStore",
            "url": f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
            "timeout_seconds": 0.2,
            "retries": 1,
            "cluster": cluster,
        }
        config, view, store = configured(options), _view({"x": Int64}), RedisOnlineStore()
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"TimeoutError|ClusterException"):
            store.read_batch(config, view, pa.table({"driver": ["a"]}), ["x"])
        with pytest.raises(StoreUnavailableError):
            store.write_batch(config, view, _batch(["a"], x=[1]))
        assert time.monotonic() - began < 6
        store.release()


@pytest.mark.parametrize("online", [REDIS], indirect=True)
def test_a_redis_that_is_stopped_and_comes_back_is_used_again(
    online, start_redis, free_port, configured
):
    view, port = _view({"x": Int64}), free_port()
    options = {**online.options, "url": f"redis://127.0.0.1:{port}/0", "timeout_seconds": 0.5}
    config = configured({**options, "retries": 0})
    first = start_redis(port)
    online.store.write_batch(config, view, _batch(["a"], x=[1]))
    first.terminate()
    first.wait()
    keys = pa.table({"driver": ["a"]})
    with pytest.raises(StoreUnavailableError, match=f"redis 127.0.0.1:{port}/0"):
        online.store.read_batch(config, view, keys, ["x"])
    second = start_redis(port)
    try:
        assert not online.store.read_batch(config, view, keys, ["x"]).found.any()
        assert online.store.write_batch(config, view, _batch(["a"], x=[1])) == 1
    finally:
        second.terminate()
        second.wait()


@pytest.mark.service("redis-server")
def test_the_password_may_come_from_the_environment_and_is_never_said(
    start_redis, free_port, configured, monkeypatch
):
    view, port, store = _view({"x": Int64}), free_port(), RedisOnlineStore()
    server = start_redis(port)
    try:
        with redis.Redis(port=port) as client:
            client.config_set("requirepass", "hidden")
        url, kind = f"redis://127.0.0.1:{port}/0", "steadfeast.RedisOnlineStore"
        config = configured({"type": kind, "url": url, "retries": 0})
        monkeypatch.setenv("STEADFEAST_REDIS_PASSWORD", "hidden")
        assert store.write_batch(config, view, _batch(["a"], x=[1])) == 1
        read = store.read_batch(config, view, pa.table({"driver": ["a"]}), ["x"])
        assert read.found.tolist() == [True]
        monkeypatch.setenv("STEADFEAST_REDIS_PASSWORD", "hidden, but wrong")
        stranger = RedisOnlineStore()
        with pytest.raises(StoreUnavailableError) as caught:
            stranger.read_batch(config, view, pa.table({"driver": ["a"]}), ["x"])
        chain = (caught.value, caught.value.__cause__)
        said = "".join(traceback.format_exception(caught.value)) + repr(chain) + repr(config)
        assert "hidden" not in said
        stranger.release()
    finally:
        store.release()
        server.terminate()
        server.wait()


@pytest.mark.service("redis-server")
def test_tls_with_certificates_on_both_sides(service_binary, free_port, configured, tmp_path):
    def openssl(*arguments):
        subprocess.run([service_binary("openssl"), *arguments], check=True, capture_output=True)

    def path(name):
        return str(tmp_path / name)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ours")
    usage = ("-addext", "keyUsage=critical,keyCertSign")
    openssl(*new, *usage, "-x509", "-days", "2", "-keyout", path("ca.key"), "-out", path("ca.crt"))
    for side in ("server", "client"):
        openssl(*new, "-keyout", path(f"{side}.key"), "-out", path(f"{side}.csr"))
        (tmp_path / f"{side}.ext").write_text("subjectAltName=IP:127.0.0.1")
        signing = ("-CA", path("ca.crt"), "-CAkey", path("ca.key"), "-CAcreateserial", "-days", "2")
        files = ("-in", path(f"{side}.csr"), "-out", path(f"{side}.crt"))
        openssl("x509", "-req", *files, *signing, "-extfile", path(f"{side}.ext"))
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", path("server.crt"))
    tls += ("--tls-key-file", path("server.key"), "--tls-ca-cert-file", path("ca.crt"))
    server = subprocess.Popen(
        [service_binary("redis-server"), "--port", "0", *tls, "--requirepass", "hidden"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    options = {
        "type": "steadfeast.RedisOnlineStore",
        "url": f"rediss://127.0.0.1:{port}/0",
        "password": "hidden",
        "ca_file": path("ca.crt"),
        "cert_file": path("client.crt"),
        "key_file": path("client.key"),
        "timeout_seconds": 1,
    }
    view, store = _view({"x": Int64}), RedisOnlineStore()
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                config = configured(options)
                assert store.write_batch(config, view, _batch(["a"], x=[1])) == 1
                break
            except StoreUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        found = store.read_batch(config, view, pa.table({"driver": ["a"]}), ["x"]).found
        assert found.tolist() == [True]
        for missing in ("cert_file", "ca_file", "password"):
            less = {name: value for name, value in options.items() if name != missing}
            if missing == "cert_file":
                del less["key_file"]
            stranger = RedisOnlineStore()
            refused = configured({**less, "retries": 0})
            with pytest.raises(StoreUnavailableError) as caught:
                stranger.read_batch(refused, view, pa.table({"driver": ["a"]}), ["x"])
            assert "hidden" not in str(caught.value)
            stranger.release()
    finally:
        store.release()
        server.terminate()
        server.wait()


@pytest.mark.parametrize("online", ["sqlite"], indirect=True)
def test_a_file_that_is_no_database_or_is_locked_is_an_error(tmp_path, online):
    view = _view({"x": Int64})
    online.store.write_batch(online.config, view, _batch(["a"], x=[1]))
    config = online.config.model_copy(deep=True)
    config.online_config = {**online.options, "timeout_seconds": 0.1}
    config._online_store = None
    blocker = sqlite3.connect(online.options["path"], isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    hasty = SQLiteOnlineStore()
    with pytest.raises(StoreUnavailableError, match="locked"):
        hasty.write_batch(config, view, _batch(["a"], x=[2]))
    assert _read(online._replace(store=hasty, config=config), view, ["a"], "x")[1] == {"x": [1]}
    blocker.execute("ROLLBACK")
    blocker.close()
    assert hasty.write_batch(config, view, _batch(["a"], x=[2])) == 1
    hasty.release()
    (tmp_path / "text.db").write_text("this is no database, however long one looks at it" * 99)
    config.online_config = {**online.options, "path": str(tmp_path / "text.db")}
    config._online_store = None
    with pytest.raises(StoreUnavailableError, match=re.escape("text.db is not available")):
        hasty.read_batch(config, view, pa.table({"driver": ["a"]}), ["x"])
    hasty.release()


@pytest.mark.parametrize("online", ["sqlite"], indirect=True)
def test_many_open_a_new_file_at_once(tmp_path, online):
    view, started = _view({"x": Int64}), threading.Barrier(8)

    def write(i):
        store = SQLiteOnlineStore()
        started.wait()
        try:
            return store.write_batch(config, view, _batch([f"driver {i}"], x=[i]))
        finally:
            store.release()

    for round_ in range(5):
        config = online.config.model_copy(deep=True)
        config.online_config = {**online.options, "path": str(tmp_path / f"{round_}.db")}
        config._online_store = None
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(write, range(8))) == [1] * 8
