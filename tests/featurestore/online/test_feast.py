"""Feast's own SDK on the stores: apply, materialize, push, read, on-demand views, drop."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Float32, Float64, Int64, String

NOW = datetime.now(UTC)
pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")


class Repo(NamedTuple):
    feast: FeatureStore
    objects: dict


@pytest.fixture
def repo(online, tmp_path):
    """A repo with one pushed view, one keyed by two entities, one without entities."""
    (tmp_path / "feature_store.yaml").write_text(
        yaml.safe_dump(
            {
                "project": online.config.project,
                "registry": "registry.db",
                "provider": "local",
                "entity_key_serialization_version": 3,
                "offline_store": {"type": "dask"},
                "online_store": online.options,
            }
        )
    )
    ages = [timedelta(hours=5), timedelta(hours=30), timedelta(hours=1), timedelta(minutes=2)]
    frame = pd.DataFrame(
        {
            "driver": ["a", "b", "a", "c"],
            "trip": [1, 2, 1, 3],
            "count": [1, 2, 3, 4],
            "rate": [1.5, 2.0, 2.5, None],
            "at": [NOW - age for age in ages],
        }
    )
    frame.to_parquet(tmp_path / "trips.parquet")
    source = FileSource(path=str(tmp_path / "trips.parquet"), timestamp_field="at")
    driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.STRING)
    trip = Entity(name="trip", join_keys=["trip"], value_type=ValueType.INT64)
    push = PushSource(name="pushed", batch_source=source)
    key = Field(name="driver", dtype=String)
    count = Field(name="count", dtype=Int64)
    trips = FeatureView(
        name="trips",
        entities=[driver],
        schema=[key, count, Field(name="rate", dtype=Float32)],
        source=push,
        ttl=timedelta(hours=24),
    )
    both = FeatureView(
        name="both",
        entities=[driver, trip],
        schema=[key, Field(name="trip", dtype=Int64), count],
        source=source,
        ttl=timedelta(0),
    )
    whole = FeatureView(name="whole", entities=[], schema=[count], source=source)

    @on_demand_feature_view(
        sources=[trips, RequestSource(name="asked", schema=[Field(name="extra", dtype=Int64)])],
        schema=[Field(name="total", dtype=Float64)],
        mode="pandas",
    )
    def sums(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"total": inputs["count"].astype("float64") + inputs["extra"]})

    service = FeatureService(name="service", features=[trips, both, sums])
    objects = {item.name: item for item in (driver, trip, push, trips, both, whole, sums, service)}
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply(list(objects.values()))
    yield Repo(store, objects)
    store._get_provider().online_store.release()


def _states(response, name):
    """Feast's statuses of one feature, as names."""
    place = list(response.proto.metadata.feature_names.val).index(name)
    return [FieldStatus.Name(code) for code in response.proto.results[place].statuses]


def test_materialize_and_read_with_true_statuses(repo):
    repo.feast.materialize(NOW - timedelta(days=3), NOW)
    asked = [{"driver": name} for name in ("c", "a", "none", "b", "a")]
    response = repo.feast.get_online_features(["trips:count", "trips:rate"], asked)
    assert response.to_dict() == {
        "driver": ["c", "a", "none", "b", "a"],
        "count": [4, 3, None, None, 3],
        "rate": [None, 2.5, None, None, 2.5],
    }
    found = ["PRESENT", "PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE", "PRESENT"]
    assert _states(response, "count") == found
    assert _states(response, "rate") == ["NULL_VALUE", *found[1:]]
    place = list(response.proto.metadata.feature_names.val).index("count")
    times = response.proto.results[place].event_timestamps
    # pandas keeps microseconds in the Parquet file
    assert times[1].ToDatetime(tzinfo=UTC) == NOW - timedelta(hours=1)
    assert times[2].ToDatetime().year == 1970


