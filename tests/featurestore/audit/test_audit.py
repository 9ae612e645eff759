"""Each planted bug is found and named; a store without bugs passes; nothing compared is no pass."""

from __future__ import annotations

import fcntl
import importlib
import json
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast import OnlineFeatures, ServedLog, Store
from steadfeast.featurestore.errors import CorruptRowError, DamagedFilesError
from steadfeast.featurestore.serving import assembly as serving_module
from support.small_repo import MICROS, START, VIEW, SmallRepo

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR, DAY, TICK = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
HOME_TOWN = "Zollikofen"


def user(number, at, written=None, **values):
    return {"user_id": number, "at": at, "written": written or at, **values}


USERS = [
    user(1, NOON - 2 * HOUR, spend=0.0, visits=1, city="Bern"),
    user(1, NOON - HOUR, spend=0.0, visits=2, city=HOME_TOWN),
    user(2, NOON - HOUR, spend=2.0, visits=2**53 + 1, city="Bern"),
    user(3, NOON - DAY - TICK, spend=3.0, visits=3, city="Bern"),
]
ITEMS = [{"item_id": "a", "price": 0.1, "at": NOON - 50 * DAY}]


def rows(users):
    return pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "item_id": pa.array(["a"] * len(users), pa.string()),
            "amount": pa.array([10.0] * len(users), pa.float64()),
        }
    )


def serve(store, time=NOON, users=(1, 2, 3)):
    asked = rows(users)
    got = store.online_features("purchase", asked, request_time=time)
    ids = [f"{time.isoformat()}-{n}" for n in users]
    store.served.append("purchase", got, request_ids=ids, request_time=time)


@pytest.fixture
def stocked(shop):
    """Give a shop with three users, materialized and served from at noon."""
    shop.write(USERS, ITEMS)
    with Store.open(shop.config) as store:
        store.materialize(NOON)
        serve(store)
        yield store


def check(store, invariant, subject):
    report = store.audit("purchase")
    (found,) = [c for c in report.checks if (c.invariant, c.subject) == (invariant, subject)]
    assert report.ok is all(c.ok for c in report.checks)
    if invariant in {"I1", "I2"}:  # every cell is of a feature
        assert sum(map(Counter, found.features.values()), Counter()) == found.mismatches
        assert {one["feature"] for one in found.examples} <= set(found.features)
    return found


def overwrite(store, **values):
    """Put a row into the online store as it is, past the order of writes."""
    view = store.feast.get_feature_view("users")
    key = pa.table({"user_id": pa.array([values["user_id"]], pa.int64())})
    store.online.delete_entities(store.feast.config, view, key)
    if "at" in values:
        store.write_online("users", pa.Table.from_pylist([values], store_schema()))


def store_schema():
    time = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            ("user_id", pa.int64()),
            ("spend", pa.float64()),
            ("visits", pa.int64()),
            ("city", pa.string()),
            ("at", time),
            ("written", time),
        ]
    )


def test_a_sound_store_passes_and_says_how_much_was_compared(stocked):
    report = stocked.audit("purchase")
    assert report.ok, report.to_text()
    compared = {(c.invariant, c.subject): c.cells for c in report.checks}
    # User 3 expired by a microsecond on both sides: there is nothing of it to compare.
    assert compared == {
        ("I1", "users"): 2 * 3,
        ("I1", "items"): 1 * 2,
        ("I2", "purchase"): 3 * 9,
        ("I9", "users"): 3,
        ("I9", "items"): 3,
        ("I11", "purchase"): 3,
    }
    parsed = json.loads(report.to_json())
    assert parsed["ok"] is True
    assert parsed["contract"] == stocked.contract("purchase").sha256


GOOD = {"spend": 0.0, "visits": 2, "city": HOME_TOWN, "at": NOON - HOUR, "written": NOON - HOUR}

I1_BUGS = {
    "a value changed": ({"visits": 3}, {"value": 1}),
    "an integer through a float": (
        {"user_id": 2, "spend": 2.0, "visits": 2**53, "city": "Bern"},
        {"value": 1},
    ),
    "a negative zero": ({"spend": -0.0}, {"value": 1}),
    "a null for a value": ({"city": None}, {"value": 1}),
    "NaN for a value": ({"spend": float("nan")}, {"value": 1}),
    "an older row over a newer": (
        {"visits": 1, "city": "Bern", "at": NOON - 2 * HOUR, "written": NOON - 2 * HOUR},
        {"stale": 3},
    ),
    "a row from after the watermark": ({"at": NOON + HOUR, "written": NOON + HOUR}, {"ahead": 3}),
    "a row that no source has": ({"user_id": 9}, {"missing offline": 3}),
}


