"""The serving edge: gRPC, HTTP, metrics, workers; and what the model edge shares with it."""

from steadfeast.featurestore.server.arrow_stream import check_rows, read
from steadfeast.featurestore.server.bodies import TooLargeError, read_body
from steadfeast.featurestore.server.grpc_server import Edge, refuse, serve, time_of
from steadfeast.featurestore.server.json_values import column_of
from steadfeast.featurestore.server.metrics import WAITING, answer_of
from steadfeast.featurestore.server.problems import PROBLEM, problem
from steadfeast.featurestore.server.request_log import REQUEST_ID, Named, request_id
from steadfeast.featurestore.server.workers import supervise

__all__ = [
    "PROBLEM",
    "REQUEST_ID",
    "WAITING",
    "Edge",
    "Named",
    "TooLargeError",
    "answer_of",
    "check_rows",
    "column_of",
    "problem",
    "read",
    "read_body",
    "refuse",
    "request_id",
    "serve",
    "supervise",
    "time_of",
]
