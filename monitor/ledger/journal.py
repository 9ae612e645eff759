"""What was told and done: alerts, episodes, triggers, and the audit log of what people did.

Above `queries` and `file`; `ledger` composes it with the outbox, in the same transactions.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.decisions import Alert
from steadfeast.monitor.ledger import queries
from steadfeast.monitor.ledger.codec import dump, from_json
from steadfeast.monitor.ledger.state import AuditEntry, EpisodeRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steadfeast.monitor.decisions import TriggerState
    from steadfeast.monitor.ledger.file import LedgerFile
    from steadfeast.monitor.ledger.state import TriggerRecord


class Journal:
    """Alerts, episodes, triggers and the audit log in one ledger file.

    Methods whose name begins with `add_` are called inside a transaction.

    Args:
        file: The ledger's.
    """

    def __init__(self, file: LedgerFile) -> None:
        self._lock, self._rows, self._transaction = file.lock, file.rows, file.transaction

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
        return [from_json(Alert, body) for (body,) in rows]

    def alerts_before(self, limit: int, monitor: str = "") -> list[Alert]:
        """Return the newest alerts, newest first; of all monitors without a name."""
        with self._lock:
            rows = self._rows(
                "SELECT body FROM alerts WHERE ? IN ('', monitor) ORDER BY sequence DESC LIMIT ?",
                monitor,
                limit,
            )
        return [from_json(Alert, body) for (body,) in rows]

    def sent(self, sink: str) -> int:
        """Return up to which alert `sink` has got them; a new one starts with the next alert."""
        with self._transaction():
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
        with self._transaction():
            record = self.episode(episode)
            if not record.acknowledged_by:
                record = replace(record, acknowledged_by=actor)
                self.rewrite(record)
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
        return from_json(EpisodeRecord, rows[0][0])

    def has_episode(self, episode: str) -> bool:
        """Say whether there is, or ever was, such an episode."""
        with self._lock:
            return bool(self._rows("SELECT 1 FROM episodes WHERE episode_id = ?", episode))

    def rewrite(self, record: EpisodeRecord) -> None:
        """Replace what is kept of an episode; inside a transaction."""
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
