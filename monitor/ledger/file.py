"""The ledger's DuckDB file as one connection under one lock, with transactions and checkpoints.

Above `database`; the journal, the outbox and the ledger keep what is theirs in it, in the same
transactions.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from threading import Condition, RLock
from typing import TYPE_CHECKING, Any

import duckdb
import structlog

from steadfeast.featurestore.tables import private_folder
from steadfeast.monitor.ledger.database import LedgerWriteError, fault, lock, open_ledger, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""Size of the write-ahead log at which it is moved into the file; memory holds it till then."""


class LedgerFile:
    """The daemon's DuckDB file; safe to share between threads.

    Attributes:
        lock: Held by whoever reads or writes.
        changed: Notified after each commit.
        on_rollback: Called when what was written in a transaction is not there.
        on_commit: Called after each commit.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the ledger in `folder`.

        Raises:
            LedgerLockedError: Another process holds it.
            LedgerVersionError: It is of a newer version.
            LedgerBrokenError: It cannot be read.
        """
        private_folder(folder)
        self._holder = lock(folder)
        self.path = folder / "monitor.duckdb"
        self._wal = self.path.with_suffix(".duckdb.wal")
        self._checkpoint_bytes = CHECKPOINT_BYTES
        self._problem = ""
        try:
            self.con = open_ledger(self.path)
        except BaseException:
            os.close(self._holder)
            raise
        self.lock = RLock()
        self._nested = False
        self.on_rollback: list[Callable[[], object]] = []
        self.on_commit: list[Callable[[], object]] = []
        self.changed = Condition(self.lock)

    def close(self) -> None:
        """Write everything into the one file and let it go."""
        with self.lock:
            self.con.close()
            os.close(self._holder)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside together, or nothing; may be nested.

        Raises:
            LedgerWriteError: It could not be written, and nothing of it is there.
        """
        with self.lock:
            if self._nested:
                yield
                return
            self.con.execute("BEGIN")
            self._nested = True
            try:
                yield
                fault("before_commit")
                self._commit()
            except BaseException:
                _call(self.on_rollback)
                with suppress(duckdb.Error):  # a commit that failed is rolled back already
                    self.con.execute("ROLLBACK")
                raise
            finally:
                self._nested = False
            self._problem = ""
            _call(self.on_commit)
            self.changed.notify_all()
            self._checkpoint()
        fault("after_commit")

    @property
    def problem(self) -> str:
        """Why the last commit failed; empty when it did not."""
        return self._problem

    def probe(self) -> None:
        """Write again after a commit that failed, to see whether there is room now.

        Raises:
            LedgerWriteError: There is none.
        """
        if self._problem:
            with self.transaction():
                # A row that says nothing: what changes nothing would not be written.
                self.rows("DELETE FROM version WHERE version = 0")
                self.rows("INSERT INTO version VALUES (0)")

    def _commit(self) -> None:
        try:
            self.con.execute("COMMIT")
        except duckdb.Error as error:
            failed = LedgerWriteError(self.path, str(error))
            self._problem = str(failed)
            if isinstance(error, duckdb.FatalException):
                self._reopen()
            raise failed from error

    def _checkpoint(self) -> None:
        """Move what was committed from the log into the file, now and then."""
        if not self._wal.exists() or self._wal.stat().st_size < self._checkpoint_bytes:
            return
        try:
            self.con.execute("CHECKPOINT")
            self._checkpoint_bytes = CHECKPOINT_BYTES
            release(self.con)
        except duckdb.Error as error:
            # Nothing is lost, the log has it; tried again once that has grown as much again.
            self._checkpoint_bytes += CHECKPOINT_BYTES
            log.warning("checkpoint_failed", reason=str(error).partition("\n")[0])
            self._reopen()

    def _reopen(self) -> None:
        """Open the file anew: after a failure of its own DuckDB wants nothing else."""
        with suppress(duckdb.Error):
            self.con.close()
        self.con = open_ledger(self.path)
        _call(self.on_rollback)
        _call(self.on_commit)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a query with the values that are bound to it; all rows at once."""
        return self.con.execute(query, list(values)).fetchall()

    def count(self, name: str, monitor: str, label: str = "", amount: int = 1) -> None:
        """Add to one of the counts over the life of the ledger."""
        self.rows(
            "INSERT INTO counters VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO UPDATE SET total = total + $4",
            name,
            monitor,
            label,
            amount,
        )


def _call(listeners: Sequence[Callable[[], object]]) -> None:
    for listener in listeners:
        listener()
