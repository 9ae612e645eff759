"""The model edge as a process: gRPC and HTTP, started and drained.

Top of `inference`. Plaintext is served on loopback only.
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from steadfeast.featurestore import Store
from steadfeast.featurestore.errors import AddressError
from steadfeast.featurestore.server import MAX_REQUEST_BYTES, listen, split
from steadfeast.pipeline.config import load
from steadfeast.pipeline.inference.answers import Models
from steadfeast.pipeline.inference.grpc_server import Inference, OpenInference
from steadfeast.pipeline.inference.http_app import application
from steadfeast.pipeline.inference.metrics import Figures
from steadfeast.pipeline.registry import Registry
from steadfeast.protos.steadfeast.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    open_inference_pb2,
    open_inference_pb2_grpc,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
WORKERS = 32
GRACE_SECONDS = 5.0


class Edge:
    """Both servers; a context manager that starts and drains them.

    Args:
        models: Answer; stay open.
        figures: Shown on `/metrics`.
        grpc_address: `host:port`; port 0 takes a free one.
        http_address: The same for HTTP.

    Raises:
        AddressError: An address is no loopback address, is taken or is not `host:port`.

    Attributes:
        grpc_port: The port taken.
        http_port: The port taken.
    """

    def __init__(
        self, models: Models, figures: Figures, grpc_address: str, http_address: str
    ) -> None:
        self._draining = Event()
        with ExitStack() as undo:
            self._socket = undo.enter_context(listen(http_address))
            self.http_port: int = self._socket.getsockname()[1]
            self._grpc = grpc.server(
                ThreadPoolExecutor(WORKERS, "grpc"),
                options=[
                    ("grpc.so_reuseport", 0),
                    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ],
            )
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(models), self._grpc)
            open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                OpenInference(models, self._draining.is_set), self._grpc
            )
            self._health = health.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
            split(grpc_address)
            try:
                self.grpc_port: int = self._grpc.add_insecure_port(grpc_address)
            except RuntimeError as error:
                raise AddressError(grpc_address, "is taken or unknown") from error
            undo.pop_all()
        self._http = uvicorn.Server(
            uvicorn.Config(
                application(models, figures.registry, self._draining.is_set),
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=int(GRACE_SECONDS),
            )
        )
        self._thread = Thread(target=self._http.run, args=([self._socket],), name="http")

    def __enter__(self) -> Self:
        self._grpc.start()
        self._thread.start()
        for name in ("", *SERVICES):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._draining.set()
        self._health.enter_graceful_shutdown()
        self._grpc.stop(GRACE_SECONDS).wait()
        self._http.should_exit = True
        self._thread.join()
        self._socket.close()


def serve(config: Path, grpc_address: str, http_address: str) -> None:
    """Serve the models that `config` describes until SIGTERM or SIGINT, then drain.

    Raises:
        ConfigError: The file is missing or wrong.
        RegistryError: MLflow cannot open its backend.
        AddressError: See `Edge`.
    """
    pipeline, section = load(config)
    inbox: SimpleQueue[int] = SimpleQueue()
    figures = Figures()
    with ExitStack() as opened:
        store = opened.enter_context(Store(section, file=config))
        models = Models(pipeline, store, Registry.open(pipeline), figures)
        opened.callback(models.close)
        edge = opened.enter_context(Edge(models, figures, grpc_address, http_address))
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda caught, _: inbox.put(caught))
            opened.callback(signal.signal, number, before)
        sys.stdout.write(f"serving gRPC on port {edge.grpc_port}, HTTP on {edge.http_port}\n")
        for name, problem in models.problems.items():
            sys.stdout.write(f"{name}: {problem}; it answers as soon as one serves\n")
        sys.stdout.flush()
        inbox.get()
