"""The rows of one time bucket, frozen.

Above `monitor.profiles.profile`. What is watched grows and changes; a monitor looks at one bucket
of event time at a time and must see the same rows whenever it looks again. So it freezes them: one
Parquet file per bucket, sorted, written aside and renamed. A file that is there is the truth:
whatever crashes or restarts, a bucket is frozen once.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.tables import EPOCH, identifier, literal, sweep, whole_file
from steadfeast.monitor.sources.quarantine import Fault, Quarantined

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

REQUEST, AT = "request_id", "request_time"
"""Columns of a snapshot: what a row answers, of a served log only; and its event time."""
OPEN = ".open"
_QUARANTINED = b"quarantined"
ERASED = b"steadfeast.erased"
"""Entries of a snapshot's metadata: what was left out of it; that rows were erased from it."""
BATCH_ROWS = 32_768
"""Columns of so many numbers stay in a processor's cache from one step to the next."""


class SnapshotUnreadableError(UserError):
    """A frozen bucket cannot be read.

    Attributes:
        path: Its file.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(
            f"snapshot {path}: cannot be read ({problem}); restore it from a copy, or remove it: "
            "what was counted of it stays in the ledger"
        )


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A stretch of event time, start inclusive, end exclusive."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class RowQuery:
    """A query, and the values that are bound to it, for rows with a column `request_time`."""

    query: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Sequence[Path]) -> RowQuery | None:
        """Return the rows of Parquet files; they may have different columns."""
        if not files:
            return None
        query = "SELECT * FROM read_parquet($files, union_by_name = true)"
        return cls(query, {"files": sorted(map(str, files))})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen bucket.

    Attributes:
        monitor: Whose.
        bucket: The stretch of event time.
        rows: Rows in it; 0 is a bucket like any other.
        watermark: Latest `request_time` in it; None without rows.
        sha256: Of the file, 64 hexadecimal digits.
        path: The file.
        quarantined: What the source held of the bucket and could not be read.
    """

    monitor: str
    bucket: Bucket
    rows: int
    watermark: datetime | None
    sha256: str
    path: Path
    quarantined: tuple[Quarantined, ...] = ()

    def batches(
        self, columns: Collection[str] | None = None, *, categories: Collection[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows; columns that the file lacks are left out.

        Args:
            columns: Which to read; None means all.
            categories: Text columns to yield as dictionaries, which is how the file has them
                where values repeat: their rows are then counted without being looked at.

        Raises:
            SnapshotUnreadableError: The file cannot be read.
        """
        with naming(self.path), pq.ParquetFile(self.path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        wanted = [name for name in schema.names if columns is None or name in columns]
        coded = [name for name in wanted if name in categories and _text(schema.field(name).type)]
        # Neither mapped nor fetched ahead: both hold more of the file than the row group in hand.
        options = {"read_dictionary": coded, "pre_buffer": False}
        with pq.ParquetFile(self.path, metadata=metadata, **options) as file:
            given = file.iter_batches(BATCH_ROWS, columns=wanted)
            while True:
                with naming(self.path):  # and not what is done with a batch
                    batch = next(given, None)
                if batch is None:
                    return
                yield batch


def buckets(after: datetime, until: datetime, length: timedelta) -> list[Bucket]:
    """Return the whole buckets within [after, until), in order; they are aligned to 1970 UTC."""
    start = EPOCH + -((EPOCH - after) // length) * length
    if start < after:
        start += length
    found = []
    while start + length <= until:
        found.append(Bucket(start, start + length))
        start += length
    return found


def bucket_path(state: Path, monitor: str, bucket: Bucket) -> Path:
    """Return where the snapshot of `bucket` is kept under the daemon's folder `state`."""
    return (
        state / "snapshots" / monitor / f"{bucket.start.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}.parquet"
    )


def open_path(path: Path) -> Path:
    """Return where the rows so far of a bucket are kept that still takes late ones."""
    return path.with_suffix(OPEN)


def swept(state: Path) -> None:
    """Remove what a process before this one left half done; snapshots themselves stay."""
    for left in (state / "snapshots").glob(f"*/*{OPEN}"):
        left.unlink(missing_ok=True)
    sweep(state)


def freeze(
    con: duckdb.DuckDBPyConnection,
    rows: RowQuery | Sequence[Path] | None,
    bucket: Bucket,
    path: Path,
    *,
    again: bool = False,
    quarantined: Sequence[Quarantined] = (),
) -> Snapshot:
    """Freeze the rows whose `request_time` is in `bucket` as the file `path`.

    Does nothing but read if the file is there, unless it is to be frozen again or cannot be read.
    The snapshot has all columns that there are.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        rows: May hold rows outside the bucket; of Parquet files, their names are enough.
        bucket: What to keep.
        path: `bucket_path` of it; its folder's name is the monitor's.
        again: Replace a file that is there, by rename.
        quarantined: What is left out of `rows`; the file says so.
    """
    if again or not path.exists():
        if rows is not None and not isinstance(rows, RowQuery):
            rows = RowQuery.of(rows)
        with whole_file(path) as aside:
            con.execute(*_copy(con, rows, bucket, aside, quarantined)).fetchall()
        return read_snapshot(con, bucket, path)
    try:
        return read_snapshot(con, bucket, path)
    except SnapshotUnreadableError as error:
        # Damaged between the rename and the ledger's commit: nothing was decided on it.
        log.warning("snapshot_frozen_again", path=str(path), reason=str(error))
        return freeze(con, rows, bucket, path, again=True, quarantined=quarantined)


def read_snapshot(con: duckdb.DuckDBPyConnection, bucket: Bucket, path: Path) -> Snapshot:
    """Return the snapshot that is kept in `path`.

    Raises:
        SnapshotUnreadableError: It cannot be read.
    """
    query = "SELECT count(*), epoch_us(max(request_time)) FROM read_parquet($path)"
    with naming(path):
        ((rows, micros),) = con.execute(query, {"path": str(path)}).fetchall()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        text = (pq.read_metadata(path).metadata or {}).get(_QUARANTINED, b"[]")
    watermark = None if micros is None else EPOCH + timedelta(microseconds=micros)
    listed = json.loads(text)
    quarantined = tuple(Quarantined(**{**one, "fault": Fault(one["fault"])}) for one in listed)
    return Snapshot(path.parent.name, bucket, rows, watermark, digest, path, quarantined)


def damage(path: Path, sha256: str) -> str:
    """Return what is wrong with a frozen file, in one line; empty if nothing is.

    Args:
        path: The file. One that is not there is out of retention, and nothing is wrong with it.
        sha256: Of the file as it was frozen. One that rows were erased from has another, and is
            read whole instead.
    """
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return ""
        with pq.ParquetFile(path) as file:
            if ERASED not in (file.metadata.metadata or {}):
                return "it is not the file that was frozen: its SHA-256 is another"
            for _ in file.iter_batches(BATCH_ROWS):
                pass
    except FileNotFoundError:
        return ""
    except (OSError, pa.ArrowException) as error:
        return f"it cannot be read: {str(error).partition(chr(10))[0]}"
    return ""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error name the snapshot that is read within.

    Raises:
        SnapshotUnreadableError: It cannot be read.
    """
    try:
        yield
    except (OSError, pa.ArrowException, duckdb.Error) as error:
        raise SnapshotUnreadableError(path, str(error).partition("\n")[0]) from error


def _copy(
    con: duckdb.DuckDBPyConnection,
    rows: RowQuery | None,
    bucket: Bucket,
    aside: Path,
    quarantined: Sequence[Quarantined],
) -> tuple[str, dict[str, Any]]:
    target = literal(str(aside))  # COPY takes no bound file name
    said = literal(json.dumps([asdict(one) for one in quarantined]))
    meta = f", KV_METADATA {{{_QUARANTINED.decode()}: {said}}}" if quarantined else ""
    options = f"(FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false{meta})"
    if rows is None:
        blank = "SELECT NULL::VARCHAR AS request_id, NULL::TIMESTAMPTZ AS request_time LIMIT 0"
        return f"COPY ({blank}) TO {target} {options}", {}
    values = dict(rows.values)
    described = con.execute(f"DESCRIBE {rows.query}", values).fetchall()
    # By name, and rows by everything: neither the order of the files nor of their rows shows.
    names = sorted((row[0] for row in described), key=lambda name: (name != REQUEST, name))
    query = (
        f"SELECT {', '.join(map(identifier, names))} FROM ({rows.query}) "
        "WHERE request_time >= $start AND request_time < $end ORDER BY ALL"
    )
    return (
        f"COPY ({query}) TO {target} {options}",
        {**values, "start": bucket.start, "end": bucket.end},
    )


def _text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
