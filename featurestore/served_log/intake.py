"""How many vectors a process has taken in, where they outlive it.

Below `log`; imports no Feast. Vectors wait in memory for a while, and a process that is killed
takes them along. Its count does not go: it lies in a small file that the kernel writes, so that an
audit can say how many vectors were served and never written. The file is locked while its process
lives, which is how a reader tells vectors that wait from vectors that are lost.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUFFIX = ".intake"
_LAYOUT = Struct("<qqq")


@dataclass(frozen=True, slots=True)
class Intake:
    """What one writer has taken in of one service.

    Attributes:
        writer: Which log; files name it, too.
        rows: Rows that were given to it.
        dropped: Those that it left out, and counts as dropped.
        last_time: Request time of the last of them, microseconds.
        alive: Whether its process still runs.
    """

    writer: str
    rows: int
    dropped: int
    last_time: int
    alive: bool


class IntakeFile:
    """The count of one writer, in the folder of one service.

    Args:
        folder: Of the service; is made.
        writer: Name of the log.

    Raises:
        OSError: The disk takes nothing.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Hidden, so that whoever reads the folder as a table of Parquet files does not see it.
        self._path = folder / f".{writer}{_SUFFIX}"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.posix_fallocate(self._file, 0, _LAYOUT.size)  # a full disk says so now, not later
            self._map = mmap.mmap(self._file, _LAYOUT.size)
        except OSError:
            os.close(self._file)
            raise

    def put(self, rows: int, dropped: int, last_time: int) -> None:
        """Set the count; a few hundred nanoseconds."""
        _LAYOUT.pack_into(self._map, 0, rows, dropped, last_time)

    def remove(self) -> None:
        """Forget the count: everything is written, and nobody takes in any more."""
        self._path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._file)


def intakes(folder: Path) -> Iterator[tuple[Path, Intake]]:
    """Yield the counts that lie in the folder of a service, and their files."""
    for path in sorted(folder.glob(f".*{_SUFFIX}")):
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # its process has just ended in order
            continue
        try:
            content = os.read(file, _LAYOUT.size)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                alive = False
            except BlockingIOError:
                alive = True
        finally:
            os.close(file)
        if len(content) == _LAYOUT.size:
            rows, dropped, last_time = _LAYOUT.unpack(content)
            yield path, Intake(path.stem[1:], rows, dropped, last_time, alive)
