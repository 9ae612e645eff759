"""The edge on real sockets: what the store says, as Feast's own server would word it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import pyarrow as pa
import pytest
import yaml
from feast.feature_server_utils import convert_response_to_dict
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from steadfeast import Store
from steadfeast.featurestore import errors
from steadfeast.featurestore.server.bodies import MAX_REQUEST_BYTES
from steadfeast.featurestore.server.grpc_server import SERVICE, Edge
from steadfeast.featurestore.server.metrics import (
    AGE,
    ANSWERS,
    DURATION,
    REQUESTS,
    ROWS,
    VALUES,
    WAITING,
    answer_of,
)
from steadfeast.protos.steadfeast.v1 import features_pb2
from support.edge import ENTITIES, NOW, children, get, http_request, ipc, post, start_workers

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")


def test_grpc_gives_the_very_columns_of_the_store(store, channel):
    expected = store.online_features("purchase", ENTITIES, request_time=NOW)
    request_time = features_pb2.GetFeaturesRequest().request_time
    request_time.FromDatetime(NOW)
    got = get(channel, request_time=request_time, contract=expected.contract)
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
        return list(get(channel, request_time=request_time).statuses["spend"])

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
        ({"table": ipc(ENTITIES)[:-40]}, "INVALID_ARGUMENT", "RequestError", "IPC stream"),
    ],
)  # fmt: skip
def test_grpc_errors_have_a_status_and_say_which(channel, change, code, reason, words):
    with pytest.raises(grpc.RpcError, match=words) as caught:
        get(channel, **change)
    assert caught.value.code() == grpc.StatusCode[code]
    [detail] = rpc_status.from_call(caught.value).details
    info = ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == (reason, "steadfeast")


def test_a_request_that_is_too_large_is_refused(edge, channel):
    with pytest.raises(grpc.RpcError) as caught:
        get(channel, b"x" * (MAX_REQUEST_BYTES + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    code, answer = post(edge, b"[" + b" " * MAX_REQUEST_BYTES + b"]")
    assert (code, answer["title"]) == (413, "TooLargeError")


def _by_name(content):
    return dict(zip(content["metadata"]["feature_names"], content["results"], strict=True))


@pytest.mark.parametrize("full", [False, True])
def test_http_answers_a_service_with_feasts_json(store, edge, full):
    rows = ENTITIES.to_pydict()
    query = {"feature_service": "small", "entities": {"user_id": rows["user_id"]}}
    code, content = post(edge, {**query, "full_feature_names": full})
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
    code, content = post(edge, {"feature_service": "purchase", "entities": ENTITIES.to_pydict()})
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
    code, content = post(edge, {**query, "entities": rows})
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
    status, answer = post(edge, query)
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
    assert http_request(edge, "GET", "/health") == (200, b"ok\n")

    get(channel)
    post(edge, {"feature_service": "small", "entities": {"user_id": [1, 2]}})
    for unknown in ("one", "two"):
        post(edge, {"feature_service": unknown, "entities": {"user_id": [1]}})
    _, text = http_request(edge, "GET", "/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }

    def value(name, **labels):
        return samples[name, *sorted(labels.items())]

    assert value(REQUESTS, edge="grpc", service="purchase", code="OK") == 1
    assert value(REQUESTS, edge="http", service="", code="NOT_FOUND") == 2
    ages = {name[0]: samples[name] for name in samples if name[0].startswith(AGE)}
    assert ages[f"{AGE}_count"] > 0  # of the first request; the next ones are left out
    assert 0 < ages[f"{AGE}_sum"] / ages[f"{AGE}_count"] < timedelta(days=400).total_seconds()
    assert value(WAITING, service="small", kind="served") == 2
    assert value(ROWS, edge="http", service="small") == 2
    assert value(VALUES, service="small", status="OUTSIDE_MAX_AGE") == 1
    assert value(f"{DURATION}_count", edge="http", service="small") == 1
    assert not [key for key in samples if "one" in str(key)]


def test_thirty_two_clients_at_once_get_their_own_answers(store, edge, channel):
    expected = store.online_features("purchase", ENTITIES, request_time=NOW).to_dict()["visits"]

    def ask(i):
        if i % 2:
            table = pa.ipc.open_stream(get(channel, ENTITIES.slice(i % 5, 1)).features).read_all()
            return table["visits"].to_pylist() == [expected[i % 5]]
        rows = ENTITIES.slice(i % 5, 1).to_pydict()
        code, content = post(edge, {"feature_service": "purchase", "entities": rows})
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
    serve(store, "127.0.0.1:0", "127.0.0.1:0", Path(sys.argv[1]))
"""