@pytest.mark.parametrize("bug", I1_BUGS)
def test_i1_names_what_is_wrong_online(stocked, bug):
    values, kinds = I1_BUGS[bug]
    overwrite(stocked, **{"user_id": 1, **GOOD, **values})
    found = check(stocked, "I1", "users")
    assert not found.ok
    assert found.mismatches == kinds
    example = found.examples[0]
    assert example["key"] == {"user_id": values.get("user_id", 1)}
    assert example["kind"] in kinds
    assert example["online_event_time"] is not None


def test_i1_names_a_row_that_is_gone(stocked):
    overwrite(stocked, user_id=1)
    found = check(stocked, "I1", "users")
    assert found.mismatches == {"missing online": 3}
    assert found.examples[0]["online_event_time"] is None


def test_i1_names_a_row_that_the_source_lost(stocked, shop):
    shop.write([user(1, NOON - HOUR, **{k: GOOD[k] for k in ("spend", "visits", "city")})], [])
    assert check(stocked, "I1", "users").mismatches == {"missing offline": 3}
    assert check(stocked, "I1", "items").mismatches == {"missing offline": 2}


def test_personal_data_never_appears_in_a_report(stocked):
    overwrite(stocked, **{"user_id": 1, **GOOD, "city": "Ostermundigen"})
    report = stocked.audit("purchase")
    (example,) = next(c for c in report.checks if c.subject == "users").examples
    assert example["feature"] == "city"
    assert example["online"].startswith("pii:")
    assert example["online"] != example["offline"]
    for text in (report.to_json(), report.to_text()):
        assert HOME_TOWN not in text
        assert "Ostermundigen" not in text


def _rewrite(path, change):
    table = pq.read_table(path, partitioning=None)
    pq.write_table(change(table), path)


def test_i2_names_a_vector_that_training_would_not_see(stocked):
    stocked.served.flush()
    (path,) = stocked.served.files("purchase", NOON, NOON + HOUR)

    def change(table):
        index = table.schema.get_field_index("share")
        return table.set_column(index, "share", pa.array([10.0, 5.000000000000001, None]))

    _rewrite(path, change)
    found = check(stocked, "I2", "purchase")
    assert found.mismatches == {"value": 1}
    (example,) = found.examples
    assert (example["feature"], example["served"], example["offline"]) == (
        "share",
        5.000000000000001,
        5.0,
    )
    assert found.features == {"share": {"value": 1}}
    assert "1 value; most in share (1)" in stocked.audit("purchase").to_text()


def test_i2_names_an_expired_value_that_was_served_all_the_same(stocked, monkeypatch):
    """The mutant: a TTL one microsecond longer online than offline."""
    right = serving_module.usable
    monkeypatch.setattr(
        serving_module, "usable", lambda event, ttl, at: right(event, ttl and ttl + 1, at)
    )
    serve(stocked, NOON, users=(3,))
    found = check(stocked, "I2", "purchase")
    assert set(found.mismatches) == {"missing offline"}
    assert {example["feature"] for example in found.examples} <= {
        *("spend", "visits", "city", "share", "more_visits", "label")
    }


def test_i2_names_a_leaked_row(stocked, shop):
    """A value served before it was known: it was written an hour after the request."""
    future = user(2, NOON - 1 * TICK, written=NOON + HOUR, spend=7.0, visits=7, city="Bern")
    overwrite(stocked, **{**future, "written": NOON - TICK})
    shop.write([future], [{"item_id": "a", "price": 0.1, "at": NOON - 50 * DAY}])
    serve(stocked, NOON, users=(2,))
    found = check(stocked, "I2", "purchase")
    leaked = [example for example in found.examples if example["kind"] == "leaked"]
    assert {"spend", "visits"} <= {example["feature"] for example in leaked}
    example = next(example for example in leaked if example["feature"] == "visits")
    assert (example["served"], example["offline"]) == (7, None)
    assert example["key"] == {"user_id": 2, "item_id": "a"}
    assert example["rows"] == {
        "users": {
            "served_event_time": NOON - TICK,
            "served_created_time": NOON + HOUR,
            "offline_event_time": None,
        }
    }


