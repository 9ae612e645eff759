"""What the daemon knows, in the one DuckDB file that it owns.

Above `policy`, which decides what is committed here; below `evaluation`, `outbox` and `server`,
which do. One connection under one lock writes, and what belongs together is one transaction:
`with ledger.transaction(): ...`. `Ledger.state()` is the last committed state as one immutable
value, for everybody who only reads.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Condition, RLock
from typing import TYPE_CHECKING, Any, Self

from featurestore.errors import NotFoundError
from monitor import messages, reading
from monitor.calibrate import Reference
from monitor.codec import dump, load
from monitor.database import connect, fault, lock
from monitor.detect import Verdict
from monitor.episodes import Alert, AlertKind, ModelHistory, Outcome, PolicyState, Severity
from monitor.quality import Figures, Freshness, Incident
from monitor.reading import Held, Kept
from monitor.state import EpisodeRecord, MonitorState, PastWindow, State
from protos.steadfeast.v1.pipeline_pb2 import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from monitor.config import MonitorConfig
    from monitor.episodes import Decision, Evaluation, Trigger
    from monitor.profile import Profile
    from monitor.snapshot import Snapshot
    from monitor.state import TriggerRecord

__all__ = ["Following", "Held", "Kept", "Ledger", "Message", "MonitorState", "State"]

SEVERITIES = {
    "promoted": Severity.INFO,
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


class Ledger:
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
        folder.mkdir(parents=True, exist_ok=True)
        self._holder = lock(folder)
        try:
            self._con = connect(folder / "monitor.duckdb")
        except BaseException:
            os.close(self._holder)
            raise
        self._lock = RLock()
        self._nested = False
        self._held: dict[str, Held] = {}
        self._state: State | None = None
        self._monitors: dict[str, MonitorState] = {}
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
        """Commit everything written inside together, or nothing; may be nested."""
        with self._lock:
            if self._nested:
                yield
                return
            self._con.execute("BEGIN")
            self._nested = True
            try:
                yield
                fault("before_commit")
                self._con.execute("COMMIT")
            except BaseException:
                self._held.clear()
                self._con.execute("ROLLBACK")
                raise
            finally:
                self._nested = False
            self._state = None
            self.changed.notify_all()
        fault("after_commit")

    # What a monitor goes on from

    def held(self, monitor: str) -> Held:
        """Return what `monitor` goes on from; the default before it was ever seen."""
        with self._lock:
            if monitor not in self._held:
                rows = self._rows(
                    "SELECT watermark, policy, reference, reference_key FROM monitors "
                    "WHERE name = ?",
                    monitor,
                )
                self._held[monitor] = Held()
                for watermark, policy, reference, key in rows:
                    known = None if reference is None else Reference.from_json(reference)
                    self._held[monitor] = Held(
                        reading.utc(watermark), load(PolicyState, policy), known, key
                    )
            return self._held[monitor]

    def hold(self, monitor: str, held: Held) -> None:
        """Replace what `monitor` goes on from."""
        reference = None
        if held.reference is not None and held.reference is not self.held(monitor).reference:
            reference = held.reference.to_json()
        with self.transaction():
            self._rows(
                "INSERT INTO monitors VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO UPDATE SET "
                "watermark = $2, policy = $3, reference = coalesce($4, reference), "
                "reference_key = $5",
                monitor,
                held.watermark,
                dump(held.policy),
                reference,
                held.reference_key,
            )
            self._held[monitor] = held
            self._monitors.pop(monitor, None)

    def history(self, model: str) -> ModelHistory:
        """Return what the ledger knows of a model's triggers; `blocked` is the caller's."""
        with self._lock:
            rows = self._rows(
                "SELECT request_id, fired_at, state = 'pending' OR "
                "(state = 'delivered' AND NOT run_ended) FROM triggers "
                "WHERE model = ? AND fired_at IS NOT NULL ORDER BY position",
                model,
            )
        return ModelHistory(
            fired=tuple(fired.astimezone(UTC) for _, fired, _ in rows),
            running=next((request for request, _, under_way in rows if under_way), ""),
        )

    # Buckets and windows

    def add_bucket(
        self, monitor: str, snapshot: Snapshot, profile: Profile, key: str, frozen_at: datetime
    ) -> None:
        """Keep a frozen bucket; a second one of the same monitor and start is an error."""
        self._rows(
            "INSERT INTO buckets VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
            monitor,
            snapshot.bucket.start,
            snapshot.bucket.end,
            snapshot.rows,
            snapshot.watermark,
            snapshot.sha256,
            str(snapshot.path),
            frozen_at,
            key,
            profile.to_json(),
        )
        self._count("snapshots", monitor)
        self._count("rows", monitor, amount=snapshot.rows)

    def buckets(self, monitor: str, start: datetime, end: datetime) -> list[Kept]:
        """Return the frozen buckets inside [start, end), in order."""
        with self._lock:
            return reading.buckets(self._rows, monitor, start, end)

    def add_late_rows(self, monitor: str, kept: Kept, late_rows: int) -> None:
        """Correct how many rows came after a bucket was frozen."""
        self._rows(
            "UPDATE buckets SET late_rows = ? WHERE monitor = ? AND start_time = ?",
            late_rows,
            monitor,
            kept.bucket.start,
        )
        self._count("late_rows", monitor, amount=late_rows - kept.late_rows)

    def add_window(self, evaluation: Evaluation) -> None:
        """Keep what was measured about one window."""
        performance = evaluation.performance
        past = PastWindow(
            evaluation.window,
            {v.feature: v.ratio for v in evaluation.verdicts if v.value is not None},
            {} if performance is None else dict(performance.metrics),
        )
        self._rows(
            "INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            evaluation.monitor,
            evaluation.window.end,
            dump(past),
            dump(evaluation.verdicts, tuple[Verdict, ...]),
            dump(evaluation.figures, tuple[Figures, ...]),
            dump(evaluation.freshness, tuple[Freshness, ...]),
            dump(evaluation.incidents, tuple[Incident, ...]),
            "" if performance is None else dump(performance),
        )

    # Decisions

    def add_decision(self, monitor: str, config: MonitorConfig, decision: Decision) -> None:
        """Keep a decision: its episodes, triggers, outbox messages and alerts."""
        for episode in decision.opened:
            record = EpisodeRecord(
                episode.episode_id,
                monitor,
                episode.kind,
                episode.window.end,
                None,
                episode.features,
                episode.summary,
            )
            self._rows(
                "INSERT INTO episodes VALUES (?, ?, false, ?)",
                record.episode_id,
                record.opened_at,
                dump(record),
            )
            if config.pipeline is None:
                self._count("decisions", monitor, "no_pipeline")
        for closed in decision.closed:
            record = self.episode(closed.episode_id)
            self._rewrite(replace(record, closed_at=closed.at, reason=closed.reason))
        for trigger in decision.triggers:
            self._add_trigger(monitor, config, trigger)
        self.add_alerts(decision.alerts)

    def _add_trigger(self, monitor: str, config: MonitorConfig, trigger: Trigger) -> None:
        fired = trigger.outcome is Outcome.FIRED
        self._rows(
            "INSERT INTO triggers VALUES ($1, (SELECT coalesce(max(position), 0) + 1 "
            "FROM triggers), $2, $3, $4, $5, $6, $7, $8, NULL, 0, false) "
            "ON CONFLICT DO UPDATE SET state = $4, reason = $5, decided_at = $7, fired_at = $8",
            trigger.request_id,
            monitor,
            config.model,
            trigger.state.value,
            trigger.reason,
            trigger.episode.episode_id,
            trigger.at,
            trigger.at if fired else None,
        )
        self._count("decisions", monitor, trigger.outcome.value)
        if fired:
            self._rows(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, 'pending', 0)",
                trigger.request_id,
                config.pipeline,
                messages.request(monitor, config.model, trigger).SerializeToString(),
                datetime.now(UTC),
            )

    def add_alerts(self, alerts: Sequence[Alert]) -> None:
        """Give each alert the next sequence and keep it."""
        for sequence, alert in enumerate(alerts, self.last_sequence() + 1):
            self._rows(
                "INSERT INTO alerts VALUES (?, ?, ?)",
                sequence,
                alert.monitor,
                dump(replace(alert, sequence=sequence)),
            )

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

    def _rewrite(self, record: EpisodeRecord) -> None:
        self._rows(
            "UPDATE episodes SET closed = ?, body = ? WHERE episode_id = ?",
            not record.open,
            dump(record),
            record.episode_id,
        )

    def trigger(self, request: str) -> TriggerRecord:
        """Return one trigger.

        Raises:
            NotFoundError: There is none.
        """
        with self._lock:
            found = reading.triggers(self._rows, request)
            if not found:
                known = [row[0] for row in self._rows("SELECT request_id FROM triggers")]
                raise NotFoundError("trigger", request, known)
            return found[0]

    # Delivery

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
        with self.transaction():
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
        with self.transaction():
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
        with self.transaction():
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

    def _tell(
        self,
        request: str,
        kind: AlertKind,
        severity: Severity,
        summary: str,
        *,
        resolved: bool = False,
    ) -> None:
        trigger = self.trigger(request)
        alert = Alert(
            kind,
            severity,
            trigger.monitor,
            trigger.decided_at,
            f"retraining {trigger.model}: {summary}",
            trigger.episode_id,
            self.episode(trigger.episode_id).features,
            resolved,
        )
        self.add_alerts([alert])

    # Reading

    def state(self, monitors: Mapping[str, MonitorConfig]) -> State:
        """Return the last committed state; what the daemon adds (jobs, idle) is left out."""
        with self._lock:
            if self._state is None or list(self._state.monitors) != list(monitors):
                self._state = State(
                    monitors={name: self._monitor(name, monitors[name]) for name in monitors},
                    episodes=tuple(reading.episodes(self._rows)),
                    triggers=tuple(reading.triggers(self._rows)),
                    alerts=tuple(self.alerts_before(reading.LISTED)),
                    outbox=reading.outbox(self._rows),
                    counters=reading.counters(self._rows),
                )
            return self._state

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

    def last_sequence(self) -> int:
        """Return the sequence of the newest alert; 0 before the first."""
        with self._lock:
            ((last,),) = self._rows("SELECT coalesce(max(sequence), 0) FROM alerts")
            return int(last)

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

    def _monitor(self, name: str, config: MonitorConfig) -> MonitorState:
        """Read one monitor, but only what is newer than what was read before."""
        held, before = self.held(name), self._monitors.get(name)
        if before is None or before.watermark != held.watermark:
            self._monitors[name] = reading.monitor(self._rows, name, config, held)
        return self._monitors[name]
