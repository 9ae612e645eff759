"""Vectors that were served, and the log of every one of them.

Above `logfiles`; imports no Feast, so that what only reads the log starts at once. The hot path
pays for one list append: a thread of the log's own, alive while rows wait, does the Arrow work, for
all that wait at once, and writes each file by rename, so that a reader sees all of it or nothing.

When `rows_waiting` rows of a service wait, because the disk is slower than the requests, the
policy decides: "block" makes requests wait, "drop" leaves their vectors out and counts them. Each
file carries its writer, its number, what that writer logged before it and what it dropped, so
that a lost file or row shows, and a dropped one is told from it.

What a crash loses, kill -9 included, is what was not on disk yet: vectors of the last
`flush_seconds` and of the write under way, never more than `rows_waiting` of a service. How many
they were outlives the process (`intake`), so that an audit can say it. `flush` and `close` leave
nothing to lose.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from threading import Condition, RLock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast.featurestore.errors import LogUnavailableError, NotFoundError
from steadfeast.featurestore.served_log.entries import (
    NOTHING,
    Served,
    checked_ids,
    checked_numbers,
    checked_time,
    label_table,
    prediction_table,
    written_together,
)
from steadfeast.featurestore.served_log.files import Listing, Run, collected, write
from steadfeast.featurestore.served_log.intake import Intake, IntakeFile, intakes
from steadfeast.featurestore.tables import instant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime
    from pathlib import Path

    import numpy as np

    from steadfeast.featurestore.serving import OnlineFeatures

_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What one log has taken in since it was opened.

    Attributes:
        requests: Calls of `append`.
        rows: Vectors given to it.
        written: Vectors that are on disk.
        dropped: Vectors left out because too many waited, or because no table can be made of
            them. After `flush`, `rows` is `written` plus `dropped`.
        malformed: Those of the dropped of which no table can be made.
    """

    requests: int = 0
    rows: int = 0
    written: int = 0
    dropped: int = 0
    malformed: int = 0


@dataclass(slots=True)
class _Buffer:
    """One service's vectors or labels that are not on disk yet.

    `waiting` counts what is being written, too. `lost` is one item that was dropped, whose columns
    a file without rows takes; `gap` the times of what was.
    """

    items: list[Any] = field(default_factory=list)
    waiting: int = 0
    since: float = 0.0
    requests: int = 0
    rows: int = 0
    written: int = 0
    files: int = 0
    dropped: int = 0
    malformed: int = 0
    told: int = 0
    lost: Any = None
    gap: tuple[int, int] | None = None
    intake: IntakeFile | None = None
    last_time: int = 0

    def count(self) -> None:
        """Let what was taken in outlive the process."""
        if self.intake is not None:
            self.intake.put(self.rows, self.dropped, self.last_time)


Kind = Literal["served", "labels", "predictions"]
KINDS: tuple[Kind, ...] = ("served", "labels", "predictions")
"""Folders of the log: vectors, their outcomes, and what other versions of a model said."""

_Key = tuple[Kind, str]


