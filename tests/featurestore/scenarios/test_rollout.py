"""Two contracts at once: what a model was trained under is served beside what was applied since.

The oracle is the answer that the store gave before the change, cell for cell.
"""

from __future__ import annotations

import http.client
import json
import zipfile
from datetime import UTC, datetime, timedelta

import grpc
import pyarrow as pa
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from steadfeast import Store
from steadfeast.featurestore.definitions import repo
from steadfeast.featurestore.errors import ArchiveError, ContractMismatchError
from steadfeast.featurestore.server.grpc_server import Edge
from steadfeast.protos.steadfeast.v1 import features_pb2, features_pb2_grpc

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")

ASKED = pa.table(
    {
        "user_id": pa.array([1, 2, 3, 4], pa.int64()),
        "item_id": ["a", "b", "a", None],
        "amount": [10.0, 2.0, 3.0, 4.0],
    }
)


def user(number, at, written=None, **values):
    return {"user_id": number, "at": at, "written": written or at, **values}


ROWS = [
    user(1, NOON - HOUR, spend=4.0, visits=7, city="Bern"),
    user(2, NOON - 30 * HOUR, spend=8.0, visits=3, city="Graz"),
    user(3, NOON - HOUR),
]
ITEMS = [{"item_id": "a", "at": NOON - 9 * DAY, "price": 2.5}]


@pytest.fixture
def stocked(shop):
    shop.write(ROWS, ITEMS)
    with Store.open(shop.config) as store:
        store.materialize(NOON)
    return shop


def served(store, contract=None):
    return store.online_features("purchase", ASKED, request_time=NOON, contract=contract)


def moved(store, shop, *edits):
    """Apply edits; return the contract of before and what it served."""
    before = served(store)
    before.table  # noqa: B018 - computed now, before anything changes
    for file, old, new in edits:
        shop.edit(file, old, new)
    store.apply()
    assert store.contract("purchase").sha256 != before.contract
    return before


LIVE = {
    "a longer TTL": [("features.py", "timedelta(days=1)", "timedelta(days=2)")],
    "a shorter TTL": [("features.py", "timedelta(days=1)", "timedelta(minutes=1)")],
    "another on-demand function": [("features.py", '["visits"] - 1', '["visits"] + 41')],
    "another helper": [("helpers.py", "FLOOR = 1.0", "FLOOR = 8.0")],
    "fewer features": [("features.py", "[users, items, affinity, words]", "[users, items]")],
    "a feature more in the view": [
        (
            "features.py",
            'Field(name="visits", dtype=Int64),',
            'Field(name="visits", dtype=Int64), Field(name="written_by", dtype=String),',
        )
    ],
    "no request field any more": [
        ("features.py", "sources=[basket, users, items]", "sources=[users, items]"),
        ("features.py", 'ratio(inputs["amount"], ', 'ratio(inputs["spend"], '),
    ],
}


@pytest.mark.parametrize("edits", LIVE.values(), ids=LIVE)
def test_a_contract_of_before_is_served_beside_the_one_of_now(stocked, edits):
    with Store.open(stocked.config) as store:
        if "written_by" in edits[0][2]:  # the source has the column before the view does
            stocked.write(ROWS, ITEMS)
            path = stocked.data / "sources" / "users.parquet"
            table = pa.parquet.read_table(path)
            names = pa.array([None] * table.num_rows, pa.string())
            pa.parquet.write_table(table.append_column("written_by", names), path)
        before = moved(store, stocked, *edits)
        store.materialize(NOON, since=NOON - 9 * DAY)  # rows of the new layout
        beside = served(store, before.contract)
        assert beside.contract == before.contract
        assert beside.table.schema.equals(before.table.schema)
        assert repr(beside.table.to_pydict()) == repr(before.table.to_pydict())
        for name, codes in before.statuses.items():
            assert beside.statuses[name].tolist() == codes.tolist()
        now = store.bundle("purchase").plan
        asked = ASKED.select(list(now.entity_columns))
        new = store.online_features("purchase", asked, request_time=NOON)
        assert new.contract == store.contract("purchase").sha256
        assert repr(new.table.to_pydict()) != repr(before.table.to_pydict())
    with Store.open(stocked.config) as store:  # another process, which never saw the old one
        beside = served(store, before.contract)
        assert repr(beside.table.to_pydict()) == repr(before.table.to_pydict())