@pytest.mark.usefixtures("store")
def test_a_process_serves_until_it_is_asked_to_stop(shop):
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(shop.config)], stdout=subprocess.PIPE, text=True
    ) as process:
        said = process.stdout.readline().split()
        port = int(said[4].rstrip(","))
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert get(channel, service="small").statuses.keys() == {"spend"}
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def _lives(worker):
    return Path(f"/proc/{worker}").exists()


@pytest.mark.usefixtures("store")
def test_workers_serve_as_one_and_stop_as_one(shop):
    process, grpc_port, http_port = start_workers(shop)
    edge = SimpleNamespace(http_port=http_port)
    with process:
        for _ in range(30):  # a connection each: the kernel chooses a worker by the port it is from
            query = {"feature_service": "small", "entities": {"user_id": [1]}}
            assert post(edge, query)[0] == 200
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            assert get(channel, service="small").statuses.keys() == {"spend"}
        for _ in range(6):  # whoever is scraped, the figures are of all
            lines = http_request(edge, "GET", "/metrics")[1].decode().splitlines()
            [line] = [x for x in lines if x.startswith(REQUESTS) and 'edge="http"' in x]
            assert float(line.split()[-1]) == 30
            [line] = [x for x in lines if x.startswith(f"{DURATION}_count") and "http" in x]
            assert float(line.split()[-1]) == 30
        workers = children(process)
        assert len(workers) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not list(filter(_lives, workers))


@pytest.mark.usefixtures("store")
def test_a_worker_that_dies_stops_the_server_and_an_orphan_stops_itself(shop):
    process, _, _ = start_workers(shop)
    with process:
        first, second = children(process)
        os.kill(first, signal.SIGKILL)
        assert process.wait(timeout=30) == 1
        assert "exit code -9" in process.stderr.read()
    assert not _lives(second)


@pytest.mark.usefixtures("store")
def test_a_killed_server_leaves_no_worker(shop):
    process, _, http_port = start_workers(shop)
    with process:
        workers = children(process)
        process.kill()
        process.wait(timeout=30)
        deadline = time.monotonic() + 30
        while list(filter(_lives, workers)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        http_request(SimpleNamespace(http_port=http_port), "GET", "/health")


@pytest.mark.service("redis-server")
def test_a_store_that_is_away_makes_the_edge_unready_and_not_dead(shop, start_redis, free_port):
    """A restart would not bring it back; a balancer has to send requests elsewhere."""
    port = free_port()
    path = shop.config.parent / "feature_store.yaml"
    plain = yaml.safe_load(path.read_text())
    url = f"redis://127.0.0.1:{port}/0"
    plain["online_store"] = {"type": "steadfeast.RedisOnlineStore", "url": url, "retries": 0}
    path.write_text(yaml.safe_dump(plain))
    server = start_redis(port)
    with Store.open(shop.config) as store, Edge(store, "127.0.0.1:0", "127.0.0.1:0") as edge:
        try:
            assert http_request(edge, "GET", "/readyz") == (200, b"ok\n")
        finally:
            server.terminate()
            server.wait()
        status, said = http_request(edge, "GET", "/readyz")
        assert (status, f"redis 127.0.0.1:{port}/0".encode() in said) == (503, True)
        assert http_request(edge, "GET", "/healthz") == (200, b"ok\n")
