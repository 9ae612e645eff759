"""The model edge as a process: gRPC and HTTP, started and drained.

Top of `inference`. Ports, tokens and limits are those of every server, see `security`.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore import Store
from steadfeast.featurestore.security import (
    Ports,
    Role,
    Security,
    load_security,
    signals,
    until_stopped,
)
from steadfeast.featurestore.tracing import configure
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

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
WORKERS = 32
ROLES = {
    "InferenceService/Predict": Role.PREDICT,
    **{
        f"GRPCInferenceService/{name}": role
        for name, role in (
            ("ServerLive", None),
            ("ServerReady", None),
            ("ServerMetadata", Role.PREDICT),
            ("ModelReady", Role.PREDICT),
            ("ModelMetadata", Role.PREDICT),
            ("ModelInfer", Role.PREDICT),
        )
    },
}


class Edge(Ports):
    """Both ports of the models; a context manager that serves and drains them.

    Args:
        models: Answer; stay open.
        figures: Shown on `/metrics`.
        grpc_address: `host:port`; port 0 takes a free one.
        http_address: The same for HTTP.
        security: Who may ask what; without it, everybody on loopback.

    Raises:
        AddressError: See `Ports`.
    """

    def __init__(
        self,
        models: Models,
        figures: Figures,
        grpc_address: str,
        http_address: str,
        security: Security | None = None,
    ) -> None:
        draining, security = Event(), security or Security()
        packages = {one.rpartition(".")[2]: one for one in SERVICES}

        def services(server: Any) -> None:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(models), server)
            open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                OpenInference(models, draining.is_set), server
            )

        super().__init__(
            security,
            roles={
                f"{packages[service]}/{method}": role
                for name, role in ROLES.items()
                for service, _, method in [name.partition("/")]
            },
            services=services,
            names=SERVICES,
            grpc_address=grpc_address,
            http_address=http_address,
            app=application(models, figures.registry, draining.is_set, security.access),
            threads=WORKERS,
            stopping=draining.set,
        )


def serve(config: Path, grpc_address: str, http_address: str) -> None:
    """Serve the models that `config` describes until SIGTERM or SIGINT, then drain.

    SIGHUP reads the tokens of `config` again.

    Raises:
        ConfigError: The file is missing or wrong.
        CertificateError: A certificate cannot be used.
        RegistryError: MLflow cannot open its backend.
        AddressError: See `Edge`.
    """
    pipeline, section = load(config)
    figures = Figures()
    with ExitStack() as opened:
        store = opened.enter_context(Store(section, file=config))
        models = Models(pipeline, store, Registry.open(pipeline), figures)
        opened.callback(models.close)
        security = Security(load_security(config))
        opened.callback(configure("steadfeast-models"))
        edge = opened.enter_context(Edge(models, figures, grpc_address, http_address, security))
        inbox: SimpleQueue[int] = SimpleQueue()
        opened.enter_context(signals(inbox))
        sys.stdout.write(f"serving gRPC on port {edge.grpc_port}, HTTP on {edge.http_port}\n")
        for name, problem in models.problems.items():
            sys.stdout.write(f"{name}: {problem}; it answers as soon as one serves\n")
        sys.stdout.flush()
        until_stopped(inbox, security, config)
