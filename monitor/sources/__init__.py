"""Where rows come from, and the frozen rows of one bucket."""

from steadfeast.monitor.sources.quarantine import Fault, Quarantined
from steadfeast.monitor.sources.snapshot import (
    AT,
    OPEN,
    REQUEST,
    Bucket,
    Snapshot,
    SnapshotUnreadableError,
    bucket_path,
    buckets,
    damage,
    open_path,
    read_snapshot,
    swept,
)
from steadfeast.monitor.sources.source import Source, Sources, check, frozen
from steadfeast.monitor.sources.views import ViewFacts

__all__ = [
    "AT",
    "OPEN",
    "REQUEST",
    "Bucket",
    "Fault",
    "Quarantined",
    "Snapshot",
    "SnapshotUnreadableError",
    "Source",
    "Sources",
    "ViewFacts",
    "bucket_path",
    "buckets",
    "check",
    "damage",
    "frozen",
    "open_path",
    "read_snapshot",
    "swept",
]
