"""What is known of a run, told to MLflow and to whoever else keeps experiments."""

from steadfeast.pipeline.tracking.facts import (
    environment,
    example,
    over_time,
    parameters,
    slices,
)
from steadfeast.pipeline.tracking.mlflow_run import log_record, origin_tags
from steadfeast.pipeline.tracking.plugs import Tracker, TrackerError, check_trackers, load_tracker
from steadfeast.pipeline.tracking.record import Record

__all__ = [
    "Record",
    "Tracker",
    "TrackerError",
    "check_trackers",
    "environment",
    "example",
    "load_tracker",
    "log_record",
    "origin_tags",
    "over_time",
    "parameters",
    "slices",
]
