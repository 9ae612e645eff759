"""What the gRPC and the HTTP edge share: one call to the store, its figures, and its errors.

Above `store`, below `web` and `server`. Both edges answer the same question in the same way and
count it in the same series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from contextlib import contextmanager
from itertools import accumulate
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from steadfeast.featurestore import errors
from steadfeast.featurestore.server.feast_json import STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from prometheus_client.core import Metric

    from steadfeast.featurestore.serving import OnlineFeatures

REQUESTS = "steadfeast_serving_requests_total"
DURATION = "steadfeast_serving_request_duration_seconds"
ROWS = "steadfeast_serving_rows_total"
VALUES = "steadfeast_serving_values_total"
LOGGED = "steadfeast_serving_logged_total"
AGE = "steadfeast_serving_feature_age_seconds"
WAITING = "steadfeast_serving_log_waiting_rows"
AGED = 16
"""One request in so many has the age of its features counted; it costs as much as a small read."""

_PLAIN = ("requests", "rows", "values", "logged", "ages", "aged", "waiting", "seconds", "buckets")
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class WireStatus(NamedTuple):
    """What an error is on the wire."""

    grpc: grpc.StatusCode
    http: int


ANSWERS: dict[type[errors.SteadfeastError], WireStatus] = {
    errors.NotFoundError: WireStatus(grpc.StatusCode.NOT_FOUND, 404),
    errors.ContractMismatchError: WireStatus(grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.StoreUnavailableError: WireStatus(grpc.StatusCode.UNAVAILABLE, 503),
    errors.LogUnavailableError: WireStatus(grpc.StatusCode.UNAVAILABLE, 503),
    errors.CorruptRowError: WireStatus(grpc.StatusCode.DATA_LOSS, 500),
    errors.OnDemandError: WireStatus(grpc.StatusCode.INTERNAL, 500),
    errors.DefinitionsError: WireStatus(grpc.StatusCode.FAILED_PRECONDITION, 500),
    errors.RefusedDefinitionError: WireStatus(grpc.StatusCode.FAILED_PRECONDITION, 500),
    errors.UserError: WireStatus(grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.SteadfeastError: WireStatus(grpc.StatusCode.INTERNAL, 500),
}
"""The nearest class of an error counts; what is no SteadfeastError is a bug and stays one."""


def answer_of(error: errors.SteadfeastError) -> WireStatus:
    """Return what `error` is on the wire."""
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)


class Figures(Collector):
    """Counts both edges' requests; `registry` shows them.

    Kept in plain numbers and not in prometheus_client's own: Feast switches those, once its
    metrics are imported, to files that all processes started from this one share. Labels come
    from the registry of feature services: a name that does not exist is counted under the empty
    one, so a client cannot make series.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._requests: Tally[tuple[str, str, str]] = Tally()
        self._rows: Tally[tuple[str, str]] = Tally()
        self._values: Tally[tuple[str, str]] = Tally()
        self._logged: Tally[tuple[str, str]] = Tally()
        self._waiting: Tally[tuple[str, str]] = Tally()
        self._ages: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._aged: Tally[tuple[str, str]] = Tally()
        self._until_aged = 0
        self.backlog: Callable[[], dict[tuple[str, str], int]] = dict
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._buckets: defaultdict[tuple[str, str], list[int]] = defaultdict(_no_buckets)
        self.others: Callable[[], list[Any]] = list
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def plain(self) -> dict[str, list[Any]]:
        """Return the figures as JSON can hold them, for `others` of another worker."""
        waiting = self.backlog()
        with self._lock:
            self._waiting = Tally(waiting)
            return {
                name: [[*key, value] for key, value in getattr(self, f"_{name}").items()]
                for name in _PLAIN
            }

    @contextmanager
    def request(self, edge: str, service: str) -> Iterator[None]:
        """Count one request and the time it takes; an error is counted and raised on."""
        began, code = perf_counter(), "OK"
        try:
            yield
        except errors.SteadfeastError as error:
            code = answer_of(error).grpc.name
            if isinstance(error, errors.NotFoundError):
                service = ""
            raise
        except BaseException:
            code = grpc.StatusCode.UNKNOWN.name
            raise
        finally:
            seconds, key = perf_counter() - began, (edge, service)
            with self._lock:
                self._requests[edge, service, code] += 1
                self._seconds[key] += seconds
                self._buckets[key][bisect_left(_BUCKETS, seconds)] += 1

    def served(self, edge: str, service: str, features: OnlineFeatures, at: datetime) -> None:
        """Count what a request of the time `at` got."""
        tally, ages = features.tally().tolist(), {}
        self._until_aged -= 1  # two threads may both count one: the share stays about the same
        if self._until_aged < 0:
            self._until_aged = AGED - 1
            ages = {view: _ages(times, at) for view, times in features.event_times.items()}
        with self._lock:
            for view, (count, seconds) in ages.items():
                self._aged[service, view] += count
                self._ages[service, view] += seconds
            self._rows[edge, service] += features.rows
            for status, count in zip(STATUSES, tally, strict=True):
                if count:
                    self._values[service, status] += count

    def logged(self, kind: str, service: str, count: int) -> None:
        """Count predictions or labels that were taken in."""
        with self._lock:
            self._logged[service, kind] += count

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now, those of the other workers included."""
        total = Figures.__new__(Figures)
        total._requests, total._rows, total._values = Tally(), Tally(), Tally()  # noqa: SLF001
        total._logged, total._waiting, total._aged = Tally(), Tally(), Tally()  # noqa: SLF001
        total._seconds, total._ages = defaultdict(float), defaultdict(float)  # noqa: SLF001
        total._buckets = defaultdict(_no_buckets)  # noqa: SLF001
        for figures in (self.plain(), *self.others()):
            total._add(figures)  # noqa: SLF001
        yield from total._families()  # noqa: SLF001

    def _add(self, figures: dict[str, list[Any]]) -> None:
        for name in _PLAIN[:-1]:
            for *key, value in figures[name]:
                getattr(self, f"_{name}")[tuple(key)] += value
        for edge, service, counts in figures["buckets"]:
            mine = self._buckets[edge, service]
            mine[:] = [one + other for one, other in zip(mine, counts, strict=True)]

    def _families(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            REQUESTS, "Requests, by their outcome.", labels=("edge", "service", "code")
        )
        rows = CounterMetricFamily(ROWS, "Entity rows served.", labels=("edge", "service"))
        values = CounterMetricFamily(
            VALUES, "Feature values served, by status.", labels=("service", "status")
        )
        logged = CounterMetricFamily(
            LOGGED, "Predictions and labels that were taken in.", labels=("service", "kind")
        )
        ages = SummaryMetricFamily(
            AGE,
            f"Age of the values served, of one request in {AGED}.",
            labels=("service", "view"),
        )
        for pair, count in self._aged.items():
            ages.add_metric(pair, count, self._ages[pair])
        waiting = GaugeMetricFamily(
            WAITING,
            "Rows in memory that are not yet in the served log.",
            labels=("service", "kind"),
        )
        for pair, count in self._waiting.items():
            waiting.add_metric(pair, count)
        times = HistogramMetricFamily(DURATION, "Time to answer.", labels=("edge", "service"))
        for family, tally in (
            (requests, self._requests), (rows, self._rows), (values, self._values),
            (logged, self._logged),
        ):  # fmt: skip
            for key, count in tally.items():
                family.add_metric(key, count)
        for pair, counts in self._buckets.items():
            limits = [*map(str, _BUCKETS), "+Inf"]
            buckets = list(zip(limits, accumulate(counts), strict=True))
            times.add_metric(pair, buckets, self._seconds[pair])
        yield from (requests, rows, values, logged, ages, waiting, times)


def _ages(times: Any, at: datetime) -> tuple[int, float]:
    """Return how many of the times are known, and the sum of their ages in seconds."""
    micros = times.cast(pa.int64()).drop_null()
    known = len(micros)
    total = pc.sum(micros).as_py() or 0
    return known, known * at.timestamp() - total / 1e6


def _no_buckets() -> list[int]:
    return [0] * (len(_BUCKETS) + 1)