class ServedLog:
    """Logs served vectors and their labels under one folder.

    Safe to share between threads. One process may write while others read and write.

    Args:
        root: Folder that holds `served/` and `labels/`.
        rows_per_file: When so many rows of one service wait, they are written.
        rows_waiting: Rows of one service that may wait in memory.
        flush_seconds: How long a row may wait.
        when_full: What happens to a request that finds no room: it waits ("block"), or its
            vectors are left out and counted ("drop"). Labels always wait.
        services: Returns the names of the services that there are; absent, any name will do.
    """

    def __init__(
        self,
        root: Path,
        *,
        rows_per_file: int = 100_000,
        rows_waiting: int = 400_000,
        flush_seconds: float = 60.0,
        when_full: Literal["block", "drop"] = "block",
        services: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self._root, self._rows_per_file = root, rows_per_file
        self._rows_waiting = max(rows_waiting, rows_per_file)
        self._flush_seconds, self._when_full = flush_seconds, when_full
        self._services, self._known = services, frozenset[str]()
        self._writer = uuid4().hex
        self._lock, self._writing = RLock(), RLock()
        self._changed = Condition(self._lock)
        self._running = False
        self._failure: OSError | None = None
        self._buffers: defaultdict[_Key, _Buffer] = defaultdict(_Buffer)
        self._listings: dict[_Key, Listing] = {}

    def append(
        self,
        service: str,
        features: OnlineFeatures,
        *,
        request_ids: Sequence[str] | pa.Array | pa.ChunkedArray,
        request_time: datetime,
        model: str = "",
        model_version: str = "",
        predictions: np.ndarray[Any, Any] | Sequence[float | None] | pa.Array | None = None,
    ) -> None:
        """Take in the vectors of one request; writes a file when enough rows wait.

        Args:
            service: The feature service that was read.
            features: What was served.
            request_ids: One per row, unique for good: labels refer to them, and an audit counts
                those that stand for a second vector.
            request_time: The time that the features were read for, with its zone.
            model: Name of the model that used them.
            model_version: Its version.
            predictions: One per row, if there are any.

        Raises:
            NotFoundError: There is no such service.
            LogRefusedError: Ids, predictions or the time are no such thing, or double.
            LogUnavailableError: There is no room, and the disk takes nothing.
        """
        self._check_service(service)
        rows = features.rows
        request_ids = checked_ids(service, request_ids, rows)
        if predictions is not None:
            predictions = checked_numbers(service, "predictions", predictions, rows)
        at = checked_time(service, "request_time", request_time)
        item = Served(features, request_ids, at, str(model), str(model_version), predictions)
        self._take(("served", service), item, rows)

    def append_labels(
        self,
        service: str,
        request_ids: Sequence[str] | pa.Array | pa.ChunkedArray,
        labels: Sequence[float] | np.ndarray[Any, Any] | pa.Array | pa.ChunkedArray,
        known_at: datetime | Sequence[datetime] | pa.Array | pa.ChunkedArray,
    ) -> None:
        """Take in labels of earlier requests.

        Args:
            service: The feature service that was read.
            request_ids: The requests, shape (n,); an audit counts those that are not logged.
            labels: Their outcomes, shape (n,).
            known_at: When they became known: one time, or n of them, with their zone.

        Raises:
            NotFoundError: There is no such service.
            LogRefusedError: Ids, labels or times are no such thing, or double.
        """
        self._check_service(service)
        table = label_table(service, request_ids, labels, known_at)
        if table.num_rows:
            self._take(("labels", service), table, table.num_rows)

    def append_predictions(
        self,
        service: str,
        request_ids: Sequence[str] | pa.Array | pa.ChunkedArray,
        predictions: Sequence[float] | np.ndarray[Any, Any] | pa.Array,
        *,
        request_time: datetime | Sequence[datetime] | pa.Array | pa.ChunkedArray,
        model: str,
        model_version: str,
    ) -> None:
        """Take in what a version of a model says to requests whose vectors are logged.

        A request id has one vector, and any number of these: one a version. A vector that was
        logged without a prediction has the one of its own model and version, or the first.

        Args:
            service: The feature service that was read.
            request_ids: The requests, shape (n,); an audit counts those that are not logged.
            predictions: Shape (n,).
            request_time: The times that the features were read for: one, or n of them.
            model: Name of the model.
            model_version: Its version.

        Raises:
            NotFoundError: There is no such service.
            LogRefusedError: Ids, predictions or the time are no such thing, or double.
        """
        self._check_service(service)
        named = (request_time, model, model_version)
        table = prediction_table(service, request_ids, predictions, *named)
        if table.num_rows:
            self._take(("predictions", service), table, table.num_rows)

    def flush(self, kind: Kind | None = None, service: str = "") -> None:
        """Write everything that waits, or what waits of one kind and service.

        Raises:
            OSError: The disk takes nothing; what waits still waits.
        """
        with self._writing:
            for key in list(self._buffers) if kind is None else [(kind, service)]:
                while self._write_some(key):
                    pass

    def close(self) -> None:
        """Write everything that waits, and let go of the counts that were for a crash.

        Raises:
            OSError: See `flush`.
        """
        self.flush()
        with self._lock:
            for buffer in self._buffers.values():
                if buffer.intake is not None and not buffer.waiting:
                    buffer.intake.remove()
                    buffer.intake = None

    def waiting(self) -> dict[tuple[str, str], int]:
        """Return how many rows wait in memory, by service and kind."""
        return {
            (service, kind): buffer.waiting
            for (kind, service), buffer in list(self._buffers.items())
        }

    def has_room(self, service: str, rows: int) -> bool:
        """Say whether so many vectors can be taken in without waiting for the disk."""
        waiting = self._buffers["served", service].waiting
        return not waiting or waiting + rows <= self._rows_waiting

    def counters(self, service: str) -> Counters:
        """Return what this log has taken in for `service` since it was opened."""
        with self._lock:
            buffer = self._buffers["served", service]
            return Counters(
                buffer.requests, buffer.rows, buffer.written, buffer.dropped, buffer.malformed
            )

    def files(self, service: str, start: datetime, end: datetime) -> list[Path]:
        """Return the served files that may hold rows with request time in [start, end)."""
        return self._listing("served", service).between(start, end)

    def collected(self, service: str) -> list[Run]:
        """Return what was collected of the served files on purpose."""
        return collected(self._root / "served" / service)

    def intakes(self, service: str) -> list[Intake]:
        """Return what each process has taken in that has not ended in order."""
        return [found for _, found in intakes(self._root / "served" / service)]

    def label_files(self, service: str, start: datetime, end: datetime) -> list[Path]:
        """Return the label files that may hold labels known in [start, end)."""
        return self._listing("labels", service).between(start, end)

    def models(self, service: str, contract: str) -> tuple[tuple[str, str], ...]:
        """Return the `(model, version)` pairs that the newest file names under a contract."""
        newest = self._listing("served", service).newest()
        if newest is None:
            return ()
        names = ["model", "model_version", "contract"]
        with pq.ParquetFile(newest[1]) as file:
            rows = file.read(columns=names).filter(pc.field("contract") == contract)
        pairs = rows.group_by(names[:2]).aggregate([]).to_pylist()
        found = {(pair["model"], pair["model_version"]) for pair in pairs if pair["model"]}
        return tuple(sorted(found))

    def watermark(self, service: str) -> datetime | None:
        """Return the latest request time on disk, or None when nothing is."""
        newest = self._listing("served", service).newest()
        return None if newest is None else instant(newest[0])

    def prediction_files(self, service: str, start: datetime, end: datetime) -> list[Path]:
        """Return the files of other versions' predictions with request time in [start, end)."""
        return self._listing("predictions", service).between(start, end)

    def _check_service(self, service: str) -> None:
        if self._services is None or service in self._known:
            return
        self._known = frozenset(self._services())
        if service not in self._known:
            raise NotFoundError("feature service", service, self._known)

    def _listing(self, kind: Kind, service: str) -> Listing:
        with self._lock:
            return self._listings.setdefault((kind, service), Listing(self._root / kind / service))

    def _take(self, key: _Key, item: Any, rows: int) -> None:
        with self._lock:
            buffer = self._buffers[key]
            if key[0] == "served":
                self._remember(buffer, key[1], item.request_time)
            buffer.requests += 1
            buffer.rows += rows
            if buffer.waiting and buffer.waiting + rows > self._rows_waiting:
                if self._when_full == "drop" and key[0] == "served":
                    first, last = buffer.gap or (item.request_time, item.request_time)
                    buffer.gap = min(first, item.request_time), max(last, item.request_time)
                    buffer.dropped += rows
                    buffer.lost = item
                    buffer.count()
                    return
                self._wait_for_room(buffer, rows)
            if not buffer.items:
                buffer.since = monotonic()
            buffer.items.append(item)
            buffer.waiting += rows
            buffer.count()
            if not self._running:
                self._running = True
                Thread(target=self._run, name="served-log", daemon=True).start()
            elif buffer.waiting >= self._rows_per_file:
                self._changed.notify_all()

    def _remember(self, buffer: _Buffer, service: str, time: int) -> None:
        """Make the file of the count before the first vector is taken in."""
        buffer.last_time = time
        if buffer.intake is None:
            try:
                buffer.intake = IntakeFile(self._root / "served" / service, self._writer)
            except OSError as error:
                raise LogUnavailableError(self._root, error) from error

    def _wait_for_room(self, buffer: _Buffer, rows: int) -> None:
        while buffer.waiting and buffer.waiting + rows > self._rows_waiting:
            if self._failure is not None:
                buffer.requests -= 1
                buffer.rows -= rows
                raise LogUnavailableError(self._root, self._failure) from self._failure
            self._changed.wait()

    def _run(self) -> None:
        """Write what is due, until nothing waits; a later append starts anew."""
        while True:
            with self._lock:
                key = self._due()
                while key is None:
                    waiting = [buffer.since for buffer in self._buffers.values() if buffer.items]
                    if not waiting:
                        self._running = False
                        return
                    self._changed.wait(max(0.0, min(waiting) + self._flush_seconds - monotonic()))
                    key = self._due()
            try:
                with self._writing:
                    self._write_some(key)
            except OSError as error:
                with self._lock:
                    self._failure = error
                    self._changed.notify_all()  # who waits for room shall not wait for the disk
                    self._changed.wait(_RETRY_SECONDS)

    def _due(self) -> _Key | None:
        limit = monotonic() - self._flush_seconds
        for key, buffer in self._buffers.items():
            if buffer.items and (buffer.waiting >= self._rows_per_file or buffer.since <= limit):
                return key
        return None

    def _write_some(self, key: _Key) -> bool:
        """Write one file's worth of what waits; say whether there was any."""
        kind, service = key
        with self._lock:
            buffer, rows, count = self._buffers[key], 0, 0
            while count < len(buffer.items) and rows < self._rows_per_file:
                rows += buffer.items[count].num_rows
                count += 1
            items, buffer.items = buffer.items[:count], buffer.items[count:]
            dropped, gap, lost = buffer.dropped - buffer.told, buffer.gap, buffer.lost
            buffer.gap = buffer.lost = None
        if not items and not dropped:
            return False
        made, bad = written_together(items or [one for one in [lost] if one is not None])
        if items and bad:
            left_out = set(map(id, bad))
            items = [item for item in items if id(item) not in left_out]
            dropped, gap = self._leave_out(buffer, bad, dropped, gap)
        try:
            for alike, whole in made or [([], NOTHING)]:
                table = whole if items else whole.slice(0, 0)
                self._write(kind, service, buffer, table, dropped=dropped, gap=gap)
                with self._lock:
                    buffer.told += dropped
                    buffer.waiting -= table.num_rows
                    self._failure = None
                    self._changed.notify_all()
                dropped, gap = 0, None
                there = set(map(id, alike))
                items = [item for item in items if id(item) not in there]
        except OSError:
            with self._lock:
                buffer.items = items + buffer.items
                if dropped:
                    buffer.gap, buffer.lost = gap, lost
            raise
        return True

    def _leave_out(
        self, buffer: _Buffer, bad: list[Served], dropped: int, gap: tuple[int, int] | None
    ) -> tuple[int, tuple[int, int]]:
        """Count vectors of which no table can be made as dropped; return drops and their times."""
        rows = sum(item.num_rows for item in bad)
        times = [*(gap or ()), *(item.request_time for item in bad)]
        with self._lock:
            buffer.dropped += rows
            buffer.malformed += rows
            buffer.waiting -= rows
            buffer.count()
            self._changed.notify_all()
        return dropped + rows, (min(times), max(times))

    def _write(
        self,
        kind: str,
        service: str,
        buffer: _Buffer,
        table: pa.Table,
        *,
        dropped: int,
        gap: tuple[int, int] | None,
    ) -> None:
        folder = self._root / kind / service
        time = "known_at" if kind == "labels" else "request_time"
        times = [*pc.min_max(table.column(time).cast(pa.int64())).as_py().values(), *(gap or ())]
        times = [moment for moment in times if moment is not None]
        told = {
            "writer": self._writer,
            "file": buffer.files,
            "rows": table.num_rows,
            "rows_before": buffer.written,
            "dropped": dropped,
        }
        write(folder / f"{min(times)}-{max(times)}-{uuid4().hex}.parquet", table, told)
        buffer.files += 1
        buffer.written += table.num_rows
