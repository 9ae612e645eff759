"""Ingesting adds to what is known and changes nothing that was."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from steadfeast import Store
from steadfeast.featurestore.errors import NotFoundError, SourceError
from steadfeast.featurestore.tables.hashing import content_sha256

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def facts(shop, *rows):
    schema = shop.USERS.remove(shop.USERS.get_field_index("written"))
    return pa.Table.from_pylist([{"user_id": u, "at": at, **v} for u, at, v in rows], schema)


def asked(*rows):
    users, times = zip(*rows, strict=True)
    return pa.table({"user_id": pa.array(users, pa.int64()), "event_timestamp": list(times)})


def test_what_was_known_stays_whatever_is_ingested_later(shop):
    """Corrections, backfills and late rows in random order; every training set replays."""
    dice = random.Random(3)
    shop.write([], [])
    built, naive = [], []
    with Store.open(shop.config) as store:
        for step in range(6):
            now = NOON + step * HOUR
            new = [
                (dice.randrange(3), now - dice.randrange(20) * HOUR, {"spend": dice.random()})
                for _ in range(5)
            ]
            assert store.ingest("users", facts(shop, *new), known_at=now) == now
            naive += [(user, at, now, values["spend"]) for user, at, values in new]
            entities = asked(*((user, now) for user in range(3)))
            built.append(store.training_set(entities, "small"))
            expected = [
                max(
                    ((at, known, spend) for user, at, known, spend in naive if user == wanted),
                    default=(None, None, None),
                )[2]
                for wanted in range(3)
            ]
            assert built[-1].table["spend"].to_pylist() == expected
        for one in built:
            assert store.replay(one.path / "manifest.json").equals(one.table)
        store.materialize(NOON + 5 * HOUR)
        got = store.online_features("small", asked((0, NOON), (1, NOON), (2, NOON)).select([0]),
                                    request_time=NOON + 5 * HOUR)  # fmt: skip
        assert got.table["spend"].to_pylist() == built[-1].table["spend"].to_pylist()


def test_rows_are_appended_and_files_never_rewritten(shop):
    shop.write([], [])
    users = shop.data / "sources" / "users.parquet"
    with Store.open(shop.config) as store:
        before = datetime.now(UTC)
        known = store.ingest("users", facts(shop, (1, NOON, {"spend": 1.0})))
        assert before <= known <= datetime.now(UTC)
        kept = {path: path.read_bytes() for path in users.rglob("*.parquet")}
        store.ingest("users", facts(shop, (1, NOON, {"spend": 2.0})))
        assert all(path.read_bytes() == content for path, content in kept.items())
    table = pq.read_table(users)
    assert sorted(table["spend"].to_pylist()) == [1.0, 2.0]
    assert table["written"].null_count == 0


def test_what_would_change_the_past_is_refused(shop):
    shop.write([], [])
    rows = facts(shop, (1, NOON, {"spend": 1.0}))
    with Store.open(shop.config) as store:
        store.ingest("users", rows, known_at=NOON + HOUR)
        with pytest.raises(SourceError, match="knows rows from 2024-03-10T13:00:00") as caught:
            store.ingest("users", rows, known_at=NOON)
        assert (caught.value.view, caught.value.column) == ("users", "written")
        with pytest.raises(SourceError, match="is given by the store"):
            store.ingest("users", rows.append_column("written", [[NOON]]))
        with pytest.raises(SourceError, match="has no created column"):
            store.ingest("items", pa.table({"item_id": ["a"], "at": [NOON]}))
        with pytest.raises(NotFoundError):
            store.ingest("nobody", rows)
        # A clock that went back cannot put a row before what is known.
        far = datetime.now(UTC) + timedelta(days=1)
        store.ingest("users", rows, known_at=far)
        assert store.ingest("users", rows) == far


moments = st.integers(0, 30).map(lambda hours: NOON + hours * HOUR)
rows = st.lists(
    st.tuples(st.integers(0, 2), moments, st.sampled_from([None, 0.5, -0.0, float("nan")])),
    min_size=1,
    max_size=4,
)
steps = st.lists(
    st.tuples(st.sampled_from(["ingest", "delete facts", "delete users", "train"]), rows),
    min_size=2,
    max_size=8,
)


def naive(history, number, time):
    """Spend of one user at `time`, by a loop; a deletion is a fact of nothing."""
    there = [
        row
        for row in history
        if row[0] == number and row[1] <= time and row[2] <= time and time - row[1] <= 24 * HOUR
    ]
    return max(there, key=lambda row: (row[1], row[2]), default=(0, 0, 0, None))[3]


@settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=steps, pin=st.sampled_from(["copy", "hash"]))
def test_every_training_set_replays_after_late_rows_backfills_and_deletes(shop, steps, pin):
    """Each sees what the loop sees at its time, and gives the same bytes at the end of it all."""
    shop.config.write_text(f"store: {{repo: ., data: data, training: {{pin: {pin}}}}}\n")
    shutil.rmtree(shop.data / "sources" / "users.parquet", ignore_errors=True)
    shop.write([], [])
    shutil.rmtree(shop.data / "training", ignore_errors=True)
    for path in shop.data.glob("online.db*"):
        path.unlink(missing_ok=True)
    built, history = [], []
    with Store.open(shop.config) as store:
        for step, (what, chosen) in enumerate([*steps, ("train", steps[0][1])]):
            now = NOON + (10 + 4 * step) * HOUR  # event times before it are late, after it early
            known = pa.table({"user_id": pa.array([n for n, _, _ in chosen], pa.int64())})
            facts_at = {(n, at): spend for n, at, spend in chosen}  # one of each, or they tie
            if what == "ingest":
                store.ingest(
                    "users",
                    facts(shop, *((n, at, {"spend": s}) for (n, at), s in facts_at.items())),
                    known_at=now,
                )
                history += [(n, at, now, s) for (n, at), s in facts_at.items()]
            elif what == "delete facts":
                times = pa.array([at for _, at, _ in chosen])
                store.delete("users", known.append_column("at", times), known_at=now)
                history += [(n, at, now, None) for n, at in facts_at]
            elif what == "delete users":
                assert store.delete("users", known, known_at=now) == now
                history += [(n, now, now, None) for n, _, _ in chosen]
            else:
                entities = asked(*((n, now - back * HOUR) for n in range(3) for back in (0, 5)))
                built.append(store.training_set(entities, "small"))
                assert repr(built[-1].table["spend"].to_pylist()) == repr(
                    [naive(history, n, now - back * HOUR) for n in range(3) for back in (0, 5)]
                )
        for one in built:
            replayed = store.replay(one.path / "manifest.json")
            assert content_sha256(replayed) == one.manifest.sha256
        store.materialize(now)
        got = store.online_features("small", {"user_id": [0, 1, 2]}, request_time=now)
        assert repr(got.table["spend"].to_pylist()) == repr(
            [naive(history, n, now) for n in range(3)]
        )
        assert not any(store.audit("small").checks[0].mismatches.values())


def test_what_cannot_be_deleted_is_named(shop):
    shop.write([], [])
    one = pa.table({"user_id": [1]})
    with Store.open(shop.config) as store:
        with pytest.raises(SourceError, match="'user_id': is missing: say whose rows go"):
            store.delete("users", pa.table({"at": [NOON]}))
        with pytest.raises(SourceError, match="'spent': is no column of the source"):
            store.delete("users", one.append_column("spent", [[1.0]]))
        with pytest.raises(SourceError, match="is given by the store"):
            store.delete("users", one.append_column("written", [[NOON]]))
        with pytest.raises(SourceError, match="has no created column"):
            store.delete("items", pa.table({"item_id": ["a"]}))


WRITER = """
import sys
import pyarrow as pa
from steadfeast import Store
config, number = sys.argv[1], int(sys.argv[2])
with Store.open(config) as store:
    sys.stdin.readline()
    for step in range(6):
        rows = pa.table({
            "user_id": [number] * 3,
            "at": pa.array([0, 1, 2]).cast(pa.timestamp("us", "UTC")),
            "spend": [float(step)] * 3,
            "visits": pa.nulls(3, pa.int64()),
            "city": pa.nulls(3, pa.string()),
        })
        print(store.ingest("users", rows).isoformat(), flush=True)
"""


def test_processes_that_ingest_at_once_lose_nothing_and_keep_the_order_of_knowledge(shop):
    """Nothing becomes known at a time before what another process had made known already."""
    (shop.data / "sources" / "users.parquet").unlink()
    command = [sys.executable, "-c", WRITER, str(shop.config)]
    writers = [
        subprocess.Popen(
            [*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(3)
    ]
    told = [writer.communicate("go\n")[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [len(times) for times in told] == [6, 6, 6]
    users = shop.data / "sources" / "users.parquet"
    table = pq.read_table(users)
    assert table.num_rows == 3 * 6 * 3
    assert sorted(t.isoformat() for t in set(table["written"].to_pylist())) == sorted(
        time for times in told for time in set(times)
    )
    files = sorted(users.rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    known = [pq.read_table(path, partitioning=None)["written"][0].as_py() for path in files]
    assert known == sorted(known)
    assert len(files) == 18
