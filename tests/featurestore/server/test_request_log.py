"""What an edge serves is in the served log, whoever asked, and what is sent of it later too."""

import http.client
import json
import os
import signal
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import grpc
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from steadfeast import Store
from steadfeast.featurestore.config import LogConfig
from steadfeast.featurestore.served_log import ServedLog
from steadfeast.featurestore.server import Edge
from steadfeast.protos.steadfeast.v1 import features_pb2, features_pb2_grpc
from support.edge import ENTITIES, NOW, children, get, post, start_workers

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an exp:RuntimeWarning")
ALL = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def logged(store, service="purchase"):
    store.served.flush()
    files = store.served.files(service, *ALL)
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("request_id")


def send(edge, path, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", edge.http_port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def moment(time):
    stamp = features_pb2.GetFeaturesRequest().request_time
    stamp.FromDatetime(time)
    return stamp


def verdict(store, invariant, service="purchase"):
    (check,) = [c for c in store.audit(service).checks if c.invariant == invariant]
    return check


def test_what_grpc_serves_is_logged_as_it_was_served(store, channel):
    ids = [f"order-{i}" for i in range(ENTITIES.num_rows)]
    named = {"request_ids": ids, "model": "fraud", "model_version": "7"}
    answer = get(channel, request_time=moment(NOW), **named)
    assert list(answer.request_ids) == ids
    assert answer.request_time.ToDatetime(tzinfo=UTC) == NOW
    table = logged(store)
    served = pa.ipc.open_stream(answer.features).read_all()
    times = pa.ipc.open_stream(answer.event_times).read_all()
    assert table["request_id"].to_pylist() == ids
    assert set(table["request_time"].to_pylist()) == {NOW}
    assert repr(table.select(served.column_names).to_pydict()) == repr(served.to_pydict())
    for view in times.column_names:
        assert table[f"{view}__event_timestamp"].to_pylist() == times[view].to_pylist()
    assert set(table["model"].to_pylist()) == {"fraud"}
    assert set(table["model_version"].to_pylist()) == {"7"}
    assert set(table["contract"].to_pylist()) == {answer.contract}
    for invariant in ("I2", "I4", "I11"):
        check = verdict(store, invariant)
        assert (check.ok, check.mismatches) == (True, {})


def test_a_request_without_names_is_named(store, channel):
    (single,) = get(channel, ENTITIES.slice(0, 1)).request_ids
    several = get(channel).request_ids
    whole = several[0].removesuffix("/0")
    assert list(several) == [f"{whole}/{i}" for i in range(5)]
    assert set(logged(store)["request_id"].to_pylist()) == {single, *several}


def test_metadata_names_a_request(store, channel):
    stub = features_pb2_grpc.FeatureServiceStub(channel)
    request = features_pb2.GetFeaturesRequest(service="small", entities=_ipc({"user_id": [1, 2]}))
    answer = stub.GetFeatures(request, timeout=30, metadata=[("x-request-id", "cart-1")])
    assert list(answer.request_ids) == ["cart-1/0", "cart-1/1"]
    assert logged(store, "small")["request_id"].to_pylist() == ["cart-1/0", "cart-1/1"]


def _ipc(columns):
    table = pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_what_http_serves_is_logged_under_the_name_that_is_answered(store, edge):
    body = {"feature_service": "purchase", "entities": ENTITIES.to_pydict(), "model": "fraud"}
    code, content, headers = send(edge, "/get-online-features", body, **{"x-request-id": "a-7"})
    assert (code, headers["x-request-id"]) == (200, "a-7")
    table = logged(store)
    assert table["request_id"].to_pylist() == [f"a-7/{i}" for i in range(5)]
    assert (
        table["visits"].to_pylist()
        == content["results"][content["metadata"]["feature_names"].index("visits")]["values"]
    )
    assert set(table["model"].to_pylist()) == {"fraud"}
    _, _, headers = send(edge, "/get-online-features", body | {"request_ids": list("vwxyz")})
    assert len(headers["x-request-id"]) == 32
    assert logged(store)["request_id"].to_pylist()[-5:] == list("vwxyz")
    assert verdict(store, "I11").ok


@pytest.mark.parametrize(
    ("change", "headers", "words"),
    [
        ({}, {"x-request-id": "two words"}, "x-request-id"),
        ({}, {"x-request-id": "a" * 201}, "x-request-id"),
        ({"request_ids": ["a"]}, {}, "request_ids: are 1 for 2 rows"),
        ({"request_ids": ["a", "a"]}, {}, "1 of 2 are double"),
    ],
)
def test_names_that_are_none_are_refused_and_nothing_is_logged(store, edge, change, headers, words):
    body = {"feature_service": "small", "entities": {"user_id": [1, 2]}, **change}
    code, answer, _ = send(edge, "/get-online-features", body, **headers)
    assert code == 422
    assert words in answer["detail"]
    assert store.served.counters("small").rows == 0


def test_by_configuration_others_log(shop, store):
    config = store.config.model_copy(update={"log": LogConfig(edge=False)})
    with Store(config, file=shop.config) as quiet, Edge(quiet, "[::1]:0", "127.0.0.1:0") as edge:
        assert post(edge, {"feature_service": "small", "entities": {"user_id": [1]}})[0] == 200
        assert quiet.served.counters("small").rows == 0


def _later(kind, entries, **more):
    one = features_pb2.Label if kind == "labels" else features_pb2.Prediction
    shape = getattr(features_pb2, f"Log{kind.capitalize()}Request")
    return shape(**{kind: [one(request_id=name, value=value) for name, value in entries]}, **more)


def test_labels_and_predictions_come_in_by_streams_and_are_on_disk_when_answered(store, channel):
    ids = get(channel, request_ids=list("abcde")).request_ids
    stub = features_pb2_grpc.FeatureServiceStub(channel)
    said = [
        _later("predictions", [("a", 0.5), ("b", 0.25)], service="purchase", model="m",
               model_version="3"),
        _later("predictions", [("c", 1.0)]),
    ]  # fmt: skip
    assert stub.LogPredictions(iter(said), timeout=30).accepted == 3
    outcomes = [_later("labels", [(name, 1.0)], service="purchase") for name in ids]
    assert stub.LogLabels(iter(outcomes), timeout=30).accepted == 5
    assert stub.LogLabels(iter(outcomes), timeout=30).accepted == 5  # again changes nothing
    (file,) = store.served.prediction_files("purchase", *ALL)
    columns = ["request_id", "prediction", "model", "model_version"]
    assert pq.read_table(file).select(columns).sort_by("request_id").to_pydict() == {
        "request_id": ["a", "b", "c"],
        "prediction": [0.5, 0.25, 1.0],
        "model": ["m"] * 3,
        "model_version": ["3"] * 3,
    }
    labels = [pq.read_table(file) for file in store.served.label_files("purchase", *ALL)]
    assert sorted(pa.concat_tables(labels)["request_id"].to_pylist()) == sorted([*ids, *ids])
    assert verdict(store, "I11").ok


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([_later("labels", [("a", 1.0)], service="purchases")], "NOT_FOUND", "did you mean"),
        ([_later("labels", [("a", 1.0)])], "NOT_FOUND", "feature service"),
        ([_later("labels", [("", 1.0)], service="small")], "INVALID_ARGUMENT", "request ids"),
        ([_later("labels", [("a", 1.0), ("a", 0.0)], service="small")], "INVALID_ARGUMENT",
         "double"),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_refused_by_name(channel, messages, code, words):
    stub = features_pb2_grpc.FeatureServiceStub(channel)
    with pytest.raises(grpc.RpcError, match=words) as caught:
        stub.LogLabels(iter(messages), timeout=30)
    assert caught.value.code() == grpc.StatusCode[code]


def test_labels_and_predictions_come_in_over_http(store, edge):
    body = {"feature_service": "small", "entities": {"user_id": [1]}, "request_ids": ["r1"]}
    assert send(edge, "/get-online-features", body)[0] == 200
    known = (NOW + timedelta(days=2)).isoformat()
    labels = {"service": "small", "labels": [{"request_id": "r1", "value": 1, "time": known}]}
    assert send(edge, "/labels", labels)[:2] == (202, {"accepted": 1})
    said = {"service": "small", "model": "m", "model_version": "3"}
    said["predictions"] = [{"request_id": "r1", "value": 0.75}]
    assert send(edge, "/predictions", said)[:2] == (202, {"accepted": 1})
    store.served.flush()
    (file,) = store.served.label_files("small", *ALL)
    (label,) = pq.read_table(file).to_pylist()
    assert label == {"request_id": "r1", "label": 1.0, "known_at": NOW + timedelta(days=2)}
    (file,) = store.served.prediction_files("small", *ALL)
    assert pq.read_table(file)["prediction"].to_pylist() == [0.75]
    assert verdict(store, "I11", "small").ok


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("/labels", {"service": "small"}, 422, "labels"),
        ("/labels", {"service": "smal", "labels": [{"request_id": "a", "value": 1}]}, 404, "small"),
        ("/labels", {"service": "small", "labels": [{"request_id": "a", "value": "x"}]}, 422,
         "labels.0.value"),
        ("/labels", {"service": "small", "labels": [
            {"request_id": "a", "value": 1, "time": "2026-01-01T00:00:00"}]}, 422,
         "labels.0.time"),
        ("/labels", {"service": "small", "labels": [], "model": "m"}, 422, "model"),
        ("/predictions", {"service": "small", "model": "", "model_version": "1",
                          "predictions": [{"request_id": "a", "value": 1}]}, 422, "model"),
    ],
)  # fmt: skip
def test_over_http_too_what_is_none_is_refused_by_name(edge, path, body, code, words):
    status, answer, _ = send(edge, path, body)
    assert status == code
    assert words in answer["detail"]


