"""Spans of the model edge, as a collector gets them from the real exporter."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from steadfeast import Store
from steadfeast.featurestore import tracing
from support.shop_pipeline import Pipeline
from support.shop_world import MODEL, at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Take spans over OTLP; give the address and what has come."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_each_stage_is_a_span_with_its_request(shops: Path):
    made = Pipeline(shops / "steadfeast.yaml")
    with Store.open(made.path) as store:
        store.materialize(at(40))
    made.run(at(40))
    made.queue.close()
    command = [sys.executable, "-W", "ignore", "-P", "-m", "steadfeast.featurestore.cli"]
    command += ["model", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with collector() as (url, got):
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        with subprocess.Popen(
            [*command, "--config", str(made.path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[-1])
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict/{MODEL}",
                b'{"entities": {"shop": ["s1", "s2"]}}',
                {"x-request-id": "traced"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                assert answer.status == 200
            process.terminate()
            process.communicate(timeout=60)
    spans = {
        span.name: {one.key: one.value for one in span.attributes}
        for message in got
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert set(spans) == {"read", "predict", "log"}
    for attributes in spans.values():
        assert attributes["steadfeast.subject"].string_value == MODEL
        ids = [one.string_value for one in attributes["steadfeast.request_ids"].array_value.values]
        assert ids == ["traced/0", "traced/1"]
    [service] = {
        one.value.string_value
        for message in got
        for resource in message.resource_spans
        for one in resource.resource.attributes
        if one.key == "service.name"
    }
    assert service == "steadfeast-models"


def test_without_a_collector_nothing_is_traced(monkeypatch: pytest.MonkeyPatch):
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    tracing.configure("x")()
    assert tracing._tracer is None
    with tracing.span("read", "s", ("r",)) as none:
        assert none is None


def test_a_collector_without_the_extra_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(tracing.ENDPOINTS[0], "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(tracing.TracingError, match=r"pip install 'steadfeast\[otel\]'"):
        tracing.configure("x")
