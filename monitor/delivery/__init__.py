"""What leaves the daemon: requests to pipelines, alerts to receivers."""

from steadfeast.monitor.delivery.alerts import AlertSenders
from steadfeast.monitor.delivery.champions import Champions
from steadfeast.monitor.delivery.connections import Connections
from steadfeast.monitor.delivery.dispatcher import Dispatcher
from steadfeast.monitor.delivery.http_pipelines import pipeline_of
from steadfeast.monitor.delivery.pipeline import GrpcTarget, UnansweredError
from steadfeast.monitor.delivery.threads import Worker

__all__ = [
    "AlertSenders",
    "Champions",
    "Connections",
    "Dispatcher",
    "GrpcTarget",
    "UnansweredError",
    "Worker",
    "pipeline_of",
]
