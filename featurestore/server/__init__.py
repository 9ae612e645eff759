"""The serving edge: gRPC, HTTP, metrics, workers."""

from steadfeast.featurestore.server.grpc_server import serve, split
from steadfeast.featurestore.server.workers import supervise

__all__ = ["serve", "split", "supervise"]