def test_a_service_with_two_keys_and_an_on_demand_view(repo):
    repo.feast.materialize(NOW - timedelta(days=3), NOW)
    service = repo.feast.get_feature_service("service")
    rows = [{"driver": "a", "trip": 1, "extra": 10}, {"driver": "a", "trip": 2, "extra": 20}]
    for answer in (
        repo.feast.get_online_features(service, rows, full_feature_names=True),
        asyncio.run(repo.feast.get_online_features_async(service, rows, full_feature_names=True)),
    ):
        values = answer.to_dict()
        assert values["both__count"] == [3, None]
        assert values["trips__count"] == [3, 3]
        assert values["sums__total"] == [13.0, 23.0]
    alone = repo.feast.get_online_features(["whole:count"], [{"driver": "a"}])
    assert alone.to_dict()["count"] == [4]
    with pytest.raises(KeyError, match=r"Missing join key values for keys: .*trip"):
        repo.feast.get_online_features(["both:count"], [{"driver": "a"}])


def test_a_push_never_goes_back_in_time_and_an_old_window_undoes_nothing(repo):
    repo.feast.materialize(NOW - timedelta(days=3), NOW)

    def push(name, count, age):
        frame = {"driver": [name], "count": [count], "rate": [0.5], "at": [NOW - age]}
        repo.feast.push("pushed", pd.DataFrame(frame))

    def read():
        asked = [{"driver": name} for name in "ab"]
        return repo.feast.get_online_features(["trips:count"], asked).to_dict()["count"]

    push("a", 9, timedelta(hours=2))
    push("b", 7, timedelta(minutes=1))
    assert read() == [3, 7]
    # By name: Feast's list of all views can be one whose dummy keys a read has taken away.
    older = NOW - timedelta(hours=4)
    repo.feast.materialize(NOW - timedelta(days=3), older, feature_views=["trips", "both"])
    assert read() == [3, 7]
    repo.feast.write_to_online_store(
        "trips",
        pd.DataFrame({"driver": ["a"], "count": [11], "rate": [None], "at": [NOW]}),
    )
    assert read() == [11, 7]


def _post(port, path, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.loads(answer.read() or b"null")  # of a push it is empty


@pytest.mark.parametrize(
    "online",
    ["sqlite", pytest.param("redis", marks=pytest.mark.service("redis-server"))],
    indirect=True,
)
def test_feasts_own_server_reads_and_writes(repo, free_port):
    repo.feast.materialize(NOW - timedelta(days=3), NOW)
    port = free_port()
    feast = Path(sys.executable).with_name("feast")
    command = [feast, "serve", "-h", "127.0.0.1", "-p", str(port), "-w", "1", "--no-access-log"]
    with subprocess.Popen(command, cwd=repo.feast.repo_path, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    assert server.poll() is None
                    time.sleep(0.1)
            asked = {"features": ["trips:count"], "entities": {"driver": ["a", "b", "none"]}}

            def read():
                _, count = _post(port, "get-online-features", asked)["results"]
                return list(zip(count["values"], count["statuses"], strict=True))

            gone = (None, "NOT_FOUND")
            assert read() == [(3, "PRESENT"), (None, "OUTSIDE_MAX_AGE"), gone]
            for path, target, values in (
                ("push", {"push_source_name": "pushed", "to": "online"}, ["b", 7]),
                ("write-to-online-store", {"feature_view_name": "trips"}, ["a", 11]),
            ):
                row = {"driver": values[:1], "count": values[1:], "rate": [0.5]}
                _post(port, path, {**target, "df": {**row, "at": [str(NOW)]}})
            assert read() == [(11, "PRESENT"), (7, "PRESENT"), gone]
        finally:
            server.terminate()


def test_a_dropped_view_leaves_nothing(repo, online):
    repo.feast.materialize(NOW - timedelta(days=3), NOW)
    view = repo.objects["both"]
    assert sum(batch.num_rows for batch in online.store.scan(online.config, view)) == 3
    narrow = FeatureService(name="service", features=[repo.objects["trips"]])
    kept = [item for name, item in repo.objects.items() if name not in ("both", "service")]
    repo.feast.apply([*kept, narrow], objects_to_delete=[view], partial=False)
    assert list(online.store.scan(online.config, view)) == []
    assert sum(b.num_rows for b in online.store.scan(online.config, repo.objects["trips"])) == 3
    repo.feast.teardown()
    assert list(online.store.scan(online.config, repo.objects["trips"])) == []
