"""A person's rows in the daemon's snapshots go with the rest, whatever the key is called there."""

import hashlib

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast import Store
from steadfeast.featurestore.retention.erasure import Matches
from steadfeast.monitor.sources.erasure import erase_snapshots
from steadfeast.monitor.sources.snapshot import (
    Bucket,
    SnapshotUnreadableError,
    bucket_path,
    damage,
    freeze,
    open_path,
)
from support.small_repo import VIEW, SmallRepo, hour, rows

BUCKET = Bucket(hour(0), hour(24))
WHO = 987_654_321
ALIASED = VIEW.replace("features=[view]", "features=[view.with_join_key_map({'k': 'buyer'})]")
MONITOR = "monitor:\n  state: state\n  monitors:\n    m: {service: svc, model: m}\n"


@pytest.fixture
def watched(tmp_path):
    """Give a store whose log is frozen twice, once by bucket and once while rows still come."""
    repo = SmallRepo(tmp_path, ALIASED)
    repo.write(rows((1, hour(1), 1), (WHO, hour(1), 2)))
    config = tmp_path / "steadfeast.yaml"
    config.write_text(config.read_text() + MONITOR)
    with Store.open(config) as store:
        store.apply()
        store.materialize(hour(2))
        got = store.online_features("svc", {"buyer": [1, WHO]}, request_time=hour(3))
        store.served.append("svc", got, request_ids=["a", "b"], request_time=hour(3))
        store.served.flush()
        files = store.served.files("svc", hour(0), hour(9))
        path = bucket_path(tmp_path / "state", "m", BUCKET)
        with duckdb.connect() as con:
            for place in (path, open_path(path)):
                freeze(con, files, BUCKET, place)
        yield store, [path, open_path(path)]


def ids(path):
    return pq.read_table(path, partitioning=None)["request_id"].to_pylist()


def test_rows_in_snapshots_are_counted_first_and_then_gone(watched, tmp_path):
    store, paths = watched
    matches = Matches(store.catalog, pa.table({"k": [WHO]}))
    half = paths[0].with_name(f".{paths[0].name}.1.half")
    half_content = paths[0].read_bytes()
    half.write_bytes(half_content)
    found = erase_snapshots(tmp_path / "steadfeast.yaml", matches, apply=False)
    assert found == {"snapshots of m": 2}
    assert [ids(path) for path in paths] == [["a", "b"], ["a", "b"]]
    assert half.exists()
    assert erase_snapshots(tmp_path / "steadfeast.yaml", matches, apply=True) == found
    assert [ids(path) for path in paths] == [["a"], ["a"]]
    # The ledger's hash is of the file before: what was erased on purpose is no damage, unlike
    # a file that was changed by anything else.
    frozen = hashlib.sha256(half_content).hexdigest()
    assert damage(paths[0], frozen) == ""
    pq.write_table(pq.read_table(paths[1]).replace_schema_metadata(None), paths[1])
    assert "SHA-256" in damage(paths[1], frozen)
    assert not half.exists()
    assert erase_snapshots(tmp_path / "steadfeast.yaml", matches, apply=True) == {}


def test_a_store_that_nothing_watches_has_no_snapshots(tmp_path):
    repo = SmallRepo(tmp_path)
    repo.write(rows((1, hour(1), 1)))
    with Store.open(tmp_path / "steadfeast.yaml") as store:
        store.apply()
        assert store.erase([{"k": 1}], apply=True).elsewhere == {}


def test_erasing_from_a_store_reaches_the_snapshots_of_its_daemon(watched):
    store, paths = watched
    assert store.erase([{"k": WHO}]).elsewhere == {"snapshots of m": 2}
    assert store.erase([{"k": WHO}], apply=True).elsewhere == {"snapshots of m": 2}
    assert [ids(path) for path in paths] == [["a"], ["a"]]


@pytest.mark.parametrize("apply", [False, True])
def test_whose_rows_a_damaged_snapshot_holds_is_not_known(watched, apply):
    """What could not be looked at is not reported as erased, and nothing else goes."""
    store, paths = watched
    whole, path = sorted(paths)  # that of an open bucket is looked at first
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SnapshotUnreadableError, match=f"{path.name}: cannot be read"):
        store.erase([{"k": WHO}], apply=apply)
    assert ids(whole) == ["a", "b"]
