"""Materialization by Feast's command and by the store's: exact, late rows too, killed or not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore

from steadfeast import Store
from steadfeast.featurestore.errors import InvalidStoreError, SourceError, StoreUnavailableError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR, US = timedelta(hours=1), timedelta(microseconds=1)
ENGINE = {"type": "steadfeast.DuckDBComputeEngine"}


def user(number, at, *, written=None, **values):
    return {"user_id": number, "at": at, "written": written or at, **values}


def stored(store, view):
    """All rows of one view, by their keys."""
    scan = store.online.scan(store.feast.config, store.feast.get_feature_view(view))
    return {repr(row) for batch in scan for row in batch.to_pylist()}


def configure(shop, online_store=None, **more):
    path = shop.folder / "feature_store.yaml"
    text = yaml.safe_load(path.read_text())
    text |= {"batch_engine": ENGINE, **more}
    if online_store is not None:
        text["online_store"] = online_store
    path.write_text(yaml.safe_dump(text))


def feast(shop, *arguments):
    """Run Feast's own command line in the repo."""
    program = Path(sys.executable).with_name("feast")
    return subprocess.run(
        [program, *arguments],
        cwd=shop.folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


@pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")
def test_feasts_command_writes_what_the_source_holds(shop, online):
    configure(shop, online.options, project=online.config.project)
    shop.write(
        [
            user(1, NOON - US, visits=2**63 - 1, spend=float("nan"), city="Zürich\0"),
            user(2, NOON - HOUR, visits=None, spend=None),
            user(2, NOON - 2 * HOUR, visits=5),
            user(3, NOON + US, visits=9),
        ],
        [
            {
                "item_id": "a",
                "at": NOON,
                "price": 0.1,
                "listed": datetime(1969, 1, 1, 0, 0, 0, 1, UTC),
            }
        ],
    )
    with Store.open(shop.config) as store:
        store.apply()
        if online.kind == "sqlite":
            times = ("2026-02-01T00:00:00", NOON.strftime("%Y-%m-%dT%H:%M:%S"))
            assert "users" in feast(shop, "materialize", *times).stdout
        else:  # the same without the seconds that a process of Feast takes to start
            store.feast.materialize(datetime(2026, 2, 1, tzinfo=UTC), NOON)
    with Store.open(shop.config) as store:
        users, items = stored(store, "users"), stored(store, "items")
        by_feast = FeatureStore(str(shop.folder)).get_feature_view("users")
        # Feast keeps the watermark, so its incremental command goes on from there.
        assert by_feast.most_recent_end_time == NOON
        read = store.online_features("small", [{"user_id": 1}], request_time=NOON)
        assert str(read.table["spend"][0]) == "nan"
        store.online.teardown(store.feast.config, store.feast.list_feature_views(), [])
        assert store.materialize(NOON) == {"users": 2, "items": 1}
        assert stored(store, "users") == users
        assert stored(store, "items") == items
    assert f"'visits': {2**63 - 1}" in str(users)
    assert "'visits': None" in str(users)
    assert "999999" in str(users)
    assert "datetime.datetime(1969, 1, 1, 0, 0, 0, 1" in str(items)


@pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")
def test_rows_written_late_arrive_with_the_next_step(shop):
    configure(shop)
    shop.write(
        [user(1, NOON, spend=1.0), user(2, NOON - HOUR, spend=1.0)],
        [{"item_id": "a", "at": NOON - HOUR, "price": 1.0}],
    )
    with Store.open(shop.config) as store:
        store.feast.materialize(NOON - 9 * HOUR, NOON)
        # Behind the watermark: a correction of 2, a row of 3; of items, which have no created time.
        shop.write(
            [
                user(1, NOON, spend=1.0),
                user(2, NOON - HOUR, spend=1.0),
                user(2, NOON - HOUR, spend=2.0, written=NOON + HOUR),
                user(3, NOON - 3 * HOUR, spend=3.0, written=NOON + HOUR),
                user(1, NOON - HOUR, spend=9.0, written=NOON + HOUR),
            ],
            [
                {"item_id": "a", "at": NOON - HOUR, "price": 1.0},
                {"item_id": "b", "at": NOON - 8 * HOUR, "price": 2.0},
            ],
        )
        store.feast.materialize_incremental(NOON + 2 * HOUR)
        rows = [{"user_id": n} for n in (1, 2, 3)]
        got = store.online_features("small", rows, request_time=NOON + 2 * HOUR)
        assert got.to_dict()["spend"] == [1.0, 2.0, 3.0]
        by_feast, items = stored(store, "users"), stored(store, "items")
        assert len(items) == 2
        # The store's own command, from its own watermark, in two steps and in another process.
        store.online.teardown(store.feast.config, store.feast.list_feature_views(), [])
    late = pq.read_table(shop.data / "sources" / "users.parquet")
    more = pq.read_table(shop.data / "sources" / "items.parquet")
    pq.write_table(late.slice(0, 2), shop.data / "sources" / "users.parquet")
    pq.write_table(more.slice(0, 1), shop.data / "sources" / "items.parquet")
    with Store.open(shop.config) as store:
        store.materialize(NOON)
        assert len(stored(store, "users")) == 2
    pq.write_table(late, shop.data / "sources" / "users.parquet")
    pq.write_table(more, shop.data / "sources" / "items.parquet")
    with Store.open(shop.config) as store:
        assert store.materialize(NOON + 2 * HOUR) == {"users": 2, "items": 1}
        assert stored(store, "users") == by_feast
        assert stored(store, "items") == items


@pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")
def test_mapped_columns_and_rows_created_after_the_range(shop):
    configure(shop)
    shop.edit(
        "features.py",
        "entities=[user],\n    ttl",
        "entities=[user],\n    tags={'v': '2'},\n    ttl",
    )
    shop.edit(
        "features.py",
        'created_timestamp_column="written",',
        'created_timestamp_column="made", field_mapping={"written": "made", "when": "at", '
        '"uid": "user_id"},',
    )
    shop.write([user(1, NOON, spend=1.0, written=NOON + HOUR), user(2, NOON - HOUR)], [])
    path = shop.data / "sources" / "users.parquet"
    table = pq.read_table(path).rename_columns({"user_id": "uid", "at": "when"})
    pq.write_table(table, path)
    with Store.open(shop.config) as store:
        store.apply()
        # Feast's command takes what lies in the range, whenever it was created; ours, for which
        # a row is known only from its creation on, takes it with the next step.
        store.feast.materialize(NOON - 2 * HOUR, NOON)
        assert len(stored(store, "users")) == 2
        rows = [{"user_id": 1}]
        early, due = (
            store.online_features("small", rows, request_time=NOON + n * HOUR) for n in (0, 1)
        )
        assert early.to_dict()["spend"] == [None]
        assert due.to_dict()["spend"] == [1.0]
        store.online.teardown(store.feast.config, store.feast.list_feature_views(), [])
        assert store.materialize(NOON)["users"] == 1
        assert store.materialize(NOON + HOUR)["users"] == 1
        assert all(check.ok for check in store.audit("small").checks if check.invariant == "I1")


def test_a_repo_with_another_store_or_a_transformation_is_refused(shop):
    configure(shop, {"type": "sqlite", "path": "data/theirs.db"})
    shop.write([user(1, NOON)], [])
    theirs = FeatureStore(str(shop.folder))
    with pytest.raises(InvalidStoreError, match="SqliteOnlineStore keeps no order of writes"):
        theirs.materialize(NOON - HOUR, NOON)
    configure(shop, {"type": "steadfeast.SQLiteOnlineStore"})
    ours = FeatureStore(str(shop.folder))
    view = ours.get_feature_view("users")
    view.feature_transformation = object()
    with pytest.raises(SourceError, match=r"'users'.*transformation"):
        ours._get_provider().materialize_single_feature_view(
            ours.config, view, NOON - HOUR, NOON, ours.registry, ours.project, None
        )
    shutil.rmtree(shop.data / "sources")
    with pytest.raises(SourceError, match=r"(items|users)\.parquet"):
        ours.materialize(NOON - HOUR, NOON)


def test_a_store_that_is_down_stops_feasts_command_with_the_reason(shop, free_port):
    url = f"redis://127.0.0.1:{free_port()}/0"
    kind = "steadfeast.RedisOnlineStore"
    configure(shop, {"type": kind, "url": url, "timeout_seconds": 0.2, "retries": 0})
    shop.write([user(1, NOON)], [])
    with pytest.raises(StoreUnavailableError, match=r"redis 127\.0\.0\.1"):
        FeatureStore(str(shop.folder)).materialize(NOON - HOUR, NOON)


MATERIALIZE = """
import sys
from datetime import datetime
from pathlib import Path
from steadfeast import Store
with Store.open(Path(sys.argv[1])) as store:
    sys.stdout.write("open\\n")
    sys.stdout.flush()
    store.materialize(datetime.fromisoformat(sys.argv[2]))
"""


def test_killed_anywhere_and_run_again_it_ends_in_the_same_state(shop):
    rows = 60_000
    values = np.random.default_rng(3)
    hours = values.integers(0, 9, rows).astype("timedelta64[h]")
    at = pd.Series(np.datetime64("2026-03-01T00:00:00", "us") + hours).dt.tz_localize("UTC")
    frame = pd.DataFrame(
        {
            "user_id": values.integers(0, rows // 2, rows),
            "spend": values.normal(size=rows),
            "visits": values.integers(0, 9, rows),
            "city": "x",
            "at": at,
            "written": at,
        }
    )
    shop.write([], [])
    table = pa.Table.from_pandas(frame, shop.USERS, preserve_index=False)
    pq.write_table(table, shop.data / "sources" / "users.parquet")
    calm = shop.folder.with_name("calm")
    shutil.copytree(shop.folder, calm)
    with Store.open(calm / "steadfeast.yaml") as store:
        began = time.monotonic()
        count = store.materialize(NOON)["users"]
        seconds = time.monotonic() - began
        expected = stored(store, "users")
    assert count == len(expected) > rows // 3
    seen = []
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", MATERIALIZE, str(shop.config), str(NOON)],
            stdout=subprocess.PIPE,
        ) as process:
            process.stdout.readline()
            time.sleep(random.uniform(0.1, 0.9) * seconds)
            process.send_signal(signal.SIGKILL)
        with Store.open(shop.config) as store:
            seen.append(len(stored(store, "users")))
    with Store.open(shop.config) as store:
        store.materialize(NOON)
        assert stored(store, "users") == expected
        assert store.materialize(NOON)["users"] == 0
    assert seen == sorted(seen)


def test_feasts_own_engine_keeps_numbers_exact_and_brings_what_was_created_late(shop, caplog):
    """Two `type:` lines and no `batch_engine`: plain `feast materialize` and its increments."""
    exact = 2**53 + 1
    first = [
        user(1, NOON - HOUR, visits=exact, spend=1.0),
        user(2, NOON - HOUR, spend=1.0),
        user(3, NOON - HOUR, visits=-exact, spend=1.0),
    ]
    late = user(4, NOON - 3 * HOUR, visits=exact, spend=4.0, written=NOON + HOUR)
    shop.write(first, [{"item_id": "a", "at": NOON - HOUR, "price": 1.0}])
    rows = [{"user_id": n} for n in (1, 2, 3, 4)]
    with Store.open(shop.config) as store:
        store.feast.materialize(NOON - 9 * HOUR, NOON)
        shop.write([*first, late], [])
        store.feast.materialize_incremental(NOON + 2 * HOUR)
        assert store.standing("users").until == NOON + 2 * HOUR
        found = stored(store, "users")
        got = store.feast.get_online_features(["users:visits"], rows).to_dict()
        assert got["user_id"] == [1, 2, 3, 4]
        (check,) = [c for c in store.audit("small").checks if c.invariant == "I1"]
        assert (check.outcome, check.cells) == ("holds", 4 * 3)
    visits = [f"'visits': {n}" for n in (exact, None, -exact, exact)]
    assert all(any(text in row for row in found) for text in visits)
    assert "'items_source' has no created column" in caplog.text
    assert "steadfeast.DuckDBComputeEngine" in caplog.text
