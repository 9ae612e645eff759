"""The files of the served log: their names, what they say of themselves, and how they go.

Above `evidence`; imports no Feast. A file's name is its first and last microsecond and something
random; its metadata is its place in what one writer wrote, so that a lost file or row shows. What
is removed on purpose leaves a trace: rows that were erased are counted in the file, files that
were collected in `collected.json` beside the others.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import time_ns
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.featurestore.errors import DamagedFilesError
from steadfeast.featurestore.tables import micros, whole_file, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

_ERASED = b"steadfeast.erased"
_COLLECTED = "collected.json"
SETTLED_NS = 2_000_000_000
"""How long after a change of a folder its time tells whether there was another."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a served file says of itself, and what it holds.

    Attributes:
        writer: Which log wrote it.
        number: Its place among that log's files of the service, from 0.
        said: Rows that were written to it.
        holds: Rows that it holds, and those that were erased from it.
        before: Rows that this log had written of the service before it.
        dropped: Vectors that this log dropped since the file before it.
    """

    writer: str
    number: int
    said: int
    holds: int
    before: int
    dropped: int


def lineage(path: Path) -> Lineage:
    """Read what a served file says of itself.

    Raises:
        DamagedFilesError: It cannot be read.
    """
    with _named(path):
        metadata = pq.read_metadata(path)
    told = metadata.metadata or {}
    writer = told.get(b"steadfeast.writer", b"").decode()
    number, said, before, dropped = (
        int(told.get(f"steadfeast.{name}".encode(), b"0"))
        for name in ("file", "rows", "rows_before", "dropped")
    )
    erased = int(told.get(_ERASED, b"0"))
    return Lineage(writer, number, said, metadata.num_rows + erased, before, dropped)


def damaged(paths: Iterable[Path]) -> dict[Path, str]:
    """Read files whole, and return of each that cannot be read what is wrong with it."""
    found = {}
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for _ in file.iter_batches():
                    pass
        except FileNotFoundError:
            continue  # collected or erased meanwhile
        except (OSError, pa.ArrowException) as error:
            found[path] = str(error).partition("\n")[0]
    return found


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DamagedFilesError({path: str(error).partition("\n")[0]}) from error


def write(path: Path, table: pa.Table, told: Mapping[str, object]) -> None:
    """Write one file, whole or not at all, with what it says of itself."""
    metadata = {f"steadfeast.{name}": str(value) for name, value in told.items()}
    _write(path, table.replace_schema_metadata(metadata))


def _write(path: Path, table: pa.Table) -> None:
    with whole_file(path) as half:
        pq.write_table(table, half, compression="zstd")


def take_out(path: Path, keep: pa.Array) -> None:
    """Write a file anew without the rows that `keep` has false for; it counts them as erased.

    Raises:
        DamagedFilesError: It cannot be read.
    """
    with _named(path):
        told = dict(pq.read_metadata(path).metadata or {})
        table = pq.read_table(path, partitioning=None)
    left = table.filter(keep)
    erased = int(told.get(_ERASED, b"0")) + table.num_rows - left.num_rows
    kept = {name: value for name, value in told.items() if name.startswith(b"steadfeast.")}
    _write(path, left.replace_schema_metadata({**kept, _ERASED: str(erased).encode()}))


def named(folder: Path) -> Iterator[tuple[int, int, str]]:
    """Yield first and last microsecond and name of each finished file; reads only the folder."""
    return (_parsed(name) for name in _names(folder) if _finished(name))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - a Path for each of a year's files costs more
    except FileNotFoundError:
        return []


def _finished(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".")


def _parsed(name: str) -> tuple[int, int, str]:
    first, last, _ = name.split("-", 2)
    return int(first), int(last), name


class Listing:
    """The finished files of one folder, by time; safe to share between threads.

    A folder that has not changed is not listed again, and of one that has only new names are read:
    a log of months is looked at many times a minute. Some 0.4 KB are held for each file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, Lock()
        self._changed = -1
        self._known: dict[str, tuple[int, int, str]] = {}
        self._sorted: list[tuple[int, int, str]] = []
        self._longest = 0

    def between(self, start: datetime, end: datetime) -> list[Path]:
        """Return the files that may hold rows of [start, end), in order of time."""
        lowest, highest = micros(start), micros(end)
        with self._lock:
            self._look()
            # A file that reaches into the stretch begins no longer before it than any file lasts.
            low = bisect_left(self._sorted, (lowest - self._longest,))
            high = bisect_left(self._sorted, (highest,))
            return [
                self._folder / name for _, last, name in self._sorted[low:high] if last >= lowest
            ]

    def newest(self) -> tuple[int, Path] | None:
        """Return the last microsecond of all, and the file that holds it; None without files."""
        with self._lock:
            self._look()
            # Files overlap where several processes write: the last to begin may end before others.
            least = self._sorted[-1][0] - self._longest if self._sorted else 0
            late = self._sorted[bisect_left(self._sorted, (least,)) :]
            found = max(late, key=lambda item: item[1], default=None)
        return None if found is None else (found[1], self._folder / found[2])

    def _look(self) -> None:
        try:
            changed = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if changed == self._changed:
            return
        names = {name for name in _names(self._folder) if _finished(name)}
        if gone := self._known.keys() - names:
            for name in gone:
                del self._known[name]
            self._sorted = sorted(self._known.values())
        for name in names - self._known.keys():
            self._known[name] = item = _parsed(name)
            self._sorted.append(item)
            self._longest = max(self._longest, item[1] - item[0])
        self._sorted.sort()
        # A change within the clock's grain of the last one may not show in the time.
        settled = time_ns() - changed > SETTLED_NS
        self._changed = changed if settled else -1


@dataclass(frozen=True, slots=True)
class Run:
    """Files of one writer that were collected, one after the other.

    Attributes:
        writer: Which log wrote them.
        first: Number of the first.
        last: Number of the last.
        before: Rows that the log had written before them.
        rows: Rows that were written to them.
        until: The latest time in them, microseconds.
    """

    writer: str
    first: int
    last: int
    before: int
    rows: int
    until: int


def collected(folder: Path) -> list[Run]:
    """Return what was collected of a service's files."""
    path = folder / _COLLECTED
    if not path.is_file():
        return []
    return [Run(**run) for run in json.loads(path.read_text(encoding="utf-8"))]


def collect(folder: Path, files: Iterable[Path]) -> None:
    """Remove files, and remember that they were there.

    A crash in between leaves files that are remembered: they no longer count, and go next time.
    """
    files = list(files)
    runs = collected(folder)
    for path in files:
        told = lineage(path)
        until = int(path.name.split("-", 2)[1])
        runs.append(Run(told.writer, told.number, told.number, told.before, told.said, until))
    merged: list[Run] = []
    for run in sorted(set(runs), key=lambda run: (run.writer, run.first, -run.last)):
        last = merged[-1] if merged else None
        if last is not None and last.writer == run.writer and run.last <= last.last:
            continue
        if last is not None and last.writer == run.writer and run.first == last.last + 1:
            until = max(last.until, run.until)
            rows = last.rows + run.rows
            merged[-1] = Run(run.writer, last.first, run.last, last.before, rows, until)
        else:
            merged.append(run)
    held: list[dict[str, Any]] = [
        {name: getattr(run, name) for name in Run.__slots__} for run in merged
    ]
    write_whole(folder / _COLLECTED, json.dumps(held).encode())
    for path in files:
        path.unlink()
