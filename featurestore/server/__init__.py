"""The serving edge: gRPC, HTTP, metrics, workers; and what the model edge shares with it."""

from steadfeast.featurestore.server.arrow_stream import check_rows, read
from steadfeast.featurestore.server.bodies import MAX_REQUEST_BYTES, TooLargeError, read_body
from steadfeast.featurestore.server.grpc_server import Edge, listen, refuse, serve, split, time_of
from steadfeast.featurestore.server.json_values import column_of
from steadfeast.featurestore.server.metrics import answer_of
from steadfeast.featurestore.server.request_log import REQUEST_ID, Named, request_id
from steadfeast.featurestore.server.workers import supervise

__all__ = [
    "MAX_REQUEST_BYTES",
    "REQUEST_ID",
    "Edge",
    "Named",
    "TooLargeError",
    "answer_of",
    "check_rows",
    "column_of",
    "listen",
    "read",
    "read_body",
    "refuse",
    "request_id",
    "serve",
    "split",
    "supervise",
    "time_of",
]
