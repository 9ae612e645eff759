"""The application of the story: it asks for features, predicts, and lets labels arrive.

Time is the data's. At every full hour of it the online store takes what became known since,
the hour's requests are served from it, scored by whatever model is the champion, and logged;
labels follow when the flights have landed. The replay stands still at the end of each week
until the daemon has looked at all of it and every retraining that it asked for has ended:
that way a run gives the same answers on a slow machine as on a fast one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.protos.steadfeast.v1 import monitor_pb2, monitor_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import grpc

    from steadfeast import Store
    from steadfeast.pipeline.registry import LoadedModel, Registry

SERVICE = MODEL = "late_arrival"
REQUEST_COLUMNS = ("origin", "dest", "carrier_origin", "route", "tailnum",
                   "scheduled_departure", "carrier", "distance_miles")  # fmt: skip
WEEK = timedelta(days=7)
IDLE_SECONDS = 180


class StuckError(SteadfeastError):
    """The daemon did not finish a week's work in time."""

    def __init__(self, seconds: float, status: monitor_pb2.GetStatusResponse) -> None:
        self.seconds, self.status = seconds, status
        super().__init__(f"the daemon is not done after {seconds:.0f} s; its status:\n{status}")


@dataclass(frozen=True)
class Examples:
    """Requests with their labels, ordered by request time.

    Attributes:
        table: The rows of `data/sources/examples.parquet`.
        hours: The distinct request times, ascending, microseconds since the epoch.
        starts: First row of each hour, and one past the last row.
    """

    table: pa.Table
    hours: np.ndarray
    starts: np.ndarray

    @classmethod
    def read(cls, path: Path, since: datetime, until: datetime, share: float) -> Examples:
        """Read a `share` of the requests in `[since, until)`, drawn by the hash of their id."""
        times = pc.field("event_timestamp")
        table = pq.read_table(path, filters=(times >= since) & (times < until))
        table = table.sort_by([("event_timestamp", "ascending"), ("request_id", "ascending")])
        drawn = [_uniform(request_id) < share for request_id in table["request_id"].to_pylist()]
        table = table.filter(pa.array(drawn, pa.bool_()))
        distinct, starts = np.unique(_microseconds(table["event_timestamp"]), return_index=True)
        return cls(table, distinct, np.append(starts, len(table)))

    def __iter__(self) -> Iterator[tuple[datetime, pa.Table]]:
        for i, microseconds in enumerate(self.hours.tolist()):
            start, stop = self.starts[i], self.starts[i + 1]
            yield _time(microseconds), self.table.slice(start, stop - start)


class Daemon:
    """What the replay asks the monitor daemon, over gRPC."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = monitor_pb2_grpc.MonitorServiceStub(channel)

    def status(self) -> monitor_pb2.GetStatusResponse:
        """Return where everything stands."""
        return self._stub.GetStatus(monitor_pb2.GetStatusRequest(), timeout=10)

    def alerts(self) -> Sequence[monitor_pb2.Alert]:
        """Return every alert of the replay."""
        request = monitor_pb2.ListAlertsRequest(limit=1000)
        return self._stub.ListAlerts(request, timeout=10).alerts

    def wait_until_idle(self, seen: datetime) -> monitor_pb2.GetStatusResponse:
        """Return the status once all that was served up to `seen` is dealt with.

        Raises:
            StuckError: That took longer than `IDLE_SECONDS`.
        """
        deadline = time.monotonic() + IDLE_SECONDS
        while True:
            status = self.status()
            if status.idle and status.latest_event.ToDatetime(UTC) >= seen:
                return status
            if time.monotonic() > deadline:
                raise StuckError(IDLE_SECONDS, status)
            time.sleep(0.05)


class Champion:
    """The live model, as an application that serves it would follow it."""

    def __init__(self, models: Registry, first: LoadedModel) -> None:
        self._models, self.model = models, first

    def follow(self) -> LoadedModel:
        """Return the live model, loaded anew only if another version is the champion now."""
        version = self._models.champion_version(MODEL)
        if version is not None and version != self.model.version:
            self.model = self._models.load(MODEL, version)
        return self.model


def replay(
    store: Store,
    examples: Examples,
    daemon: Daemon,
    champion: Champion,
    report: Callable[[datetime, int, str], None],
) -> list[monitor_pb2.GetStatusResponse]:
    """Serve every request of `examples` and return the daemon's status at each week's end.

    Args:
        store: Registered and materialized up to the first request.
        examples: What is asked, and what turned out to be true.
        daemon: Watches what is served.
        champion: The live model; followed at each week's start.
        report: Called with the time, the requests served so far and the model's version.
    """
    statuses = []
    model = champion.follow()
    labels = _Labels(examples.table)
    served, last = 0, _time(int(examples.hours[0]))
    week_end = last + WEEK
    for now, requests in examples:
        if now >= week_end:
            store.served.flush()
            statuses.append(daemon.wait_until_idle(last))
            model = champion.follow()
            week_end += WEEK
        store.materialize(now)
        features = store.online_features(
            SERVICE, requests.select(REQUEST_COLUMNS), request_time=now, contract=model.contract
        )
        store.served.append(
            SERVICE,
            features,
            request_ids=requests["request_id"],
            request_time=now,
            model=MODEL,
            model_version=model.version,
            predictions=model.predict(features.table),
        )
        known = labels.until(now)
        store.served.append_labels(SERVICE, known["request_id"], known["late"], known["known_at"])
        last = now
        served += len(requests)
        report(now, served, model.version)
    store.served.flush()
    statuses.append(daemon.wait_until_idle(last))
    return statuses


class _Labels:
    """The labels of served requests, in the order in which they became known."""

    def __init__(self, examples: pa.Table) -> None:
        known = examples.select(["request_id", "late", "known_at"]).filter(
            pc.field("late").is_valid()
        )
        self._table = known.sort_by("known_at")
        self._times = _microseconds(self._table["known_at"])
        self._done = 0

    def until(self, now: datetime) -> pa.Table:
        """Return the labels that became known since the last call."""
        stop = int(np.searchsorted(self._times, _epoch(now), side="right"))
        start, self._done = self._done, stop
        return self._table.slice(start, stop - start)


def _uniform(text: str) -> float:
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _microseconds(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()


def _epoch(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _time(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
