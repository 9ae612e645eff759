"""Requests to a real serving edge, as a client sends them."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from steadfeast.protos.steadfeast.v1 import features_pb2, features_pb2_grpc

NOW = datetime.now(UTC).replace(microsecond=250_000)
ENTITIES = pa.table(
    {
        "user_id": pa.array([3, 1, 2, 7, 1], pa.int64()),
        "item_id": ["a", "a", "none", "a", "none"],
        "amount": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)


def ipc(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def get(channel, table=ENTITIES, service="purchase", **more):
    stub = features_pb2_grpc.FeatureServiceStub(channel)
    entities = table if isinstance(table, bytes) else ipc(table)
    request = features_pb2.GetFeaturesRequest(service=service, entities=entities, **more)
    return stub.GetFeatures(request, timeout=30)


def http_request(edge, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", edge.http_port, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def post(edge, query):
    body = query if isinstance(query, bytes) else json.dumps(query)
    code, answer = http_request(edge, "POST", "/get-online-features", body)
    return code, json.loads(answer)


def start_workers(shop, count=2):
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


def children(process):
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in listed.split()]
