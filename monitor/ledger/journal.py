"""The ledger's file as a journal: transactions, alerts, episodes, and what people did.

Above `reading`; `deliveries` and `ledger` add what they keep in the same file, under the same
lock and in the same transactions.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from threading import Condition, RLock
from typing import TYPE_CHECKING, Any, Self

import duckdb
import structlog

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.featurestore.tables.whole_files import private_folder
from steadfeast.monitor.decisions.model import Alert
from steadfeast.monitor.ledger import queries
from steadfeast.monitor.ledger.codec import dump, load
from steadfeast.monitor.ledger.database import LedgerWriteError, connect, fault, lock, release
from steadfeast.monitor.ledger.state import AuditEntry, EpisodeRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from steadfeast.monitor.decisions.model import TriggerState
    from steadfeast.monitor.ledger.state import TriggerRecord

log = structlog.get_logger(__name__)

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""Size of the write-ahead log at which it is moved into the file; memory holds it till then."""


class Journal:
    """The daemon's DuckDB file; safe to share between threads.

    Methods whose name begins with `add_` are called inside `transaction()`.

    Attributes:
        changed: Notified after each commit.
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
        self._path = folder / "monitor.duckdb"
        self._wal = self._path.with_suffix(".duckdb.wal")
        self._checkpoint_bytes = CHECKPOINT_BYTES
        self._problem = ""
        try:
            self._con = connect(self._path)
        except BaseException:
            os.close(self._holder)
            raise
        self._lock = RLock()
        self._nested = False
        self.changed = Condition(self._lock)

    def close(self) -> None:
        """Write everything into the one file and let it go."""
        with self._lock:
            self._con.close()
            os.close(self._holder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside together, or nothing; may be nested.

        Raises:
            LedgerWriteError: It could not be written, and nothing of it is there.
        """
        with self._lock:
            if self._nested:
                yield
                return
            self._con.execute("BEGIN")
            self._nested = True
            try:
                yield
                fault("before_commit")
                self._commit()
            except BaseException:
                self._rolled_back()
                with suppress(duckdb.Error):  # a commit that failed is rolled back already
                    self._con.execute("ROLLBACK")
                raise
            finally:
                self._nested = False
            self._problem = ""
            self._committed()
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
                self._rows("DELETE FROM version WHERE version = 0")
                self._rows("INSERT INTO version VALUES (0)")

    def _commit(self) -> None:
        try:
            self._con.execute("COMMIT")
        except duckdb.Error as error:
            failed = LedgerWriteError(self._path, str(error))
            self._problem = str(failed)
            if isinstance(error, duckdb.FatalException):
                self._reopen()
            raise failed from error

    def _checkpoint(self) -> None:
        """Move what was committed from the log into the file, now and then."""
        if not self._wal.exists() or self._wal.stat().st_size < self._checkpoint_bytes:
            return
        try:
            self._con.execute("CHECKPOINT")
            self._checkpoint_bytes = CHECKPOINT_BYTES
            release(self._con)
        except duckdb.Error as error:
            # Nothing is lost, the log has it; tried again once that has grown as much again.
            self._checkpoint_bytes += CHECKPOINT_BYTES
            log.warning("checkpoint_failed", reason=str(error).partition("\n")[0])
            self._reopen()

    def _reopen(self) -> None:
        """Open the file anew: after a failure of its own DuckDB wants nothing else."""
        with suppress(duckdb.Error):
            self._con.close()
        self._con = connect(self._path)
        self._rolled_back()
        self._committed()

    def _rolled_back(self) -> None:
        """Forget what was read or written inside the transaction."""

    def _committed(self) -> None:
        """Forget what was read before the transaction."""

    def add_alerts(self, alerts: Sequence[Alert]) -> None:
        """Give each alert the next sequence and keep it."""
        for sequence, alert in enumerate(alerts, self.last_sequence() + 1):
            self._rows(
                "INSERT INTO alerts VALUES (?, ?, ?)",
                sequence,
                alert.monitor,
                dump(replace(alert, sequence=sequence)),
            )

    def alerts(self, after: int, limit: int) -> list[Alert]:
        """Return at most `limit` alerts with a sequence above `after`, in order."""
        with self._lock:
            rows = self._rows(
                "SELECT body FROM alerts WHERE sequence > ? ORDER BY sequence LIMIT ?",
                after,
                limit,
            )
        return [load(Alert, body) for (body,) in rows]

    def alerts_before(self, limit: int, monitor: str = "") -> list[Alert]:
        """Return the newest alerts, newest first; of all monitors without a name."""
        with self._lock:
            rows = self._rows(
                "SELECT body FROM alerts WHERE ? IN ('', monitor) ORDER BY sequence DESC LIMIT ?",
                monitor,
                limit,
            )
        return [load(Alert, body) for (body,) in rows]

    def sent(self, sink: str) -> int:
        """Return up to which alert `sink` has got them; a new one starts with the next alert."""
        with self.transaction():
            last = self.last_sequence()
            self._rows("INSERT INTO sinks VALUES (?, ?) ON CONFLICT DO NOTHING", sink, last)
            ((sequence,),) = self._rows("SELECT sequence FROM sinks WHERE name = ?", sink)
        return int(sequence)

    def add_sent(self, sink: str, sequence: int) -> None:
        """Note that `sink` has got an alert and all before it."""
        self._rows("UPDATE sinks SET sequence = ? WHERE name = ?", sequence, sink)

    def last_sequence(self) -> int:
        """Return the sequence of the newest alert; 0 before the first."""
        with self._lock:
            ((last,),) = self._rows("SELECT coalesce(max(sequence), 0) FROM alerts")
            return int(last)

    def acknowledge(self, episode: str, actor: str, comment: str) -> EpisodeRecord:
        """Note that a person has seen an episode; the first one to do so stays.

        Raises:
            NotFoundError: There is no such episode.
        """
        with self.transaction():
            record = self.episode(episode)
            if not record.acknowledged_by:
                record = replace(record, acknowledged_by=actor)
                self._rewrite(record)
                self.add_audit(actor, "acknowledge", episode, comment)
            return record

    def add_audit(self, actor: str, act: str, subject: str, remark: str) -> None:
        """Note who did what; nothing is ever taken out."""
        self._rows(
            "INSERT INTO audit VALUES (?, ?, ?, ?, ?)",
            datetime.now(UTC),
            actor,
            act,
            subject,
            remark,
        )

    def audit(self, after: int, limit: int) -> list[AuditEntry]:
        """Return at most `limit` entries with a sequence above `after`, in order."""
        with self._lock:
            # Rows are only ever added, so their ids are 0, 1, 2, ... and stay.
            rows = self._rows(
                "SELECT rowid + 1, at_time, actor, act, subject, remark FROM audit "
                "WHERE rowid >= ? ORDER BY rowid LIMIT ?",
                after,
                limit,
            )
        return [AuditEntry(number, at.astimezone(UTC), *said) for number, at, *said in rows]

    def last_audit(self) -> int:
        """Return the sequence of the newest entry; 0 before the first."""
        with self._lock:
            ((last,),) = self._rows("SELECT count(*) FROM audit")
            return int(last)

    def fields(self) -> dict[str, str]:
        """Return what was kept of the last configuration; nothing before the first."""
        with self._lock:
            return dict(self._rows("SELECT name, digest FROM fields"))

    def keep_fields(self, fields: Mapping[str, str]) -> None:
        """Replace what is kept of the configuration; inside a transaction."""
        self._rows("DELETE FROM fields")
        for name, digest in fields.items():
            self._rows("INSERT INTO fields VALUES (?, ?)", name, digest)

    def episode(self, episode: str) -> EpisodeRecord:
        """Return one episode.

        Raises:
            NotFoundError: There is none.
        """
        with self._lock:
            rows = self._rows("SELECT body FROM episodes WHERE episode_id = ?", episode)
            if not rows:
                known = [row[0] for row in self._rows("SELECT episode_id FROM episodes")]
                raise NotFoundError("episode", episode, known)
        return load(EpisodeRecord, rows[0][0])

    def has_episode(self, episode: str) -> bool:
        """Say whether there is, or ever was, such an episode."""
        with self._lock:
            return bool(self._rows("SELECT 1 FROM episodes WHERE episode_id = ?", episode))

    def _rewrite(self, record: EpisodeRecord) -> None:
        self._rows(
            "UPDATE episodes SET closed = ?, body = ? WHERE episode_id = ?",
            not record.open,
            dump(record),
            record.episode_id,
        )

    def triggers(
        self, limit: int, monitor: str = "", states: Sequence[TriggerState] = ()
    ) -> list[TriggerRecord]:
        """Return the newest triggers, newest first; of all monitors and states without any."""
        with self._lock:
            return queries.triggers(self._rows, limit=limit, monitor=monitor, states=states)

    def trigger(self, request: str) -> TriggerRecord:
        """Return one trigger.

        Raises:
            NotFoundError: There is none.
        """
        with self._lock:
            found = queries.triggers(self._rows, request)
            if not found:
                known = [row[0] for row in self._rows("SELECT request_id FROM triggers")]
                raise NotFoundError("trigger", request, known)
            return found[0]

    def asked_for(self, request: str) -> bool:
        """Say whether a request is of a trigger of ours."""
        with self._lock:
            return bool(self._rows("SELECT 1 FROM triggers WHERE request_id = ?", request))

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._con.execute(query, list(values)).fetchall()

    def _count(self, name: str, monitor: str, label: str = "", amount: int = 1) -> None:
        self._rows(
            "INSERT INTO counters VALUES ($1, $2, $3, $4) "
            "ON CONFLICT DO UPDATE SET total = total + $4",
            name,
            monitor,
            label,
            amount,
        )
