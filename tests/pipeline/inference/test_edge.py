"""The model edge as a process of its own, asked by curl-like clients, stubs and a stock client."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from steadfeast import Store
from steadfeast.pipeline.inference.answers import Models
from steadfeast.pipeline.inference.edge import ROLES, Edge
from steadfeast.pipeline.inference.metrics import Figures
from steadfeast.pipeline.registry.onnx_export import LIMIT
from steadfeast.protos.steadfeast.v1 import inference_pb2 as pb
from steadfeast.protos.steadfeast.v1 import inference_pb2_grpc, open_inference_pb2_grpc
from steadfeast.protos.steadfeast.v1 import open_inference_pb2 as oip
from support.shop_pipeline import Pipeline
from support.shop_world import MODEL, at
from support.tokens import security_of

SCORER, READER = "scorer-token-0123456789", "reader-token-0123456789"
SHOPS = [f"s{number}" for number in range(20)]


@pytest.fixture(scope="module")
def trained(applied, tmp_path_factory):
    """A world with a first version promoted, and values online that are fresh for good."""
    folder = tmp_path_factory.mktemp("edge") / "shops"
    shutil.copytree(applied, folder)
    features = folder / "features.py"
    features.write_text(features.read_text().replace("timedelta(days=3)", "timedelta(days=0)"))
    with Store.open(folder / "steadfeast.yaml") as store:
        store.apply()
        store.materialize(at(40))
    made = Pipeline(folder / "steadfeast.yaml")
    assert made.run(at(40)).model_version == "1"
    yield made
    made.queue.close()


@pytest.fixture(scope="module")
def edge(trained):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "steadfeast.featurestore.cli",
        "model",
        "serve",
    ]
    command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "-c", str(trained.path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said = process.stdout.readline().replace(",", "").split()
            assert said[:2] == ["serving", "gRPC"], process.stderr.read()
            yield SimpleNamespace(grpc=int(said[4]), http=int(said[7]), world=trained)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def right(trained):
    """What the estimator says of each shop's newest row in the source, found by a loop."""
    newest = {}
    for row in pq.read_table(trained.path.parent / "data/sales.parquet").to_pylist():
        time, before = row["event_timestamp"], newest.get(row["shop"])
        if time <= at(40) and (before is None or time > before["event_timestamp"]):
            newest[row["shop"]] = row
    table = pa.Table.from_pylist([newest[shop] for shop in SHOPS])
    return dict(zip(SHOPS, trained.registry.load(MODEL, "1").predict(table), strict=True))


def said(values):
    """What the edge says for the estimator's `values`: it serves them from ONNX."""
    return pytest.approx(values, abs=LIMIT)


def ask(edge, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", edge.http, timeout=60)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body)
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        read = answer.read()
        return answer.status, json.loads(read) if read else None, answer.headers
    finally:
        connection.close()


def test_predict_over_http(edge, right):
    code, answer, headers = ask(
        edge, "POST", f"/predict/{MODEL}", {"entities": {"shop": SHOPS}}, **{"x-request-id": "h1"}
    )
    assert (code, headers["x-request-id"]) == (200, "h1")
    assert answer["predictions"] == said([right[shop] for shop in SHOPS])
    assert answer["version"] == "1"
    assert answer["request_ids"] == [f"h1/{i}" for i in range(len(SHOPS))]


def test_predict_over_grpc(edge, right):
    sink = pa.BufferOutputStream()
    table = pa.table({"shop": pa.array(SHOPS).dictionary_encode(), "more": [0] * len(SHOPS)})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with grpc.insecure_channel(f"127.0.0.1:{edge.grpc}") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = pb.PredictRequest(model=MODEL, entities=sink.getvalue().to_pybytes())
        answer = stub.Predict(request, timeout=60, metadata=[("x-request-id", "g1")])
        assert list(answer.values) == said([right[shop] for shop in SHOPS])
        assert (answer.version, answer.request_ids[1]) == ("1", "g1/1")
        for change, code, words in (
            ({"model": "sales"}, "NOT_FOUND", "did you mean sale"),
            ({"version": "9"}, "NOT_FOUND", "version"),
            ({"entities": b"none"}, "INVALID_ARGUMENT", "entities"),
        ):
            wrong = pb.PredictRequest()
            wrong.CopyFrom(request)
            wrong.MergeFrom(pb.PredictRequest(**change))
            with pytest.raises(grpc.RpcError, match=words) as caught:
                stub.Predict(wrong, timeout=60)
            assert caught.value.code() == grpc.StatusCode[code]
            info = ErrorInfo()
            assert rpc_status.from_call(caught.value).details[0].Unpack(info)


def test_the_open_protocol_over_http(edge, right):
    assert ask(edge, "GET", "/v2")[1]["name"] == "steadfeast"
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready",
                 f"/v2/models/{MODEL}/versions/1/ready"):  # fmt: skip
        assert ask(edge, "GET", path)[0] == 200
    _, told, _ = ask(edge, "GET", f"/v2/models/{MODEL}")
    assert told["inputs"] == [{"name": "shop", "datatype": "BYTES", "shape": [-1]}]
    assert told["outputs"] == [{"name": "prediction", "datatype": "FP64", "shape": [-1]}]
    tensor = {"name": "shop", "datatype": "BYTES", "shape": [2, 1], "data": [["s3"], ["s4"]]}
    code, answer, _ = ask(
        edge, "POST", f"/v2/models/{MODEL}/versions/1/infer", {"id": "o1", "inputs": [tensor]}
    )
    assert (code, answer["id"], answer["model_version"]) == (200, "o1", "1")
    (output,) = answer["outputs"]
    assert (output["shape"], output["data"]) == ([2], said([right["s3"], right["s4"]]))


