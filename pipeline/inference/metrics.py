"""Figures of the model edge, for Prometheus. Below `edge`.

Labels come from the configuration and from versions that were loaded: a client cannot make series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from steadfeast.featurestore.server import WAITING

if TYPE_CHECKING:
    from steadfeast.pipeline.inference.model import Predictions

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STAGES = ("read", "predict", "log")

REQUESTS = "steadfeast_inference_requests_total"
ROWS = "steadfeast_inference_rows_total"
SECONDS = "steadfeast_inference_duration_seconds"
VERSION = "steadfeast_inference_model_version_info"
NOT_SERVED = "steadfeast_inference_champion_not_served"


class Figures:
    """What one edge has answered.

    Attributes:
        registry: What `/metrics` shows.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            REQUESTS,
            "Requests for predictions, by their outcome.",
            ("model", "protocol", "code"),
            registry=self.registry,
        )
        self._rows = Counter(
            ROWS,
            "Rows that were predicted.",
            ("model", "version"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            SECONDS,
            "Time of a stage: features read, model called, log written to.",
            ("model", "stage"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._serves = Gauge(
            VERSION,
            "1 for the version that answers when none is asked for.",
            ("model", "version"),
            registry=self.registry,
        )
        self._failing = Gauge(
            NOT_SERVED,
            "1 while the registry's champion does not serve.",
            ("model",),
            registry=self.registry,
        )
        self._waiting = Gauge(
            WAITING,
            "Rows in memory that are not yet in the served log.",
            ("service", "kind"),
            registry=self.registry,
        )

    def waiting(self, service: str, kind: str, count: int) -> None:
        """Show how many rows wait to be logged."""
        self._waiting.labels(service, kind).set(count)

    def request(self, model: str, protocol: str, code: str) -> None:
        """Count a request; of a model that is not configured, under no name."""
        self._requests.labels(model, protocol, code).inc()

    def predicted(self, model: str, got: Predictions) -> None:
        """Count the rows of an answer."""
        self._rows.labels(model, got.version).inc(len(got.request_ids))

    def spent(self, model: str, stage: str, seconds: float) -> None:
        """Count the time of a stage."""
        self._seconds.labels(model, stage).observe(seconds)

    def serves(self, model: str, version: str, problem: str) -> None:
        """Show which version of a model serves, and whether it is the champion."""
        self._serves.remove_by_labels({"model": model})
        if version:
            self._serves.labels(model, version).set(1)
        self._failing.labels(model).set(bool(problem))