def test_i2_tells_a_row_that_was_not_materialized_yet_from_a_wrong_one(stocked, shop):
    newer = user(2, NOON + TICK, spend=4.0, visits=7, city="Bern")
    shop.write([newer], [{"item_id": "a", "price": 0.1, "at": NOON - 50 * DAY}])
    stocked.served = type(stocked.served)(shop.data / "elsewhere")
    serve(stocked, NOON + HOUR, users=(2,))
    found = check(stocked, "I2", "purchase")
    assert set(found.mismatches) == {"stale"}
    assert found.mismatches["stale"] == 4  # two stored, and two computed from them


def test_the_worst_of_each_kind_are_shown_first(stocked):
    for number, visits in enumerate((3, 50, 4, 9, 2000, 5, 6)):
        overwrite(stocked, **{**GOOD, "user_id": 100 + number, "visits": visits})
    overwrite(stocked, **{**GOOD, "user_id": 1, "visits": 4})
    two = {"user_id": 2, "spend": 2.0, "visits": 2**53 + 3, "city": "Bern"}
    overwrite(stocked, **{**GOOD, **two})
    found = check(stocked, "I1", "users")
    assert found.mismatches == {"missing offline": 21, "value": 2}
    assert found.features == {
        "spend": {"missing offline": 7},
        "visits": {"missing offline": 7, "value": 2},
        "city": {"missing offline": 7},
    }
    assert [e["online"] for e in found.examples if e["kind"] == "value"] == [4, 2**53 + 3]
    assert len([e for e in found.examples if e["kind"] == "missing offline"]) == 5
    assert found.examples[0]["source"] == "data/sources/users.parquet"


def test_a_report_is_json_whatever_the_values(stocked):
    overwrite(stocked, **{"user_id": 1, **GOOD, "spend": float("nan")})
    overwrite(stocked, **{"user_id": 2, **GOOD, "spend": float("-inf"), "visits": 2**53 + 1})

    def refuse(word):
        raise ValueError(word)

    report = json.loads(stocked.audit("purchase").to_json(), parse_constant=refuse)
    shown = [e["online"] for c in report["checks"] for e in c["examples"] if "online" in e]
    assert {"NaN", "-Infinity"} <= set(shown)
    times = [e["online_event_time"] for e in report["checks"][1]["examples"]]
    assert all(datetime.fromisoformat(time) for time in times)


def test_what_is_computed_from_personal_data_is_personal(stocked):
    """`label` is the city in capitals; `affinity` is tagged as giving nothing away."""
    stocked.served.flush()
    (path,) = stocked.served.files("purchase", NOON, NOON + HOUR)

    def change(table):
        index = table.schema.get_field_index("label")
        return table.set_column(index, "label", pa.array(["WRONG", "BERN", None]))

    _rewrite(path, change)
    report = stocked.audit("purchase")
    (example,) = next(c for c in report.checks if c.invariant == "I2").examples
    assert (example["feature"], example["kind"]) == ("label", "value")
    assert example["served"].startswith("pii:")
    assert not any(word in report.to_json() for word in ("WRONG", HOME_TOWN.upper()))
    assert stocked.audit("purchase").checks != report.checks  # another report, another key


def test_a_counted_drop_leaves_the_log_complete_and_makes_i2_void(stocked, shop):
    stocked.served.close()
    log = stocked.served = type(stocked.served)(
        shop.data, rows_per_file=3, rows_waiting=3, when_full="drop"
    )
    with log._writing:  # the log's thread cannot write now
        for n in range(1, 4):
            serve(stocked, NOON + n * HOUR)
    log.flush()
    assert log.counters("purchase").dropped == 6
    assert check(stocked, "I11", "purchase").note == "6 more were dropped and counted"
    found = check(stocked, "I2", "purchase")
    assert (found.ok, found.mismatches) == (False, {})
    assert found.void == "void: 6 vectors of this window were dropped"


def test_i2_names_an_on_demand_function_that_differs_online(stocked):
    (executor, *_) = stocked.bundle("purchase").executors
    right = executor._function
    executor._function = lambda frame: right(frame).assign(share=lambda f: f["share"] + 1)
    serve(stocked, NOON + TICK, users=(2,))
    executor._function = right
    assert check(stocked, "I2", "purchase").mismatches == {"value": 1}