def test_the_open_protocol_over_grpc_in_typed_fields(edge, right):
    with grpc.insecure_channel(f"127.0.0.1:{edge.grpc}") as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        tensor = oip.ModelInferRequest.InferInputTensor(
            name="shop",
            datatype="BYTES",
            shape=[1],
            contents=oip.InferTensorContents(bytes_contents=[b"s7"]),
        )
        request = oip.ModelInferRequest(model_name=MODEL, inputs=[tensor])
        answer = stub.ModelInfer(request, timeout=60)
        assert np.frombuffer(answer.raw_output_contents[0]).tolist() == said([right["s7"]])
        assert stub.ServerReady(oip.ServerReadyRequest(), timeout=60).ready
        with pytest.raises(grpc.RpcError, match="did you mean sale"):
            stub.ModelReady(oip.ModelReadyRequest(name="sails"), timeout=60)


@pytest.mark.parametrize(
    ("path", "body", "code", "words"),
    [
        ("/predict/sales", {"entities": {"shop": ["s1"]}}, 404, "did you mean sale"),
        (f"/predict/{MODEL}", {"entities": {"shops": ["s1"]}}, 422, "no column 'shop'"),
        (f"/predict/{MODEL}", {"entities": {"shop": [1]}}, 422, "entities.shop"),
        (f"/predict/{MODEL}", {"entities": {"shop": ["s1"]}, "version": "8"}, 404, "version"),
        (f"/predict/{MODEL}", {"entities": {"shop": ["a"] * 2}, "request_ids": ["x"]}, 422,
         "1 for 2"),
        (f"/predict/{MODEL}", {"entities": {"shop": ["s"] * 100_001}}, 422, "100,001 rows"),
        (f"/predict/{MODEL}", b"{", 422, "body"),
        (f"/v2/models/{MODEL}/infer", {"inputs": [
            {"name": "shop", "datatype": "BYTES", "shape": [2], "data": ["s1"]}]}, 422,
         "shape says 2"),
        (f"/v2/models/{MODEL}/infer", {"inputs": [
            {"name": "shop", "datatype": "BYTES", "shape": [1, 2], "data": ["a", "b"]}]}, 422,
         "[rows]"),
        (f"/v2/models/{MODEL}/infer", {"inputs": []}, 422, "no column 'shop'"),
        ("/v2/models/other/infer", {"inputs": []}, 404, "other"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_told_by_name(edge, path, body, code, words):
    status, answer, headers = ask(edge, "POST", path, body)
    assert status == code
    assert words in answer["detail"]
    assert (answer["status"], answer["error"]) == (code, answer["detail"])
    assert headers["content-type"] == "application/problem+json"


def test_many_clients_at_once_get_their_own_answers_and_all_are_logged(edge, right):
    def one(i):
        shop = SHOPS[i % len(SHOPS)]
        body = {"entities": {"shop": [shop]}, "request_ids": [f"many-{i}"]}
        code, answer, _ = ask(edge, "POST", f"/predict/{MODEL}", body)
        return code == 200 and answer["predictions"] == said([right[shop]])

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(one, range(200)))
    text = ask_text(edge, "/metrics")
    assert f'steadfeast_inference_model_version_info{{model="{MODEL}",version="1"}} 1.0' in text
    assert f'steadfeast_inference_duration_seconds_count{{model="{MODEL}",stage="predict"}}' in text


def ask_text(edge, path):
    connection = http.client.HTTPConnection("127.0.0.1", edge.http, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "predictions.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_request_of_the_guide_gets_an_answer_of_that_shape(edge):
    text = GUIDE.read_text(encoding="utf-8")
    examples = re.findall(r"```bash\n(.*?)```.*?```json\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for command, answer in examples:
        here = command.replace(":9470/", f":{edge.http}/")
        ran = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)
        said = re.sub(r"[0-9a-f]{64}", "HASH", ran.stdout)
        said = re.sub(r"0\.\d+", "0.5", said)  # the world of this test is another
        assert json.loads(said) == json.loads(answer)


STOCK = """
import sys
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http

ports = dict(zip(("http", "grpc"), sys.argv[1:3]))
for kind, module in (("http", over_http), ("grpc", over_grpc)):
    client = module.InferenceServerClient(f"127.0.0.1:{ports[kind]}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("sale")
    tensor = module.InferInput("shop", [3], "BYTES")
    tensor.set_data_from_numpy(np.array([b"s1", b"s2", b"s3"], dtype=object))
    got = client.infer("sale", [tensor], request_id=f"stock-{kind}")
    print(*got.as_numpy("prediction").tolist())
"""


def test_a_stock_client_talks_to_it_unchanged(edge, right, tmp_path):
    """In an environment of its own: its protobuf is another."""
    folder = tmp_path / "stock"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "tritonclient[http,grpc]"]
    subprocess.run(install, check=True, capture_output=True, timeout=600)
    ran = subprocess.run(
        [python, "-c", STOCK, str(edge.http), str(edge.grpc)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        assert [float(word) for word in line.split()] == said([right[f"s{n}"] for n in (1, 2, 3)])
    assert len(ran.stdout.splitlines()) == 2


def test_what_is_answered_is_logged_and_a_kill_does_not_hide_it(edge):
    headers = {"x-request-id": "end"}
    ask(edge, "POST", f"/predict/{MODEL}", {"entities": {"shop": ["s1"]}}, **headers)
    with Store.open(edge.world.path) as store:
        (intake,) = store.served.intakes("sale")
    assert intake.alive
    assert intake.rows > 200


def test_with_tokens_only_who_may_predict_is_answered(trained):
    security = security_of(app=(SCORER, ["predict"]), grafana=(READER, ["read"]))
    with (
        Store.open(trained.path) as store,
        closing(Models(trained.config, store, trained.registry, Figures())) as models,
        Edge(models, Figures(), "127.0.0.1:0", "127.0.0.1:0", security) as running,
        grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as plain,
    ):
        here = SimpleNamespace(grpc=running.grpc_port, http=running.http_port)
        body = {"entities": {"shop": SHOPS[:1]}}
        for token, code in ((SCORER, 200), (READER, 403), ("x" * 20, 401)):
            sent = {"authorization": f"Bearer {token}"}
            assert ask(here, "POST", f"/predict/{MODEL}", body, **sent)[0] == code
            assert ask(here, "GET", f"/v2/models/{MODEL}", **sent)[0] == code
        status, problem, _ = ask(here, "POST", f"/predict/{MODEL}", body)
        assert (status, problem["detail"]) == (401, "a token with the role predict is needed")
        assert ask(here, "GET", "/v2/health/live")[0] == 200
        live = open_inference_pb2_grpc.GRPCInferenceServiceStub(plain)
        assert live.ServerLive(oip.ServerLiveRequest(), timeout=30).live
        with pytest.raises(grpc.RpcError) as caught:
            live.ModelReady(oip.ModelReadyRequest(name=MODEL), timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_every_method_has_a_role():
    """A method that somebody adds is refused until it is given one."""
    services = [
        pb.DESCRIPTOR.services_by_name["InferenceService"],
        oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    ]
    named = {f"{service.name}/{method.name}" for service in services for method in service.methods}
    assert set(ROLES) == named
