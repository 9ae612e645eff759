"""The edge on real sockets: what the store says, as Feast's own server would word it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import pyarrow as pa
import pytest
from feast.feature_server_utils import convert_response_to_dict
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from steadfeast import Store
from steadfeast.featurestore import errors
from steadfeast.featurestore.server.grpc_server import SERVICE, Edge
from steadfeast.featurestore.server.metrics import (
    ANSWERS,
    DURATION,
    MAX_REQUEST_BYTES,
    REQUESTS,
    ROWS,
    VALUES,
    answer_of,
)
from steadfeast.protos.steadfeast.v1 import features_pb2, features_pb2_grpc

NOW = datetime.now(UTC).replace(microsecond=250_000)
pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")


@pytest.fixture
def store(shop):
    def row(age, **values):
        return {"at": NOW - age, **values}

    users = [
        row(timedelta(hours=1), user_id=1, spend=4.0, visits=2**62 + 1, city="Bern"),
        row(timedelta(days=2), user_id=2, spend=9.0, visits=3, city="Graz"),
        row(timedelta(hours=2), user_id=3, spend=float("nan"), visits=None, city=None),
    ]
    items = [row(timedelta(days=9), item_id="a", price=0.1, listed=NOW - timedelta(days=30))]
    shop.write([{"written": user["at"], **user} for user in users], items)
    with Store.open(shop.config) as opened:
        opened.materialize(NOW)
        yield opened


@pytest.fixture
def edge(store):
    with Edge(store, "127.0.0.1:0", "127.0.0.1:0") as running:
        yield running


@pytest.fixture
def channel(edge):
    with grpc.insecure_channel(f"127.0.0.1:{edge.grpc_port}") as opened:
        yield opened


ENTITIES = pa.table(
    {
        "user_id": pa.array([3, 1, 2, 7, 1], pa.int64()),
        "item_id": ["a", "a", "none", "a", "none"],
        "amount": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)


def _ipc(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _get(channel, table=ENTITIES, service="purchase", **more):
    stub = features_pb2_grpc.FeatureServiceStub(channel)
    entities = table if isinstance(table, bytes) else _ipc(table)
    request = features_pb2.GetFeaturesRequest(service=service, entities=entities, **more)
    return stub.GetFeatures(request, timeout=30)


def _http(edge, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", edge.http_port, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _post(edge, query):
    body = query if isinstance(query, bytes) else json.dumps(query)
    code, answer = _http(edge, "POST", "/get-online-features", body)
    return code, json.loads(answer)


def test_grpc_gives_the_very_columns_of_the_store(store, channel):
    expected = store.online_features("purchase", ENTITIES, request_time=NOW)
    request_time = features_pb2.GetFeaturesRequest().request_time
    request_time.FromDatetime(NOW)
    got = _get(channel, request_time=request_time, contract=expected.contract)
    table = pa.ipc.open_stream(got.features).read_all()
    assert table.schema.equals(expected.table.schema)
    assert repr(table.to_pydict()) == repr(expected.table.to_pydict())
    assert {name: list(codes) for name, codes in got.statuses.items()} == {
        name: codes.tolist() for name, codes in expected.statuses.items()
    }
    assert list(got.statuses["visits"]) == [2, 1, 4, 3, 1]
    assert got.contract == expected.contract


def test_request_time_moves_the_ttl(channel):
    def statuses(time):
        request_time = features_pb2.GetFeaturesRequest().request_time
        request_time.FromDatetime(time)
        return list(_get(channel, request_time=request_time).statuses["spend"])

    edge_of_ttl = NOW - timedelta(hours=1) + timedelta(days=1)  # of user 1
    assert statuses(edge_of_ttl)[1] == 1
    assert statuses(edge_of_ttl + timedelta(microseconds=1))[1] == 4


@pytest.mark.parametrize(
    ("change", "code", "reason", "words"),
    [
        ({"service": "purchases"}, "NOT_FOUND", "NotFoundError", "did you mean purchase"),
        ({"contract": "ab" * 32}, "FAILED_PRECONDITION", "ContractMismatchError", "abab"),
        ({"table": ENTITIES.drop_columns(["item_id"])}, "INVALID_ARGUMENT", "EntityRowsError",
         "item_id"),
        ({"table": b"no stream"}, "INVALID_ARGUMENT", "RequestError", "not an Arrow IPC stream"),
        ({"table": _ipc(ENTITIES)[:-40]}, "INVALID_ARGUMENT", "RequestError", "IPC stream"),
    ],
)  # fmt: skip
def test_grpc_errors_have_a_status_and_say_which(channel, change, code, reason, words):
    with pytest.raises(grpc.RpcError, match=words) as caught:
        _get(channel, **change)
    assert caught.value.code() == grpc.StatusCode[code]
    [detail] = rpc_status.from_call(caught.value).details
    info = ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == (reason, "steadfeast")


def test_a_request_that_is_too_large_is_refused(edge, channel):
    with pytest.raises(grpc.RpcError) as caught:
        _get(channel, b"x" * (MAX_REQUEST_BYTES + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    code, answer = _post(edge, b"[" + b" " * MAX_REQUEST_BYTES + b"]")
    assert (code, answer["error"]) == (413, "TooLargeError")


def _by_name(content):
    return dict(zip(content["metadata"]["feature_names"], content["results"], strict=True))


@pytest.mark.parametrize("full", [False, True])
def test_http_answers_a_service_with_feasts_json(store, edge, full):
    rows = ENTITIES.to_pydict()
    query = {"feature_service": "small", "entities": {"user_id": rows["user_id"]}}
    code, content = _post(edge, {**query, "full_feature_names": full})
    service = store.feast.get_feature_service("small")
    response = store.feast.get_online_features(service, query["entities"], full_feature_names=full)
    oracle = json.loads(json.dumps(convert_response_to_dict(response.proto)))
    assert code == 200
    assert content.keys() == oracle.keys()
    assert _by_name(content) == _by_name(oracle)


def test_http_answers_every_type_with_feasts_values_and_on_demand_views_with_the_stores(
    store, edge
):
    rows = ENTITIES.drop_columns(["amount"]).to_pydict()
    code, content = _post(edge, {"feature_service": "purchase", "entities": ENTITIES.to_pydict()})
    assert code == 200
    mine = _by_name(content)
    # Feast's SDK cannot run these on-demand views: the helpers that they call are not sent along.
    refs = ["users:spend", "users:visits", "users:city", "items:price", "items:listed"]
    oracle = convert_response_to_dict(store.feast.get_online_features(refs, rows).proto)
    feasts = _by_name(json.loads(json.dumps(oracle)))
    assert {name: mine[name] for name in feasts} == feasts
    assert mine["visits"]["values"][1] == 2**62 + 1
    got = store.online_features("purchase", ENTITIES, request_time=NOW).table
    for name in ("share", "more_visits", "label", "twice"):
        assert str(mine[name]["values"]).replace("'NaN'", "nan") == str(got[name].to_pylist())


def test_http_answers_a_list_of_features(edge):
    query = {"features": ["users:spend", "items:price"], "full_feature_names": True}
    rows = ENTITIES.drop_columns(["amount"]).to_pydict()
    code, content = _post(edge, {**query, "entities": rows})
    assert code == 200
    spend = _by_name(content)["users__spend"]
    assert spend["values"] == ["NaN", 4.0, None, None, 4.0]
    assert spend["statuses"] == [
        "PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND", "PRESENT"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        (b"{", 422, "body: is not JSON"),
        (b"[]", 422, "body"),
        ({"feature_service": "small"}, 422, "entities"),
        ({"feature_service": "smal", "entities": {"user_id": [1]}}, 404, "did you mean small"),
        ({"feature_service": "small", "entities": {}}, 422, "user_id"),
        ({"feature_service": "small", "entities": {"user_id": ["x"]}}, 422, "entities.user_id"),
        ({"feature_service": "small", "entities": {"user_id": [1], "b": []}}, 422, "lengths"),
        ({"feature_service": "small", "entities": {"user_id": [1]}, "contract": "0" * 64}, 409,
         "0000"),
        ({"features": ["nowhere:x"], "entities": {"user_id": [1]}}, 404, "nowhere"),
        ({"features": ["users:spend"], "entities": {"other": [1]}}, 422, "user_id"),
    ],
)  # fmt: skip
def test_http_errors_have_a_status_and_say_which(edge, query, code, words):
    status, answer = _post(edge, query)
    assert status == code
    assert words in answer["detail"]


def test_health_reflection_and_metrics(edge, channel):
    check = health_pb2_grpc.HealthStub(channel).Check
    for name in ("", SERVICE):
        status = check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    [listed] = reflect(iter([ask]), timeout=10)
    assert SERVICE in [item.name for item in listed.list_services_response.service]
    assert _http(edge, "GET", "/health") == (200, b"ok\n")

    _get(channel)
    _post(edge, {"feature_service": "small", "entities": {"user_id": [1, 2]}})
    for unknown in ("one", "two"):
        _post(edge, {"feature_service": unknown, "entities": {"user_id": [1]}})
    _, text = _http(edge, "GET", "/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }

    def value(name, **labels):
        return samples[name, *sorted(labels.items())]

    assert value(REQUESTS, edge="grpc", service="purchase", code="OK") == 1
    assert value(REQUESTS, edge="http", service="", code="NOT_FOUND") == 2
    assert value(ROWS, edge="http", service="small") == 2
    assert value(VALUES, service="small", status="OUTSIDE_MAX_AGE") == 1
    assert value(f"{DURATION}_count", edge="http", service="small") == 1
    assert not [key for key in samples if "one" in str(key)]


def test_thirty_two_clients_at_once_get_their_own_answers(store, edge, channel):
    expected = store.online_features("purchase", ENTITIES, request_time=NOW).to_dict()["visits"]

    def ask(i):
        if i % 2:
            table = pa.ipc.open_stream(_get(channel, ENTITIES.slice(i % 5, 1)).features).read_all()
            return table["visits"].to_pylist() == [expected[i % 5]]
        rows = ENTITIES.slice(i % 5, 1).to_pydict()
        code, content = _post(edge, {"feature_service": "purchase", "entities": rows})
        return code == 200 and _by_name(content)["visits"]["values"] == [expected[i % 5]]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(96)))


def test_every_error_has_an_answer():
    def below(kind):
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    for kind in below(errors.SteadfeastError):
        answer = answer_of(kind.__new__(kind))
        assert answer in ANSWERS.values()
        assert answer.grpc != grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize("address", ["0.0.0.0:0", "example.org:80", "127.0.0.1", "127.0.0.1:x"])
def test_plaintext_is_for_loopback_only(store, address):
    for pair in ((address, "127.0.0.1:0"), ("127.0.0.1:0", address)):
        with pytest.raises(errors.AddressError, match=address):
            Edge(store, *pair)


def test_a_taken_address_is_an_error(store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for pair in ((address, "127.0.0.1:0"), ("127.0.0.1:0", address)):
            with pytest.raises(errors.AddressError, match=address):
                Edge(store, *pair)


SERVE = """
import sys
from pathlib import Path
from steadfeast import Store
from steadfeast.featurestore.server.grpc_server import serve
with Store.open(Path(sys.argv[1])) as store:
    serve(store, "127.0.0.1:0", "127.0.0.1:0")
