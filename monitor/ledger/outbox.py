"""What of the ledger the outbox works with: messages to deliver, and runs to follow.

Above `journal`; `ledger` puts a message here with the decision that it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadfeast.monitor.decisions import (
    Alert,
    AlertKind,
    NotDecidableError,
    Severity,
    TriggerState,
)
from steadfeast.monitor.ledger import messages
from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.monitor.ledger.file import LedgerFile
    from steadfeast.monitor.ledger.journal import Journal

SEVERITIES = {
    "promoted": Severity.INFO,
    "succeeded": Severity.INFO,
    "refused": Severity.WARNING,
    "cancelled": Severity.WARNING,
    "failed": Severity.CRITICAL,
}
"""How urgent each end of a run is."""


@dataclass(frozen=True, slots=True)
class Message:
    """One trigger to deliver: a serialized TriggerRetrainRequest and whom it is for."""

    request_id: str
    target: str
    body: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class Following:
    """A run that is under way, and the last event of it that was committed."""

    request_id: str
    model: str
    target: str
    run: Run
    sequence: int


class Outbox:
    """Messages to deliver and runs to follow, in one ledger file.

    Args:
        file: The ledger's.
        journal: Of the same file; gets the alerts.
    """

    def __init__(self, file: LedgerFile, journal: Journal) -> None:
        self._lock, self._rows, self._transaction = file.lock, file.rows, file.transaction
        self._journal = journal

    def pending(self) -> list[Message]:
        """Return what is to deliver, oldest first."""
        with self._lock:
            rows = self._rows(
                "SELECT request_id, target, body, attempts FROM outbox WHERE state = 'pending' "
                "ORDER BY committed_at, request_id"
            )
        return [Message(*row) for row in rows]

    def attempted(self, request: str, *, dead: str = "") -> None:
        """Count a delivery that failed; with a reason, give the message up."""
        with self._transaction():
            self._rows(
                "UPDATE outbox SET attempts = attempts + 1, state = ? WHERE request_id = ?",
                "dead" if dead else "pending",
                request,
            )
            if dead:
                self._rows(
                    "UPDATE triggers SET state = 'dead', reason = ? WHERE request_id = ?",
                    dead,
                    request,
                )
                self._tell(request, AlertKind.TRIGGER, Severity.CRITICAL, f"given up: {dead}")

    def delivered(self, request: str, run: Run) -> None:
        """Keep the run that the pipeline answered with."""
        with self._transaction():
            self._rows(
                "UPDATE outbox SET attempts = attempts + 1, state = 'delivered' "
                "WHERE request_id = ?",
                request,
            )
            self._rows(
                "UPDATE triggers SET state = 'delivered', reason = '', run = ? "
                "WHERE request_id = ?",
                run.SerializeToString(),
                request,
            )
            self._tell(request, AlertKind.TRIGGER, Severity.INFO, f"accepted as run {run.run_id}")

    def following(self) -> list[Following]:
        """Return the runs under way, oldest first."""
        with self._lock:
            rows = self._rows(
                "SELECT t.request_id, t.model, o.target, t.run, t.run_sequence "
                "FROM triggers AS t JOIN outbox AS o USING (request_id) "
                "WHERE t.state = 'delivered' AND NOT t.run_ended ORDER BY t.position"
            )
        return [
            Following(request, model, target, Run.FromString(run), sequence)
            for request, model, target, run, sequence in rows
        ]

    def run_event(self, request: str, run: Run, sequence: int, *, note: str = "") -> None:
        """Keep a run as it was after one of its events, and tell of its end.

        Args:
            request: Whose run.
            run: The run after the event.
            sequence: The event; a watch resumes after it.
            note: What else there is to say about the end.
        """
        ended = run.state in messages.ENDED
        with self._transaction():
            self._rows(
                "UPDATE triggers SET run = ?, run_sequence = ?, run_ended = ? WHERE request_id = ?",
                run.SerializeToString(),
                sequence,
                ended,
                request,
            )
            if ended:
                state = messages.state_name(run.state)
                version = f"version {run.model_version}" if run.model_version else ""
                told = [f"run {run.run_id} {state}", version, run.reason, note]
                summary = ": ".join(filter(None, told))
                self._tell(request, AlertKind.RUN, SEVERITIES[state], summary, resolved=True)

    def add_promotion(self, monitor: str, run: Run, noticed_at: datetime) -> None:
        """Keep a promotion that no trigger asked for; inside a transaction."""
        self._rows(
            "INSERT INTO promotions VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            run.run_id,
            monitor,
            noticed_at,
            run.SerializeToString(),
        )

    def revive(self, request: str, target: str) -> None:
        """Have a message that was given up delivered again, to `target`.

        Raises:
            NotDecidableError: It was not given up.
        """
        with self._transaction():
            state = self._journal.trigger(request).state
            if state is not TriggerState.DEAD:
                raise NotDecidableError(request, f"was not given up: it is {state}")
            self._rows(
                "UPDATE outbox SET state = 'pending', target = ? WHERE request_id = ?",
                target,
                request,
            )
            self._rows(
                "UPDATE triggers SET state = 'pending', reason = '' WHERE request_id = ?", request
            )
            self._tell(request, AlertKind.TRIGGER, Severity.INFO, "to be delivered again")

    def _tell(
        self,
        request: str,
        kind: AlertKind,
        severity: Severity,
        summary: str,
        *,
        resolved: bool = False,
    ) -> None:
        trigger = self._journal.trigger(request)
        episodes = [self._journal.episode(one) for one in trigger.episode_ids]
        alert = Alert(
            kind,
            severity,
            trigger.monitor,
            trigger.decided_at,
            f"retraining {trigger.model}: {summary}",
            {one.episode_id: one.summary for one in episodes},
            tuple(verdict for one in episodes for verdict in one.features),
            resolved,
        )
        self._journal.add_alerts([alert])
