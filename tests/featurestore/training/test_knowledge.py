"""Rows lost to the cut by knowledge time are counted, and event times alone can decide."""

from __future__ import annotations

import datetime as dt
import json

import pyarrow as pa
import pytest

from steadfeast import TrainingSet
from support.tiny_repo import one_view, tiny_repo

HOUR = dt.timedelta(hours=1)
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
US = pa.timestamp("us", tz="UTC")

# key, event time, created, value: key 1 was filled in ten hours later, key 2 was known at once.
ROWS = [(1, 1, 10, 11), (2, 2, 2, 22), (1, 20, 20, 33)]
ASKED = [(1, 5), (2, 5), (1, 12), (1, 21), (3, 30)]


def oracle(*, known):
    """The value of each row asked for, and which of them lost theirs to the cut."""
    found = []
    for key, at in ASKED:
        due = [row for row in ROWS if row[0] == key and row[1] <= at]
        usable = [row for row in due if not known or row[2] <= at]
        best = max(usable, key=lambda row: row[1], default=None)
        found.append((best and best[3], bool(due) and best is None))
    return found


@pytest.fixture
def store(tmp_path):
    key, at, made, value = zip(*ROWS, strict=True)
    table = pa.table(
        {
            "k": pa.array(key, pa.int64()),
            "at": pa.array([START + hour * HOUR for hour in at], US),
            "made": pa.array([START + hour * HOUR for hour in made], US),
            "v": pa.array(value, pa.int64()),
        }
    )
    definitions = one_view('Field(name="v", dtype=Int64)', created="made")
    with tiny_repo(tmp_path, table, definitions) as opened:
        opened.apply()
        opened.materialize(START + 30 * HOUR)
        yield opened


def asked():
    keys, hours = zip(*ASKED, strict=True)
    return {"k": list(keys), "event_timestamp": [START + hour * HOUR for hour in hours]}


def test_a_training_set_says_how_many_rows_the_cut_cost_and_what_to_ask_for(store, caplog):
    built = store.training_set(asked(), "svc")
    wanted = oracle(known=True)
    assert built.table["v"].to_pylist() == [value for value, _ in wanted]
    assert built.manifest.unknown_then == {"view": sum(lost for _, lost in wanted)} == {"view": 1}
    (note,) = built.notes
    assert "1 of 5 rows" in note
    assert "event_time_only=True" in note
    assert note in caplog.text
    assert TrainingSet.load(built.path / "manifest.json").notes == built.notes


def test_event_times_alone_can_decide_and_contract_and_manifest_say_so(store):
    cut = store.training_set(asked(), "svc")
    built = store.training_set(asked(), "svc", event_time_only=True)
    assert built.table["v"].to_pylist() == [value for value, _ in oracle(known=False)]
    assert built.manifest.event_time_only
    assert built.notes == ()
    assert built.manifest.contract != cut.manifest.contract
    kept = store.kept_contract(built.manifest.contract)
    assert kept.description["knowledge"] == "event time alone"
    for one in (cut, built):
        assert store.replay(one.path / "manifest.json").equals(one.table)


def test_a_model_of_such_a_set_is_served_and_audited_under_its_contract(store):
    contract = store.training_set(asked(), "svc", event_time_only=True).manifest.contract
    now = START + 31 * HOUR
    got = store.online_features("svc", {"k": [1, 2]}, request_time=now, contract=contract)
    assert got.contract == contract
    assert got.table["v"].to_pylist() == [33, 22]
    store.served.append("svc", got, request_ids=["a", "b"], request_time=now)
    store.served.flush()
    checks = store.audit("svc").checks
    assert not [check for check in checks if check.mismatches or check.void]


def test_a_manifest_of_before_reads_as_one_of_the_cut(store):
    path = store.training_set(asked(), "svc").path / "manifest.json"
    raw = json.loads(path.read_text())
    for name in ("event_time_only", "unknown_then"):
        del raw[name]
    path.write_text(json.dumps(raw))
    assert not TrainingSet.load(path).manifest.event_time_only
    store.replay(path)