"""


@pytest.mark.usefixtures("store")
def test_a_process_serves_until_it_is_asked_to_stop(shop):
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(shop.config)], stdout=subprocess.PIPE, text=True
    ) as process:
        said = process.stdout.readline().split()
        port = int(said[4].rstrip(","))
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert _get(channel, service="small").statuses.keys() == {"spend"}
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def _start_workers(shop, count=2):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "steadfeast.featurestore.cli",
        "store",
        "serve",
    ]
    command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--workers", str(count)]
    process = subprocess.Popen(
        [*command, "-c", str(shop.config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stdout.readline().replace(",", "").split()
    assert said[-2:] == [str(count), "workers"], process.stderr.read()
    return process, int(said[4]), int(said[7])


def _children(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in children.split()]


def _lives(worker):
    return Path(f"/proc/{worker}").exists()


@pytest.mark.usefixtures("store")
def test_workers_serve_as_one_and_stop_as_one(shop):
    process, grpc_port, http_port = _start_workers(shop)
    edge = SimpleNamespace(http_port=http_port)
    with process:
        for _ in range(30):  # a connection each: the kernel chooses a worker by the port it is from
            query = {"feature_service": "small", "entities": {"user_id": [1]}}
            assert _post(edge, query)[0] == 200
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            assert _get(channel, service="small").statuses.keys() == {"spend"}
        for _ in range(6):  # whoever is scraped, the figures are of all
            lines = _http(edge, "GET", "/metrics")[1].decode().splitlines()
            [line] = [x for x in lines if x.startswith(REQUESTS) and 'edge="http"' in x]
            assert float(line.split()[-1]) == 30
            [line] = [x for x in lines if x.startswith(f"{DURATION}_count") and "http" in x]
            assert float(line.split()[-1]) == 30
        workers = _children(process)
        assert len(workers) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not list(filter(_lives, workers))


@pytest.mark.usefixtures("store")
def test_a_worker_that_dies_stops_the_server_and_an_orphan_stops_itself(shop):
    process, _, _ = _start_workers(shop)
    with process:
        first, second = _children(process)
        os.kill(first, signal.SIGKILL)
        assert process.wait(timeout=30) == 1
        assert "exit code -9" in process.stderr.read()
    assert not _lives(second)


@pytest.mark.usefixtures("store")
def test_a_killed_server_leaves_no_worker(shop):
    process, _, http_port = _start_workers(shop)
    with process:
        workers = _children(process)
        process.kill()
        process.wait(timeout=30)
        deadline = time.monotonic() + 30
        while list(filter(_lives, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        _http(SimpleNamespace(http_port=http_port), "GET", "/health")
