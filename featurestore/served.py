"""Vectors that were served, and the log of every one of them.

Above `rows`; imports no Feast, so that what only reads the log starts at once. The hot path pays
for one list append: Arrow work waits for `flush`, which writes one file by rename, so that a
reader sees all of a file or nothing. What a crash loses is what was not flushed, at most
`rows_per_file` rows of a service. Each file carries its writer, its number and what that writer
has logged before it, so that a lost file or row shows.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.rows import TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from featurestore.answers import OnlineFeatures

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

LABELS = pa.schema([("request_id", pa.string()), ("label", pa.float64()), ("known_at", TIMESTAMP)])


@dataclass(frozen=True, slots=True)
class Counters:
    """What one log has taken in since it was opened.

    Attributes:
        requests: Calls of `append`.
        rows: Vectors given to it.
        written: Vectors that are on disk.
    """

    requests: int = 0
    rows: int = 0
    written: int = 0


@dataclass(slots=True)
class _Buffer:
    """One service's vectors or labels that are not on disk yet."""

    items: list[Any] = field(default_factory=list)
    waiting: int = 0
    requests: int = 0
    rows: int = 0
    written: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class _Served:
    features: OnlineFeatures
    request_ids: Sequence[str] | pa.Array | pa.ChunkedArray
    request_time: int
    model: str
    model_version: str
    predictions: Any


class ServedLog:
    """Logs served vectors and their labels under one folder.

    Safe to share between threads. One process may write while others read and write.

    Args:
        root: Folder that holds `served/` and `labels/`.
        rows_per_file: Rows of one service that wait in memory at most.
    """

    def __init__(self, root: Path, *, rows_per_file: int = 100_000) -> None:
        self._root, self._rows_per_file = root, rows_per_file
        self._writer = uuid4().hex
        self._lock = RLock()
        self._served: defaultdict[str, _Buffer] = defaultdict(_Buffer)
        self._labels: defaultdict[str, _Buffer] = defaultdict(_Buffer)

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
            request_ids: One per row, unique for good: labels refer to them.
            request_time: The time that the features were read for.
            model: Name of the model that used them.
            model_version: Its version.
            predictions: One per row, if there are any.
        """
        rows = features.rows
        if len(request_ids) != rows or (predictions is not None and len(predictions) != rows):
            raise ValueError(f"{rows} rows need as many request ids and predictions")
        item = _Served(
            features, request_ids, microseconds(request_time), model, model_version, predictions
        )
        with self._lock:
            buffer = self._served[service]
            buffer.items.append(item)
            buffer.requests += 1
            buffer.rows += rows
            buffer.waiting += rows
            if buffer.waiting >= self._rows_per_file:
                self._flush_served(service)

    def append_labels(
        self,
        service: str,
        request_ids: Sequence[str] | pa.Array | pa.ChunkedArray,
        labels: Sequence[float] | np.ndarray[Any, Any] | pa.Array | pa.ChunkedArray,
        known_at: datetime | pa.Array | pa.ChunkedArray,
    ) -> None:
        """Take in labels of earlier requests.

        Args:
            service: The feature service that was read.
            request_ids: The requests, shape (n,).
            labels: Their outcomes, shape (n,).
            known_at: When they became known: one time, or n of them.
        """
        rows = len(request_ids)
        if isinstance(known_at, datetime):
            known_at = np.full(rows, microseconds(known_at), np.int64)
        known_at = _column(known_at, TIMESTAMP)
        table = pa.table(
            [_column(request_ids, pa.string()), _column(labels, pa.float64()), known_at],
            schema=LABELS,
        )
        with self._lock:
            buffer = self._labels[service]
            buffer.items.append(table)
            buffer.rows += rows
            buffer.waiting += rows
            if buffer.waiting >= self._rows_per_file:
                self._flush_labels(service)

    def flush(self) -> None:
        """Write everything that waits."""
        with self._lock:
            for service in list(self._served):
                self._flush_served(service)
            for service in list(self._labels):
                self._flush_labels(service)

    def counters(self, service: str) -> Counters:
        """Return what this log has taken in for `service` since it was opened."""
        with self._lock:
            buffer = self._served[service]
            return Counters(buffer.requests, buffer.rows, buffer.written)

    def files(self, service: str, start: datetime, end: datetime) -> list[Path]:
        """Return the served files that may hold rows with request time in [start, end)."""
        return _between(self._root / "served" / service, start, end)

    def label_files(self, service: str, start: datetime, end: datetime) -> list[Path]:
        """Return the label files that may hold labels known in [start, end)."""
        return _between(self._root / "labels" / service, start, end)

    def watermark(self, service: str) -> datetime | None:
        """Return the latest request time on disk, or None when nothing is."""
        last = max((last for _, last, _ in _named(self._root / "served" / service)), default=None)
        return None if last is None else _EPOCH + last * _MICROSECOND

    def _flush_served(self, service: str) -> None:
        buffer = self._served[service]
        if not buffer.waiting:
            buffer.items.clear()
            return
        # A rollout serves two contracts, so two sets of columns, at once: one file for each.
        alike: defaultdict[Any, list[_Served]] = defaultdict(list)
        for item in buffer.items:
            alike[item.features.table.schema, tuple(item.features.event_times)].append(item)
        for items in alike.values():
            table = _served_table(items)
            self._write("served", service, buffer, table, "request_time")
        buffer.items.clear()
        buffer.waiting = 0

    def _flush_labels(self, service: str) -> None:
        buffer = self._labels[service]
        if buffer.waiting:
            table = pa.concat_tables(buffer.items).combine_chunks()
            self._write("labels", service, buffer, table, "known_at")
        buffer.items.clear()
        buffer.waiting = 0

    def _write(self, kind: str, service: str, buffer: _Buffer, table: pa.Table, time: str) -> None:
        folder = self._root / kind / service
        folder.mkdir(parents=True, exist_ok=True)
        times = table.column(time).cast(pa.int64()).to_numpy()
        name = f"{times.min()}-{times.max()}-{uuid4().hex}.parquet"
        lineage = {
            "steadfeast.writer": self._writer,
            "steadfeast.file": str(buffer.files),
            "steadfeast.rows": str(table.num_rows),
            "steadfeast.rows_before": str(buffer.written),
        }
        half = folder / f".{name}.half"
        pq.write_table(table.replace_schema_metadata(lineage), half, compression="zstd")
        os.replace(half, folder / name)  # noqa: PTH105 - says that it replaces
        buffer.files += 1
        buffer.written += table.num_rows


def microseconds(time: datetime) -> int:
    """Return microseconds since the epoch, exactly; a naive time is UTC."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return (time - _EPOCH) // _MICROSECOND


