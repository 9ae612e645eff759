"""The daemon's DuckDB file: one holder, one schema, and a clear word when it cannot be used.

Above `episodes`; `ledger` is the only one that reads and writes what is opened here.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import duckdb

from steadfeast.featurestore.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1

MOST_MEMORY, HELD_MEMORY = "512MB", "1MB"
"""What DuckDB may take for the ledger, and what it may hold for later."""

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    # The tables are small, and the evaluation has work for the other threads.
    "threads": "1",
    # A checkpoint inside a commit leaves open, when it fails, whether the commit holds. So it is
    # asked for by itself: see `LedgerFile`.
    "checkpoint_threshold": "1TB",
    # What was read or is not yet in the file stays in memory up to here; see also `release`.
    "memory_limit": MOST_MEMORY,
}

SCHEMA = """
CREATE TABLE version (version INTEGER NOT NULL);
-- What each monitor goes on from: PolicyState and Reference as JSON.
CREATE TABLE monitors (
    name VARCHAR PRIMARY KEY, watermark TIMESTAMPTZ, policy VARCHAR NOT NULL,
    reference VARCHAR, reference_key VARCHAR NOT NULL);
-- Every frozen bucket, with its profile over the reference of that key.
CREATE TABLE buckets (
    monitor VARCHAR, start_time TIMESTAMPTZ, end_time TIMESTAMPTZ NOT NULL,
    row_count BIGINT NOT NULL, late_rows BIGINT NOT NULL, watermark TIMESTAMPTZ,
    sha256 VARCHAR NOT NULL, path VARCHAR NOT NULL, frozen_at TIMESTAMPTZ NOT NULL,
    reference_key VARCHAR NOT NULL, profile VARCHAR NOT NULL,
    PRIMARY KEY (monitor, start_time));
-- Every evaluated window: what was measured, and in `past` what its charts need.
CREATE TABLE windows (
    monitor VARCHAR, end_time TIMESTAMPTZ, past VARCHAR NOT NULL, verdicts VARCHAR NOT NULL,
    figures VARCHAR NOT NULL, freshness VARCHAR NOT NULL, incidents VARCHAR NOT NULL,
    performance VARCHAR NOT NULL,
    PRIMARY KEY (monitor, end_time));
CREATE TABLE episodes (
    episode_id VARCHAR PRIMARY KEY, opened_at TIMESTAMPTZ NOT NULL, closed BOOLEAN NOT NULL,
    body VARCHAR NOT NULL);
-- One row a request that was ever decided to fire or not; `run` is the pipeline's last word.
CREATE TABLE triggers (
    request_id VARCHAR PRIMARY KEY, position BIGINT NOT NULL, monitor VARCHAR NOT NULL,
    model VARCHAR NOT NULL, state VARCHAR NOT NULL, reason VARCHAR NOT NULL,
    episode_ids VARCHAR[] NOT NULL, decided_at TIMESTAMPTZ NOT NULL, fired_at TIMESTAMPTZ,
    run BLOB, run_sequence BIGINT NOT NULL, run_ended BOOLEAN NOT NULL);
-- Promotions that no trigger of ours asked for.
CREATE TABLE promotions (
    run_id VARCHAR, monitor VARCHAR, noticed_at TIMESTAMPTZ NOT NULL, run BLOB NOT NULL,
    PRIMARY KEY (run_id, monitor));
-- The requests of those that fired, as they are sent; `state` is pending, delivered or dead.
CREATE TABLE outbox (
    request_id VARCHAR PRIMARY KEY, target VARCHAR NOT NULL, body BLOB NOT NULL,
    committed_at TIMESTAMPTZ NOT NULL, state VARCHAR NOT NULL, attempts BIGINT NOT NULL);
CREATE TABLE alerts (sequence BIGINT PRIMARY KEY, monitor VARCHAR NOT NULL, body VARCHAR NOT NULL);
CREATE TABLE counters (
    name VARCHAR, monitor VARCHAR, label VARCHAR, total BIGINT NOT NULL,
    PRIMARY KEY (name, monitor, label));
-- What each evaluated window was compared with, and how its values spread.
CREATE TABLE spreads (
    monitor VARCHAR, end_time TIMESTAMPTZ, reference_key VARCHAR NOT NULL, body VARCHAR NOT NULL,
    PRIMARY KEY (monitor, end_time));
-- Each evaluated window in parts, where a monitor splits its rows.
CREATE TABLE segments (
    monitor VARCHAR, end_time TIMESTAMPTZ, body VARCHAR NOT NULL,
    PRIMARY KEY (monitor, end_time));
