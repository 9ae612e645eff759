"""Whatever the order, repetition or concurrency of writes, they end in one state."""

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steadfeast.featurestore.tables.total_order import canonical_bytes

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
view = FeatureView(
    name="trips",
    entities=[driver],
    schema=[
        Field(name="driver", dtype=String),
        Field(name="count", dtype=Int64),
        Field(name="rate", dtype=Float64),
        Field(name="note", dtype=String),
    ],
    source=FileSource(path="trips.parquet", timestamp_field="ts"),
    ttl=timedelta(0),
)
FEATURES = ["count", "rate", "note"]
BASE = 1_700_000_000_000_000
rows = st.fixed_dictionaries(
    {
        "driver": st.sampled_from(["a", "b", "c", None]),
        "event_timestamp": st.integers(BASE, BASE + 3),
        "created_timestamp": st.none() | st.integers(BASE, BASE + 2),
        "count": st.none() | st.integers(-1, 1) | st.just(2**63 - 1),
        "rate": st.none() | st.sampled_from([0.0, -0.0, float("nan"), -1.5, 2.5]),
        "note": st.none() | st.sampled_from(["", "x", "xy"]),
    }
)
REDIS = pytest.param("redis", marks=pytest.mark.service("redis-server"))
SLOW = settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _table(batch):
    stamp = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        [
            ("driver", pa.string()),
            ("event_timestamp", stamp),
            ("created_timestamp", stamp),
            ("count", pa.int64()),
            ("rate", pa.float64()),
            ("note", pa.string()),
        ]
    )
    return pa.Table.from_pylist(batch, schema)


def _greatest(batch):
    """The naive answer: per key, the greatest by event time, created time, canonical bytes."""
    best = {}
    for row in batch:
        if row["driver"] is None:
            continue
        created = row["created_timestamp"]
        values = canonical_bytes({name: row[name] for name in FEATURES})
        order = (row["event_timestamp"], -1 if created is None else created, values)
        if row["driver"] not in best or order > best[row["driver"]][0]:
            best[row["driver"]] = (order, row)
    return {key: row for key, (_, row) in best.items()}


def _stored(online):
    micros = pa.timestamp("us", tz="UTC")
    found = {}
    for batch in online.store.scan(online.config, view):
        assert batch.schema.field("event_timestamp").type == micros
        table = pa.table(batch)
        for name in ("event_timestamp", "created_timestamp"):
            table = table.set_column(
                table.column_names.index(name), name, table[name].cast(pa.int64())
            )
        found |= {row["driver"]: row for row in table.to_pylist()}
    return found


def _same(left, right):
    def shown(state):
        return {key: sorted((k, repr(v)) for k, v in row.items()) for key, row in state.items()}

    return shown(left) == shown(right)


@SLOW
@given(history=st.lists(rows, max_size=20), data=st.data())
def test_any_order_and_repetition_ends_in_the_naive_answer(online, history, data):
    online.store.teardown(online.config, [view], [])
    order = data.draw(st.permutations(history))
    order += data.draw(st.lists(st.sampled_from(history), max_size=5)) if history else []
    while order:
        size = data.draw(st.integers(1, len(order)))
        online.store.write_batch(online.config, view, _table(order[:size]))
        order = order[size:]
    assert _same(_stored(online), _greatest(history))
    assert online.store.write_batch(online.config, view, _table(history)) == 0


def test_the_return_value_counts_entities_that_changed(online):
    old = [{"driver": key, "event_timestamp": BASE, "count": 1} for key in ("a", "b", None, "a")]
    write = online.store.write_batch
    assert write(online.config, view, _table(old)) == 2
    assert write(online.config, view, _table(old)) == 0
    new = [{"driver": "a", "event_timestamp": BASE + 1, "count": None}]
    assert write(online.config, view, _table([*old, *new])) == 1
    assert write(online.config, view, _table(old).to_batches()[0]) == 0
    read = online.store.read_batch(
        online.config, view, pa.table({"driver": ["b", "a", "b"]}), ["count"]
    )
    assert read.values["count"].to_pylist() == [1, None, 1]


def _history(seed, size=400):
    pick = random.Random(seed)
    return [
        {
            "driver": pick.choice("abcdefgh"),
            "event_timestamp": BASE + pick.randrange(20),
            "created_timestamp": pick.choice([None, BASE, BASE + 1]),
            "count": pick.choice([None, pick.randrange(9)]),
            "rate": pick.choice([None, float("nan"), pick.random()]),
            "note": pick.choice([None, "x" * pick.randrange(5)]),
        }
        for _ in range(size)
    ]


def test_sixteen_threads_write_one_history_in_their_own_orders(online):
    history = _history(7)
    seen = []

    def write(seed):
        shuffled = random.Random(seed).sample(history, len(history))
        for start in range(0, len(shuffled), 50):
            online.store.write_batch(online.config, view, _table(shuffled[start : start + 50]))
            read = online.store.read_batch(
                online.config, view, pa.table({"driver": ["a"]}), ["count"]
            )
            times = read.event_times.cast(pa.int64()).to_pylist()
            seen.append((seed, times[0]))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    assert _same(_stored(online), _greatest(history))
    for seed in range(16):  # what one thread reads never goes back in time
        mine = [time for owner, time in seen if owner == seed and time is not None]
        assert mine == sorted(mine)


WRITER = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from feast.repo_config import RepoConfig
from steadfeast.featurestore.online import RedisOnlineStore, SQLiteOnlineStore
import test_order as module

seed, kind, project, options = int(sys.argv[2]), *sys.argv[3:6]
config = RepoConfig(project=project, provider="local", registry="none", online_store=json.loads(
    options), entity_key_serialization_version=3)
store = SQLiteOnlineStore() if kind == "sqlite" else RedisOnlineStore()
history = module._history(11)
shuffled = module.random.Random(seed).sample(history, len(history))
for start in range(0, len(shuffled), 40):
    store.write_batch(config, module.view, module._table(shuffled[start : start + 40]))
store.release()
"""


@pytest.mark.parametrize("online", ["sqlite", REDIS], indirect=True)
def test_processes_write_one_history_in_their_own_orders(online, request):
    folder = str(request.path.parent)
    arguments = [online.kind, online.config.project, json.dumps(online.options)]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, folder, str(seed), *arguments])
        for seed in range(2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert _same(_stored(online), _greatest(_history(11)))


@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_tie_in_both_times_are_ordered_by_their_values(online, first):
    same = {"driver": "a", "event_timestamp": BASE, "created_timestamp": None, "count": 1}
    tied = [{**same, "rate": None, "note": "z"}, {**same, "rate": float("nan"), "note": ""}]
    for i in (first, 1 - first):
        online.store.write_batch(online.config, view, _table([tied[i]]))
    assert _same(_stored(online), _greatest(tied))
    assert _stored(online)["a"]["note"] == "z"  # "note" stands before "rate"