REFUSED = {
    "another source": (
        [("features.py", "data/sources/users.parquet", "data/sources/others.parquet")],
        "view users: what is online is from another source now",
    ),
    "another type": (
        [("features.py", 'name="price", dtype=Float32', 'name="price", dtype=Float64')],
        "view items: feature price is double online now",
    ),
    "a feature gone": (
        [
            ("features.py", 'Field(name="visits", dtype=Int64),', ""),
            ("features.py", 'inputs["visits"] - 1', "1"),
        ],
        "view users: feature visits is not online now",
    ),
    "not online": (
        [
            ("features.py", "    ttl=timedelta(0),", "    ttl=timedelta(0), online=False,"),
            ("helpers.py", "FLOOR = 1.0", "FLOOR = 8.0"),
        ],
        "view items: is not online now",
    ),
    "a late row may be missing": (
        [("features.py", "ttl=timedelta(0)", "ttl=timedelta(days=30)")],
        "view items: rows that come late are brought online only within the shorter TTL of now",
    ),
}


@pytest.mark.parametrize(("edits", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_contract_whose_values_are_not_online_is_refused(stocked, edits, reason):
    others = stocked.data / "sources" / "others.parquet"
    others.write_bytes((stocked.data / "sources" / "users.parquet").read_bytes())
    with Store.open(stocked.config) as store:
        before = moved(store, stocked, *edits)
        with pytest.raises(ContractMismatchError) as caught:
            served(store, before.contract)
        error = caught.value
        assert (error.asked, error.served) == (before.contract, store.contract("purchase").sha256)
        assert error.reasons == (reason,)
        assert error.differences
        # What is made under it can be computed offline all the same.
        frame = ASKED.append_column("event_timestamp", pa.array([NOON] * 4))
        features = before.table.drop_columns(ASKED.column_names)
        replayed = store.point_in_time("purchase", frame, contract=before.contract)
        assert repr(replayed.to_pydict()) == repr(features.to_pydict())


def test_what_was_never_kept_or_no_longer_makes_the_contract_is_refused(stocked, monkeypatch):
    with Store.open(stocked.config) as store:
        before = moved(store, stocked, *LIVE["another helper"])
        with pytest.raises(ContractMismatchError, match="never applied"):
            served(store, "0" * 64)
        with pytest.raises(ContractMismatchError, match="never applied"):
            served(store, "../" + before.contract)
    kept = stocked.data / "contracts" / f"{before.contract}.zip"
    whole = kept.read_bytes()
    kept.unlink()
    with (
        Store.open(stocked.config) as store,
        pytest.raises(ContractMismatchError, match="no definitions were kept with it"),
    ):
        served(store, before.contract)
    kept.write_bytes(whole)
    monkeypatch.setattr("steadfeast.featurestore.definitions.contract.version", lambda _: "99.0")
    with Store.open(stocked.config) as store, pytest.raises(ContractMismatchError) as caught:
        served(store, before.contract)
    assert caught.value.reasons[0] == "its definitions make another contract here"
    assert any("library duckdb" in reason for reason in caught.value.reasons)


def test_code_that_imports_when_it_is_called_is_not_mixed_with_that_of_now(stocked):
    late = '["visits"] - 1', '["visits"] - __import__("math").floor(1)'
    lazily = 'return pd.DataFrame(\n        {\n            "share": ratio('
    stocked.edit("features.py", lazily, "from helpers import ratio as late\n    " + lazily.replace(
        "ratio(", "late("))  # fmt: skip
    stocked.edit("features.py", *late)
    with Store.open(stocked.config) as store:
        store.apply()
        before = moved(store, stocked, *LIVE["another helper"])
        with pytest.raises(ContractMismatchError, match="imports helpers when it is called"):
            served(store, before.contract)


def test_code_of_then_leaves_no_trace_among_the_modules_of_now(stocked):
    with Store.open(stocked.config) as store:
        before = moved(store, stocked, *LIVE["another helper"])
        assert served(store, before.contract).table["share"].to_pylist()[0] == 2.5
        assert repo.on_demand_views(stocked.folder)  # imports what is there now
        now = served(store)
        assert now.table["share"].to_pylist()[0] == 1.25
        assert now.contract != before.contract


def test_a_training_set_of_before_replays_under_its_own_definitions(stocked):
    frame = ASKED.append_column("event_timestamp", pa.array([NOON] * 4))
    with Store.open(stocked.config) as store:
        built = store.training_set(frame, "purchase")
        edits = [edit for edits in LIVE.values() for edit in edits][:4]
        moved(store, stocked, *edits[:1], *edits[2:])
        assert store.replay(built.path / "manifest.json").equals(built.table)


def test_apply_says_whether_requests_for_the_contract_of_a_live_model_go_on(stocked):
    with Store.open(stocked.config) as store:
        got = served(store)
        ids = [str(n) for n in range(got.rows)]
        store.served.append(
            "purchase", got, request_ids=ids, request_time=NOON, model="m", model_version="7"
        )
        store.served.flush()
        stocked.edit(*LIVE["another helper"][0])
        change = store.live_changes()["purchase"]
        assert change.models == (("m", "7"),)
        assert change.obstacles == ()
        (edit,) = REFUSED["another type"][0]
        stocked.edit(*edit)
        assert store.live_changes()["purchase"].obstacles == (REFUSED["another type"][1],)


def test_both_edges_serve_both_contracts_and_refuse_with_both_hashes_and_the_difference(stocked):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ASKED.schema) as writer:
        writer.write_table(ASKED)
    with Store.open(stocked.config) as store:
        before = moved(store, stocked, *LIVE["another on-demand function"])
        now = store.contract("purchase").sha256
        with Edge(store, "127.0.0.1:0", "127.0.0.1:0") as edge:

            def over_grpc(contract):
                with grpc.insecure_channel(f"127.0.0.1:{edge.grpc_port}") as channel:
                    request = features_pb2.GetFeaturesRequest(
                        service="purchase", entities=sink.getvalue().to_pybytes(), contract=contract
                    )
                    request.request_time.FromDatetime(NOON)
                    stub = features_pb2_grpc.FeatureServiceStub(channel)
                    got = stub.GetFeatures(request, timeout=30)
                    table = pa.ipc.open_stream(got.features).read_all()
                    return got.contract, table["more_visits"].to_pylist()

            def over_http(contract):
                body = {
                    "feature_service": "purchase",
                    "entities": ASKED.to_pydict(),
                    "contract": contract,
                }
                connection = http.client.HTTPConnection("127.0.0.1", edge.http_port, timeout=30)
                connection.request("POST", "/get-online-features", json.dumps(body))
                answer = connection.getresponse()
                content = answer.status, json.loads(answer.read())
                connection.close()
                return content

            assert over_grpc(before.contract) == (before.contract, [6, None, None, None])
            assert over_grpc(now) == (now, [48, None, None, None])
            assert over_http(before.contract)[0] == over_http(now)[0] == 200
            stocked.edit(*REFUSED["another type"][0][0])
            store.apply()
            with pytest.raises(grpc.RpcError) as caught:
                over_grpc(before.contract)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            info = ErrorInfo()
            rpc_status.from_call(caught.value).details[0].Unpack(info)
            assert info.metadata["asked"] == before.contract
            assert info.metadata["served"] == store.contract("purchase").sha256
            assert "became" in info.metadata["differences"]
            assert "price is double online now" in info.metadata["reasons"]
            status, said = over_http(before.contract)
            assert status == 409
            assert before.contract in said["detail"]
            assert "price is double online now" in said["detail"]


def altered(path, marker):
    """Make a kept archive run code when its module is imported; no function changes."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["code/features.py"] += f"\nopen({str(marker)!r}, 'w').close()\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("what", ["altered", "altered, and its hash gone", "cut short"])
def test_nothing_of_a_changed_archive_runs(stocked, tmp_path, what):
    """Not when it is asked for, replayed or audited; and not when it is unpacked."""
    marker = tmp_path / "ran"
    with Store.open(stocked.config) as store:
        before = moved(store, stocked, ("features.py", "timedelta(days=1)", "timedelta(days=2)"))
    archive = stocked.data / "contracts" / f"{before.contract}.zip"
    altered(archive, marker)
    if what == "altered, and its hash gone":
        archive.with_suffix(".zip.sha256").unlink()
    elif what == "cut short":
        archive.write_bytes(archive.read_bytes()[:-9])
    with Store.open(stocked.config) as store:
        for ask in (served, lambda store, contract: store.bundle_of_then("purchase", contract)):
            with pytest.raises(ContractMismatchError, match=archive.name):
                ask(store, before.contract)
    assert not marker.exists()


def test_a_changed_archive_is_kept_anew_when_its_contract_is_applied_again(stocked, tmp_path):
    with Store.open(stocked.config) as store:
        before = served(store)
        altered(stocked.data / "contracts" / f"{before.contract}.zip", tmp_path / "ran")
        store.apply()
        moved(store, stocked, ("features.py", "timedelta(days=1)", "timedelta(days=2)"))
        assert served(store, before.contract).table == before.table
    assert not (tmp_path / "ran").exists()


def test_a_contract_that_is_another_than_its_name_says_is_refused(stocked):
    with Store.open(stocked.config) as store:
        contract = store.contract("purchase").sha256
        path = stocked.data / "contracts" / f"{contract}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "layout": 99}))
        with pytest.raises(ArchiveError, match=path.name):
            store.kept_contract(contract)