def _served_table(items: list[_Served]) -> pa.Table:
    """One table from the calls that wait, all with the same columns."""
    rows = [item.features.rows for item in items]

    def repeated(values: list[str]) -> pa.Array:
        return pa.array(np.repeat(np.array(values, dtype=object), rows), pa.string())

    times = np.repeat(np.array([item.request_time for item in items], dtype=np.int64), rows)
    columns: dict[str, Any] = {
        "request_id": _stacked(_column(item.request_ids, pa.string()) for item in items),
        "request_time": pa.array(times).cast(TIMESTAMP),
        "model": repeated([item.model for item in items]),
        "model_version": repeated([item.model_version for item in items]),
        "contract": repeated([item.features.contract for item in items]),
    }
    vectors = pa.concat_tables([item.features.table for item in items])
    columns |= zip(vectors.column_names, vectors.columns, strict=True)
    for view in items[0].features.event_times:
        columns[f"{view}__event_timestamp"] = _stacked(
            _column(item.features.event_times[view], TIMESTAMP) for item in items
        )
    columns["prediction"] = _stacked(
        pa.nulls(count, pa.float64())
        if item.predictions is None
        else _column(item.predictions, pa.float64())
        for item, count in zip(items, rows, strict=True)
    )
    return pa.table(columns).combine_chunks()


def _column(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Arrow, numpy or a list, as Arrow of one type."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values if values.type == kind else values.cast(kind)
    if isinstance(values, np.ndarray) and pa.types.is_timestamp(kind):
        return pa.array(values).cast(kind)
    return pa.array(values, kind)


def _stacked(columns: Iterable[pa.Array | pa.ChunkedArray]) -> pa.ChunkedArray:
    chunks: list[pa.Array] = []
    for column in columns:
        chunks += column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return pa.chunked_array(chunks)


def _named(folder: Path) -> Iterator[tuple[int, int, str]]:
    """First and last microsecond and name of each finished file; reads nothing but the folder."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a Path for each of a year's files costs more
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(".parquet") and not name.startswith("."):
            first, last, _ = name.split("-", 2)
            yield int(first), int(last), name


def _between(folder: Path, start: datetime, end: datetime) -> list[Path]:
    lowest, highest = microseconds(start), microseconds(end)
    found = [item for item in _named(folder) if item[0] < highest and item[1] >= lowest]
    return [folder / name for _, _, name in sorted(found)]