def test_i2_takes_only_the_window_and_the_contract_asked_for(stocked, shop):
    serve(stocked, NOON + HOUR)
    report = stocked.audit("purchase", start=NOON + TICK, end=NOON + 2 * HOUR)
    assert [c.cells for c in report.checks if c.invariant == "I2"] == [27]
    assert [c.cells for c in report.checks if c.invariant == "I11"] == [6]
    shop.edit("features.py", "timedelta(days=1)", "timedelta(days=2)")
    stocked.apply()
    before = stocked.served.files("purchase", NOON, NOON + DAY)
    contract = pq.read_table(before[0], partitioning=None)["contract"][0].as_py()
    found = check(stocked, "I2", "purchase")
    assert (found.cells, found.ok) == (54, True)
    told = f"6 rows were served under contract {contract[:12]}"
    assert found.note == f"{told}, and replayed by it"
    serve(stocked, NOON + 3 * HOUR)
    (shop.data / "contracts" / f"{contract}.zip").unlink()
    stocked.catalog._before.clear()
    found = check(stocked, "I2", "purchase")
    assert (found.cells, found.outcome) == (27, "void")
    assert found.void == f"void: {told}: no definitions were kept with it"


def test_i11_counts_rows_and_files_that_are_gone(stocked):
    for n in range(1, 4):
        stocked.served.flush()
        serve(stocked, NOON + n * HOUR)
    stocked.served.flush()
    assert check(stocked, "I11", "purchase").ok
    files = stocked.served.files("purchase", NOON, NOON + DAY)
    files[1].unlink()
    assert check(stocked, "I11", "purchase").mismatches == {"lost": 3}
    kept = pq.read_table(files[2], partitioning=None)
    pq.write_table(kept.slice(1), files[2])
    found = check(stocked, "I11", "purchase")
    assert found.mismatches == {"lost": 4}
    assert {example.get("file") for example in found.examples} == {None, files[2].name}


def while_compared(store, monkeypatch, meanwhile):
    """Have `meanwhile` happen each time before an audit reads what is online."""
    scan = type(store.online).scan

    def scanned(self, *arguments):
        meanwhile()
        return scan(self, *arguments)

    monkeypatch.setattr(type(store.online), "scan", scanned)


def newer(shop, hours):
    """Add a row that becomes known so many hours after noon, and materialize, elsewhere."""
    at = NOON + hours * HOUR
    shop.write([*USERS, user(1, at, spend=1.0, visits=hours, city="Bern")], ITEMS)
    with Store.open(shop.config) as other:
        other.materialize(at)


def test_i11_counts_ids_that_stand_for_two_vectors_or_for_none(stocked):
    """By kind, with the ids; labels and other versions' predictions refer to vectors."""
    ids = [f"{NOON.isoformat()}-{n}" for n in (1, 2, 3)]
    named = {"request_time": NOON, "model": "m"}
    stocked.served.append_labels("purchase", ids, [1.0] * 3, NOON + HOUR)
    stocked.served.append_predictions("purchase", ids, [0.5] * 3, model_version="1", **named)
    stocked.served.append_predictions("purchase", ids, [0.5] * 3, model_version="2", **named)
    assert check(stocked, "I11", "purchase").ok
    serve(stocked, NOON, users=(1, 2))  # the second time
    stocked.served.append_predictions("purchase", ids[:1], [0.25], model_version="2", **named)
    stocked.served.append_labels("purchase", ["nobody", ids[0]], [1.0, 0.0], NOON + 2 * HOUR)
    stocked.served.append_predictions("purchase", ["none"], [0.5], model_version="2", **named)
    found = check(stocked, "I11", "purchase")
    assert found.mismatches == {"repeated": 3, "unknown request": 2}
    assert {(one["kind"], one["request_id"]) for one in found.examples} == {
        *(("repeated", name) for name in ids[:2]),
        ("unknown request", "nobody"),
        ("unknown request", "none"),
    }


def test_labels_of_vectors_that_were_dropped_are_no_mismatch(stocked, shop):
    log = ServedLog(shop.data, rows_per_file=1, rows_waiting=1, when_full="drop")
    got = stocked.online_features("purchase", rows([1, 2]), request_time=NOON)
    with log._writing:  # the disk is slow
        for name in ("a", "b"):
            log.append("purchase", got, request_ids=[f"{name}1", f"{name}2"], request_time=NOON)
    log.append_labels("purchase", ["a1", "b1"], [1.0, 1.0], NOON + HOUR)
    log.flush()
    assert log.counters("purchase").dropped == 2
    found = check(stocked, "I11", "purchase")
    assert found.ok
    assert "1 labels and predictions are of requests that are not there" in found.note


