"""Ingesting adds to what is known and changes nothing that was."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Store
from featurestore.errors import NotFoundError, SourceError

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
