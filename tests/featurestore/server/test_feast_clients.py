"""Feast's own clients against our edge: its remote online store reads, writes and pushes."""

import http.client
import json
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from feast import FeatureStore

from steadfeast import Store
from steadfeast.featurestore.server import Edge
from support.small_repo import MICROS, SmallRepo, hour

PUSHED = """
from feast import PushSource
file = FileSource(name="s", path="data/s.parquet", timestamp_field="at",
                  created_timestamp_column="made")
stream = PushSource(name="stream", batch_source=file)
view = FeatureView(
    name="view", entities=[e], ttl=timedelta(days=0), source=stream,
    schema=[Field(name="v", dtype=Int64), Field(name="b", dtype=Bytes),
            Field(name="t", dtype=UnixTimestamp), Field(name="l", dtype=Array(Float64)),
            Field(name="s", dtype=String), Field(name="f", dtype=Float32)],
)
svc = FeatureService(name="svc", features=[view])
"""
COLUMNS = {
    "k": pa.int64(), "at": MICROS, "made": MICROS, "v": pa.int64(), "b": pa.binary(),
    "t": MICROS, "l": pa.list_(pa.float64()), "s": pa.string(), "f": pa.float32(),
}  # fmt: skip
LARGE = 2**53 + 1
CELLS = {
    "v": [LARGE, LARGE + 2],  # Feast's client rounds them beside a null, before it sends
    "b": [None, None],  # Feast's client has no way to send bytes
    "t": [datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC), None],
    "l": [[1.5, -0.0], [2.0]],  # it cannot read an empty one
    "s": ["ü", None],
    "f": [0.5, None],
}


@pytest.fixture
def repo(tmp_path):
    made = SmallRepo(tmp_path / "repo", PUSHED)
    made.write(pa.table({name: pa.array([], to) for name, to in COLUMNS.items()}))
    return made


@pytest.fixture
def edge(repo):
    with Store.open(repo.config) as store:
        store.apply()
        with Edge(store, "127.0.0.1:0", "127.0.0.1:0") as running:
            running.store = store
            yield running


def remote(repo, edge, folder):
    """Feast's SDK with the registry of the repo and our edge as its online store."""
    folder.mkdir()
    config = yaml.safe_load((repo.folder / "feature_store.yaml").read_text())
    config["registry"] = str(repo.folder / config["registry"])
    config["online_store"] = {"type": "remote", "path": f"http://127.0.0.1:{edge.http_port}"}
    del config["offline_store"]
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return FeatureStore(repo_path=str(folder))


def frame(now):
    return pd.DataFrame(
        {
            "k": [1, 2],
            "at": [now, now],
            "made": [now, now],
            **{name: pd.Series(values, dtype=object) for name, values in CELLS.items()},
        }
    )


@pytest.mark.filterwarnings("ignore")
def test_feasts_remote_online_store_writes_and_reads_every_cell(repo, edge, tmp_path):
    now = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)
    client = remote(repo, edge, tmp_path / "client")
    client.write_to_online_store("view", frame(now))
    by_us = edge.store.online_features("svc", [{"k": 1}, {"k": 2}]).to_dict()
    assert {name: by_us[name] for name in CELLS} == CELLS
    asked = [f"view:{name}" for name in CELLS if name != "b"]
    by_feast = client.get_online_features(asked, [{"k": 1}, {"k": 2}]).to_dict()
    # What Feast's SDK says of the same rows without a server between them.
    direct = edge.store.feast.get_online_features(asked, [{"k": 1}, {"k": 2}]).to_dict()
    assert by_feast["v"][0] == direct["v"][0] == LARGE
    assert {name: by_feast[name] for name in ("s", "f", "l")} == {
        name: direct[name] for name in ("s", "f", "l")
    }


def send(edge, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", edge.http_port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


ROW = {
    "k": [7],
    "at": [hour(1).isoformat()],
    "made": [hour(1).timestamp()],
    "v": [LARGE],
    "b": ["AP8="],
    "t": [1714979289],
    "l": [[1.5]],
    "s": ["x"],
    "f": [None],
}


@pytest.mark.parametrize("to", ["online", "offline", "online_and_offline"])
def test_a_push_goes_where_it_is_sent(edge, to):
    code, answer = send(edge, "/push", {"push_source_name": "stream", "df": ROW, "to": to})
    assert (code, answer) == (200, None)
    online = edge.store.online_features("svc", [{"k": 7}], request_time=hour(2)).to_dict()
    later = datetime.now(UTC) + timedelta(seconds=1)
    offline = edge.store.training_set([{"k": 7, "event_timestamp": later}], "svc").table
    want = {"v": LARGE, "b": b"\x00\xff", "s": "x", "l": [1.5], "f": None}
    for there, got in (
        (to != "offline", {name: online[name][0] for name in want}),
        (to != "online", {name: offline[name][0].as_py() for name in want}),
    ):
        assert got == (want if there else dict.fromkeys(want))


@pytest.mark.parametrize(
    ("path", "change", "code", "words"),
    [
        ("/push", {"push_source_name": "streams"}, 404, "did you mean stream"),
        ("/push", {"to": "nowhere"}, 422, "to"),
        ("/push", {"df": ROW | {"v": ["x"]}}, 422, "df.v"),
        ("/push", {"df": ROW | {"t": [10**19]}}, 422, "df.t"),
        ("/push", {"df": ROW | {"at": ["yesterday"]}}, 422, "df.at"),
        ("/push", {"df": ROW | {"v": [1, 2]}}, 422, "lengths"),
        ("/push", {"df": {n: c for n, c in ROW.items() if n != "at"}}, 422, "'at'"),
        ("/write-to-online-store", {"feature_view_name": "views"}, 404, "did you mean view"),
        ("/write-to-online-store", {"df": {n: c for n, c in ROW.items() if n != "k"}}, 422, "'k'"),
    ],
)
def test_rows_that_are_none_are_refused_by_name_and_nothing_is_written(
    edge, path, change, code, words
):
    body = {"push_source_name": "stream", "feature_view_name": "view", "df": ROW} | change
    status, answer = send(edge, path, body)
    assert status == code
    assert words in answer["detail"]
    assert edge.store.online_features("svc", [{"k": 7}], request_time=hour(2)).to_dict() == {
        "k": [7],
        **{name: [None] for name in CELLS},
    }