@pytest.mark.usefixtures("store")
def test_the_log_of_several_workers_is_whole_and_says_what_a_kill_lost(shop):
    process, _, http_port = start_workers(shop)
    edge = SimpleNamespace(http_port=http_port)
    query = {"feature_service": "small", "entities": {"user_id": [1, 2]}}
    with process:
        for _ in range(40):  # a connection each: the kernel shares them out
            assert post(edge, query)[0] == 200
        with Store.open(shop.config) as other:
            assert verdict(other, "I11", "small").note == (
                "80 more wait in the memory of a process that serves"
            )
        first, _ = children(process)
        os.kill(first, signal.SIGKILL)  # the other one ends in order, and writes
        assert process.wait(timeout=30) == 1
    with Store.open(shop.config) as store:
        written = logged(store, "small").num_rows if store.served.files("small", *ALL) else 0
        check = verdict(store, "I11", "small")
        assert 0 < written < 80
        assert check.mismatches == {"unwritten": 80 - written}
        (example,) = check.examples
        assert example["unwritten"] == 80 - written
        assert datetime.now(UTC) - example["until"] < timedelta(minutes=5)


def test_a_writer_that_ends_in_order_leaves_no_count(store, edge):
    post(edge, {"feature_service": "small", "entities": {"user_id": [1]}})
    (intake,) = store.served.intakes("small")
    assert (intake.rows, intake.dropped, intake.alive) == (1, 0, True)
    store.served.flush()
    folder = store.data / "served" / "small"  # people read it as one table
    assert ds.dataset(folder).to_table().num_rows == 1
    assert store.served.intakes("small") == [intake]
    store.served.close()
    assert store.served.intakes("small") == []


def test_a_log_on_a_disk_that_takes_nothing_serves_nothing(tmp_path, store, edge):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    store.served = ServedLog(blocked, services=store.services)
    query = {"feature_service": "small", "entities": {"user_id": [1]}}
    code, answer = post(edge, query)
    assert (code, answer["title"]) == (503, "LogUnavailableError")
    assert str(blocked) in answer["detail"]


def test_a_prediction_sent_again_is_none_more_and_another_one_is_told(store, channel):
    get(channel, ENTITIES.slice(0, 1), request_ids=["a"])
    for value, repeated in ((0.5, {}), (0.5, {}), (0.75, {"repeated": 1})):
        store.served.append_predictions(
            "purchase", ["a"], [value], request_time=NOW, model="m", model_version="1"
        )
        store.served.flush()
        assert verdict(store, "I11").mismatches == repeated