-- Up to which alert each target of `alerts` has got them.
CREATE TABLE sinks (name VARCHAR PRIMARY KEY, sequence BIGINT NOT NULL);
-- What people did; rows are only ever added.
CREATE TABLE audit (
    at_time TIMESTAMPTZ NOT NULL, actor VARCHAR NOT NULL, act VARCHAR NOT NULL,
    subject VARCHAR NOT NULL, remark VARCHAR NOT NULL);
-- A digest of each field of the last configuration.
CREATE TABLE fields (name VARCHAR PRIMARY KEY, digest VARCHAR NOT NULL);
"""


class LedgerLockedError(UserError):
    """Another process holds the state folder.

    Attributes:
        folder: The folder.
        pid: Process id of the holder, as it wrote it; empty if it did not come to that.
    """

    def __init__(self, folder: Path, pid: str) -> None:
        self.folder, self.pid = folder, pid
        super().__init__(f"{folder}: held by another daemon (pid {pid or 'unknown'})")


class LedgerVersionError(UserError):
    """The file was written by a newer version.

    Attributes:
        path: The file.
        found: Its version.
    """

    def __init__(self, path: Path, found: int) -> None:
        self.path, self.found = path, found
        super().__init__(
            f"{path}: written by a newer Steadfeast (ledger version {found}, this one knows "
            f"{VERSION}); upgrade, or restore the file from before"
        )


class LedgerBrokenError(UserError):
    """The file cannot be read in full.

    Attributes:
        path: The file.
        problem: What DuckDB says.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(
            f"{path}: truncated, damaged or not a ledger; restore it, or move it away to start "
            f"anew ({problem.splitlines()[0]})"
        )


class LedgerWriteError(UserError):
    """Nothing can be written: most often the disk is full. What was committed before is safe.

    Attributes:
        path: The file.
        problem: What DuckDB says.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: cannot be written: {problem.splitlines()[0]}")


def lock(folder: Path) -> int:
    """Take `folder` for this process; the kernel gives it back however the process ends.

    Returns:
        The descriptor to close in order to give it back.

    Raises:
        LedgerLockedError: Another process holds it.
    """
    holder = os.open(folder / "monitor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.read(holder, 32).decode(errors="replace").strip()
        os.close(holder)
        raise LedgerLockedError(folder, pid) from error
    os.ftruncate(holder, 0)
    os.pwrite(holder, f"{os.getpid()}\n".encode(), 0)
    return holder


def open_ledger(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the file, or make a new one, and read all of it once.

    A new one is made aside and renamed, so that a file without tables is never a new one: it
    has lost them.

    Raises:
        LedgerVersionError: It is of a newer version.
        LedgerBrokenError: It cannot be read.
    """
    if not path.exists():
        aside = path.with_suffix(".new")
        aside.unlink(missing_ok=True)
        with duckdb.connect(str(aside)) as con:
            con.execute(f"BEGIN; {SCHEMA} INSERT INTO version VALUES ({VERSION}); COMMIT")
        aside.rename(path)
    try:
        con = duckdb.connect(str(path), config=_SETTINGS)
    except duckdb.Error as error:
        raise LedgerBrokenError(path, str(error)) from error
    try:
        _check(con, path)
    except duckdb.Error as error:
        con.close()
        raise LedgerBrokenError(path, str(error)) from error
    except UserError:
        con.close()
        raise
    return con


def release(con: duckdb.DuckDBPyConnection) -> None:
    """Have DuckDB let go of what it has read of the file.

    It holds whatever it has read until there is no room, so that a process would grow for weeks.
    """
    with suppress(duckdb.OutOfMemoryException):  # what is in use stays, and so does the limit
        con.execute(f"SET memory_limit = '{HELD_MEMORY}'")
    con.execute(f"SET memory_limit = '{MOST_MEMORY}'")


def _check(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET enable_progress_bar = false")  # it draws into the log
    ((found,),) = con.execute("SELECT max(version) FROM version").fetchall()
    if found > VERSION:
        raise LedgerVersionError(path, found)
    for (table,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall():
        # A truncated file opens, and fails only where a missing block is read.
        con.execute(f'SELECT max(hash(t)) FROM "{table}" AS t').fetchall()


_visits: dict[str, int] = {}


def fault(point: str) -> None:
    """Die here as by `kill -9`, if the environment says so; a test walks these points.

    `STEADFEAST_FAULT` is a point and the number of the visit to die at: `before_commit:3`.
    """
    wanted, _, number = os.environ.get("STEADFEAST_FAULT", "").partition(":")
    if wanted == point:
        _visits[point] = _visits.get(point, 0) + 1
        if _visits[point] == int(number or 1):
            os._exit(137)
