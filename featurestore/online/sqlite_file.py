"""One SQLite file: its connections, which are reused as long as the file is the one that is there.

Below `sqlite`. The file is in WAL mode and its owner's alone.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple

from steadfeast.featurestore.errors import StoreUnavailableError
from steadfeast.featurestore.tables import make_private, private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steadfeast.featurestore.online.progress import Place

_STATEMENTS = 256  # kept prepared by each connection: a view has up to 55, see `_round`
_PAGE = 8192  # bytes: twenty rows of 50 numbers, so that the tree is shallow
_CACHE_KIB = 16 * 1024  # of each connection; SQLite's own 2 MiB hold few of the inner pages
_LOOK_SECONDS = 0.02
"""How long reads take the file for the one that it was; a write looks each time."""
LAYOUTS = "steadfeast_layouts"
VALUES = "steadfeast_values"


def close_all(files: Mapping[tuple[str, int], File]) -> None:
    """Close the connections that nobody uses, of files by path and process."""
    for (_, process), file in files.items():
        while file.idle:
            opened = file.idle.pop()
            if process == os.getpid():  # a forked process must not touch its parent's
                opened.connection.close()


class Opened(NamedTuple):
    """A connection.

    Attributes:
        connection: SQLite's.
        identity: Which file it has open, see `_identity`.
        served: Generations that were seen to be served from that file.
    """

    connection: sqlite3.Connection
    identity: tuple[int, int]
    served: set[str]


class File:
    """The database under one path, for one process.

    A file that was removed or replaced lives on in its connections. So which file is there is
    looked at again and again, and connections to another are closed.

    Attributes:
        path: It.
        idle: Connections that nobody uses.
        identity: Which file was there last.
        look_at: From when on to look again, by the monotonic clock.
    """

    __slots__ = ("identity", "idle", "look_at", "path")

    def __init__(self, path: str) -> None:
        self.path, self.idle = path, deque[Opened]()
        self.identity, self.look_at = _identity(path), 0.0

    def look(self, now: float) -> None:
        """Take note of the file that is there."""
        self.identity, self.look_at = _identity(self.path), now + _LOOK_SECONDS


class Borrowed:
    """A connection for the length of a `with`; an error of SQLite's is one of ours outside it."""

    __slots__ = ("_file", "_opened", "_timeout")

    def __init__(self, file: File, timeout_seconds: float) -> None:
        self._file, self._timeout = file, timeout_seconds

    def serves(self, place: Place) -> bool:
        """Say whether the file has this generation of a view."""
        opened = self._opened
        if place.generation in opened.served:
            return True
        head = read_value(opened.connection, place.space, "head")
        served = head is not None and head.startswith(place.generation.encode())
        if served:
            opened.served.add(place.generation)
        return served

    def look(self) -> None:
        """Use the file that is there at this very moment."""
        self._file.look_at = 0.0

    def __enter__(self) -> sqlite3.Connection:
        file, now = self._file, monotonic()
        if now >= file.look_at:
            file.look(now)
        try:
            opened = file.idle.pop()
            while opened.identity != file.identity:
                opened.connection.close()
                opened = file.idle.pop()
        except IndexError:
            try:
                connection = _connect(file.path, self._timeout)
            except (sqlite3.Error, OSError) as error:
                raise self._unavailable(error) from error
            file.look(now)
            opened = Opened(connection, file.identity, set())
        self._opened = opened
        return opened.connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.idle.append(self._opened)
        if isinstance(error, sqlite3.Error):
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"online store {self._file.path}", str(error))


def _identity(path: str) -> tuple[int, int]:
    """Return device and inode of a file."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _connect(path: str, timeout_seconds: float) -> sqlite3.Connection:
    private_folder(Path(path).parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    make_private(Path(path))  # SQLite gives the files beside it the same rights
    connection = sqlite3.connect(
        path,
        timeout=timeout_seconds,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS,
    )
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE}")  # of a new file
        _use_wal(connection, timeout_seconds)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {LAYOUTS} (space TEXT, id BLOB, generation INTEGER,"
            " layout BLOB, PRIMARY KEY (space, id)) WITHOUT ROWID"
        )
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {VALUES} (space TEXT, name TEXT, value BLOB,"
            " PRIMARY KEY (space, name)) WITHOUT ROWID"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, timeout_seconds: float) -> None:
    """Switch a new file to WAL mode; SQLite does not wait for others who do, so this does."""
    deadline = monotonic() + timeout_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


def read_value(connection: sqlite3.Connection, space: str, name: str) -> bytes | None:
    """Return a small value of a view; None without one."""
    query = f"SELECT value FROM {VALUES} WHERE space = ? AND name = ?"
    row = connection.execute(query, (space, name)).fetchone()
    return None if row is None else bytes(row[0])


def keep_value(connection: sqlite3.Connection, space: str, name: str, value: bytes) -> None:
    """Keep a small value of a view."""
    query = f"INSERT OR REPLACE INTO {VALUES} VALUES (?, ?, ?)"
    connection.execute(query, (space, name, value))
