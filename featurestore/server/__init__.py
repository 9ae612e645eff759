"""The serving edge: gRPC, HTTP, metrics, workers."""

from steadfeast.featurestore.server.grpc_server import Edge, serve, split
from steadfeast.featurestore.server.workers import supervise

__all__ = ["Edge", "serve", "split", "supervise"]
