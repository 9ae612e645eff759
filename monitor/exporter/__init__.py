"""Prometheus: every metric, and the collector that reads the last state."""

from steadfeast.monitor.exporter.collector import registry
from steadfeast.monitor.exporter.metrics import document

__all__ = ["document", "registry"]