def test_rows_that_come_online_while_they_are_compared_are_no_mismatch(stocked, shop, monkeypatch):
    """Another process materializes in the middle, once: the second look is of what stands."""
    times = iter((2,))

    def once():
        for hours in times:
            newer(shop, hours)

    while_compared(stocked, monkeypatch, once)
    found = check(stocked, "I1", "users")
    assert found.outcome == "holds"
    assert found.note == f"at {(NOON + 2 * HOUR).isoformat()}"


def test_a_view_that_never_stands_still_is_void_and_not_wrong(stocked, shop, monkeypatch):
    hours = count(2)
    while_compared(stocked, monkeypatch, lambda: newer(shop, next(hours)))
    found = check(stocked, "I1", "users")
    assert (found.outcome, found.mismatches) == ("void", {})
    assert "each of 3 times" in found.void


def test_what_is_wrong_is_wrong_once_nothing_moves(stocked, shop, monkeypatch):
    """The lock is that of a materialization under way; the kernel frees a dead process's."""
    # The package has a function of the module's name.
    module = importlib.import_module("steadfeast.featurestore.audit.audit")
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    overwrite(stocked, **{"user_id": 1, **GOOD, "visits": 3})
    with (shop.data / "materialized.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert check(stocked, "I1", "users").outcome == "void"
    assert check(stocked, "I1", "users").mismatches == {"value": 1}


def test_nothing_to_compare_is_not_a_pass(shop):
    with Store.open(shop.config) as store:
        report = store.audit("purchase")
    assert not report.ok
    assert {c.note for c in report.checks} == {"never materialized", "nothing was logged"}


def test_a_torn_online_row_is_an_error_and_not_a_value(stocked, shop):
    connection = sqlite3.connect(shop.data / "online.db")
    with connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'rows:%users'")
        ((name,),) = names.fetchall()
        for key, row in connection.execute(f'SELECT key, row FROM "{name}"').fetchall():
            torn = row[:-1] + bytes([row[-1] ^ 1])
            connection.execute(f'UPDATE "{name}" SET row = ? WHERE key = ?', (torn, key))
    connection.close()
    with pytest.raises(CorruptRowError, match="fails its checksum"):
        stocked.audit("purchase")


def logged(store, moment, times, *, contract=None, model="m", version="1"):
    """Log one vector per user whose value is from the hour given."""
    got = store.online_features("purchase", rows([*times]), request_time=moment)
    event_times = {
        "users": pa.array([*times.values()], pa.timestamp("us", "UTC")),
        "items": pa.nulls(len(times), pa.timestamp("us", "UTC")),
    }
    vectors = OnlineFeatures(got.table, got.statuses, event_times, contract or got.contract)
    ids = [f"{moment.isoformat()}-{n}" for n in times]
    named = {"model": model, "model_version": version}
    store.served.append("purchase", vectors, request_ids=ids, request_time=moment, **named)
    store.served.flush()


def test_i4_counts_what_a_version_was_served_under_another_contract(stocked):
    assert "I4" not in {check.invariant for check in stocked.audit("purchase").checks}
    for hour in (1, 2, 3):
        logged(stocked, NOON + hour * HOUR, {1: NOON, 2: NOON})
    logged(stocked, NOON + 4 * HOUR, {1: NOON}, version="2", contract="f" * 64)
    found = check(stocked, "I4", "purchase")
    assert (found.outcome, found.cells) == ("holds", 7)
    logged(stocked, NOON + 5 * HOUR, {1: NOON}, contract="f" * 64)
    found = check(stocked, "I4", "purchase")
    assert found.mismatches == {"mixed": 1}
    (example,) = found.examples
    assert (example["version"], example["contract"], example["rows"]) == ("1", "f" * 64, 1)
    assert example["since"] == NOON + 5 * HOUR


@pytest.mark.parametrize("seed", range(4))
def test_i9_counts_what_a_loop_over_the_log_counts(stocked, seed):
    dice = random.Random(seed)
    newest, latest, wrong = {}, NOON, 0
    stocked.served.flush()
    for path in stocked.served.files("purchase", NOON, NOON + DAY):
        path.unlink()
    moment = NOON
    for _ in range(12):
        back = dice.random() < 0.2
        moment = moment - 3 * HOUR if back else max(moment, latest) + dice.choice([1, 2]) * HOUR
        times = {
            n: dice.choice([None, NOON + dice.randrange(4) * HOUR]) for n in dice.sample([1, 2], 1)
        }
        logged(stocked, moment, times)
        if moment < latest:
            continue  # asked for a time that had passed
        latest = moment
        for n, time in times.items():
            if time is not None:
                wrong += time < newest.get(n, time)
                newest[n] = max(time, newest.get(n, time))
    found = check(stocked, "I9", "users")
    assert found.mismatches == ({"went back": wrong} if wrong else {})
    assert all(one["served_event_time"] < one["served_before"] for one in found.examples)


def test_i9_forgives_what_was_in_flight_together_and_another_source(stocked):
    logged(stocked, NOON + HOUR, {1: NOON})
    logged(stocked, NOON + HOUR + timedelta(seconds=59), {1: NOON - HOUR})
    logged(stocked, NOON + 2 * HOUR, {1: NOON - HOUR}, contract="f" * 64)
    assert check(stocked, "I9", "users").ok
    logged(stocked, NOON + HOUR + timedelta(minutes=70), {1: NOON - HOUR})
    found = check(stocked, "I9", "users")
    assert found.mismatches == {"went back": 1}
    assert found.examples[0]["key"] == {"user_id": 1}


@pytest.mark.parametrize(("online", "source"), [(5e-324, -0.0), (1.7e308, -1.7e308), (0.0, -0.0)])
def test_the_least_and_the_greatest_numbers_are_mismatches_like_others(tmp_path, online, source):
    repo = SmallRepo(tmp_path, VIEW.replace("dtype=Int64", "dtype=Float64"))
    two = pa.table({"k": [1, 2], "at": pa.array([START] * 2, MICROS), "v": [online, 1.0]})
    repo.write(two)
    with Store.open(repo.config) as store:
        store.apply()
        store.materialize(START + HOUR)
        repo.write(two.set_column(2, "v", pa.array([source, 2.0])))
        report = store.audit("svc")
    (i1,) = [found for found in report.checks if found.invariant == "I1"]
    assert i1.mismatches == {"value": 2}
    assert {repr(one["online"]) for one in i1.examples} == {repr(online), "1.0"}


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    first, last = {"data": (4, footer), "footer": (footer, len(content) - 8)}.get(how, (0, 0))
    wrong = bytes(byte ^ 0x5A for byte in content[first:last])
    half = content[: len(content) // 2]
    path.write_bytes(half if how == "half" else content[:first] + wrong + content[last:])


@pytest.mark.parametrize("how", ["half", "data", "footer"])
@pytest.mark.parametrize("kind", ["served", "labels", "predictions"])
def test_a_damaged_file_of_the_log_is_named(stocked, shop, kind, how):
    ids = [f"{NOON.isoformat()}-{n}" for n in (1, 2, 3)]
    stocked.served.append_labels("purchase", ids, [1.0] * 3, NOON + HOUR)
    named = {"request_time": NOON, "model": "m"}
    stocked.served.append_predictions("purchase", ids, [0.5] * 3, model_version="1", **named)
    stocked.served.append_predictions("purchase", ids, [0.5] * 3, model_version="2", **named)
    stocked.served.flush()
    (path,) = (shop.data / kind / "purchase").glob("[!.]*.parquet")
    _damage(path, how)
    with pytest.raises(DamagedFilesError, match="truncated or damaged") as raised:
        stocked.audit("purchase")
    assert list(raised.value.problems) == [path]
    assert "\n" not in str(raised.value)


def test_a_damaged_file_is_one_line_at_the_command_line(stocked, shop):
    stocked.served.flush()
    serve(stocked, NOON + HOUR)
    stocked.served.close()
    path, _ = stocked.served.files("purchase", NOON, NOON + 2 * HOUR)
    _damage(path, "footer")
    for words in (["audit", "purchase"], ["gc", "--older-than", "1d", "--apply"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "steadfeast.featurestore.cli", "store", *words,
             "-c", str(shop.config)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert path.name in done.stderr
        assert "Traceback" not in done.stderr
    path.rename(shop.data / "aside")
    with Store.open(shop.config) as store:
        assert check(store, "I11", "purchase").mismatches == {"lost": 3}
