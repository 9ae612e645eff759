"""What the daemon knows, in the one DuckDB file that it owns.

Above `policy`, which decides what is committed here; below `evaluation`, `outbox` and `server`,
which do. One connection under one lock writes, and what belongs together is one transaction:
`with ledger.transaction(): ...`. `Ledger.state()` is the last committed state as one immutable
value, for everybody who only reads.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from steadfeast.featurestore.tables import kept_path
from steadfeast.monitor.decisions import ModelHistory, Outcome, PastRun, PolicyState, gain_of
from steadfeast.monitor.drift import (
    Figures,
    Freshness,
    Incident,
    Reference,
    ReferenceVersionError,
    Segment,
    Verdict,
)
from steadfeast.monitor.ledger import messages, queries
from steadfeast.monitor.ledger.codec import dump, from_json
from steadfeast.monitor.ledger.file import LedgerFile
from steadfeast.monitor.ledger.journal import Journal
from steadfeast.monitor.ledger.outbox import Following, Message, Outbox
from steadfeast.monitor.ledger.queries import FrozenBucket, Position
from steadfeast.monitor.ledger.state import EpisodeRecord, MonitorState, PastWindow, State
from steadfeast.monitor.profiles import Distribution
from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.decisions import Decision, Evaluation, Trigger
    from steadfeast.monitor.profiles import Profile, Window
    from steadfeast.monitor.sources import Snapshot

__all__ = ["Following", "FrozenBucket", "Ledger", "Message", "MonitorState", "Position", "State"]


class Ledger:
    """The daemon's DuckDB file; safe to share between threads.

    It holds what monitors go on from, their buckets and windows, and a journal and an outbox in the
    same file, whose methods are its own too. Methods whose name begins with `add_` are called
    inside `transaction()`.

    Attributes:
        file: The connection, its lock and transactions.
        journal: Alerts, episodes, triggers and the audit log.
        outbox: Messages to deliver and runs to follow.
        changed: Notified after each commit.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the ledger in `folder`.

        Raises:
            LedgerLockedError: Another process holds it.
            LedgerVersionError: It is of a newer version.
            LedgerBrokenError: It cannot be read.
        """
        self.file = file = LedgerFile(folder)
        self.journal = journal = Journal(file)
        self.outbox = outbox = Outbox(file, journal)
        self._lock, self._rows, self._count = file.lock, file.rows, file.count
        self._held: dict[str, Position] = {}
        self._state: State | None = None
        self._monitors: dict[str, MonitorState] = {}
        file.on_rollback.append(self._held.clear)
        file.on_commit.append(self._forget_state)
        self.transaction, self.probe, self.close = file.transaction, file.probe, file.close
        self.changed = file.changed
        self.add_alerts, self.alerts = journal.add_alerts, journal.alerts
        self.alerts_before, self.last_sequence = journal.alerts_before, journal.last_sequence
        self.sent, self.add_sent = journal.sent, journal.add_sent
        self.acknowledge, self.add_audit = journal.acknowledge, journal.add_audit
        self.audit, self.last_audit = journal.audit, journal.last_audit
        self.fields, self.keep_fields = journal.fields, journal.keep_fields
        self.episode, self.has_episode = journal.episode, journal.has_episode
        self.triggers, self.trigger = journal.triggers, journal.trigger
        self.asked_for = journal.asked_for
        self.pending, self.attempted, self.delivered = (
            outbox.pending,
            outbox.attempted,
            outbox.delivered,
        )
        self.following, self.run_event = outbox.following, outbox.run_event
        self.add_promotion, self.revive = outbox.add_promotion, outbox.revive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def problem(self) -> str:
        """Why the last commit failed; empty when it did not."""
        return self.file.problem

    def _forget_state(self) -> None:
        self._state = None

    # What a monitor goes on from

    def held(self, monitor: str) -> Position:
        """Return what `monitor` goes on from; the default before it was ever seen."""
        with self._lock:
            if monitor not in self._held:
                rows = self._rows(
                    "SELECT watermark, policy, reference, reference_key FROM monitors "
                    "WHERE name = ?",
                    monitor,
                )
                self._held[monitor] = Position()
                for watermark, policy, reference, key in rows:
                    known, outdated = None, None
                    try:
                        known = None if reference is None else Reference.from_json(reference)
                    except ReferenceVersionError as error:
                        outdated = error.outdated
                    self._held[monitor] = Position(
                        queries.utc(watermark), from_json(PolicyState, policy), known, key, outdated
                    )
            return self._held[monitor]

    def hold(self, monitor: str, held: Position) -> None:
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
                "SELECT request_id, fired_at, state, run_ended, run FROM triggers "
                "WHERE model = ? AND fired_at IS NOT NULL ORDER BY position",
                model,
            )
        under_way = [
            request
            for request, _, state, ended, _ in rows
            if state == "pending" or (state == "delivered" and not ended)
        ]
        return ModelHistory(
            runs=tuple(
                _past(at.astimezone(UTC), Run.FromString(run) if ended else None)
                for _, at, _, ended, run in rows
            ),
            running=under_way[0] if under_way else "",
            without_promotion=frozenset(
                request
                for request, _, state, ended, run in rows
                if state == "dead" or (ended and not messages.was_promoted(Run.FromString(run)))
            ),
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
            kept_path(snapshot.path, self.file.path.parent),
            frozen_at,
            key,
            profile.to_json(),
        )
        self._count("snapshots", monitor)
        self._count("rows", monitor, amount=snapshot.rows)

    def buckets(
        self, monitor: str, start: datetime, end: datetime, *, but: str = ""
    ) -> list[FrozenBucket]:
        """Return the frozen buckets inside [start, end), in order; none of reference key `but`."""
        with self._lock:
            return queries.buckets(self._rows, self.file.path.parent, monitor, start, end, but=but)

    def profile(self, monitor: str, kept: FrozenBucket) -> str:
        """Return the profile of a frozen bucket, as JSON."""
        with self._lock:
            ((text,),) = self._rows(
                "SELECT profile FROM buckets WHERE monitor = ? AND start_time = ?",
                monitor,
                kept.bucket.start,
            )
        return str(text)

    def add_profile(self, monitor: str, kept: FrozenBucket, profile: Profile, key: str) -> None:
        """Replace the profile of a bucket by one over the reference of `key`."""
        self._rows(
            "UPDATE buckets SET profile = ?, reference_key = ? "
            "WHERE monitor = ? AND start_time = ?",
            profile.to_json(),
            key,
            monitor,
            kept.bucket.start,
        )

    def add_spread(
        self, monitor: str, end: datetime, key: str, spread: Sequence[Distribution]
    ) -> None:
        """Keep how the values of the window that ends at `end` spread, and what beside."""
        self._rows(
            "INSERT INTO spreads VALUES (?, ?, ?, ?)",
            monitor,
            end,
            key,
            dump(tuple(spread), tuple[Distribution, ...]),
        )

    def spread(self, monitor: str, end: datetime) -> tuple[Distribution, ...]:
        """Return how the values of the window that ends at `end` spread; empty if not kept."""
        with self._lock:
            rows = self._rows(
                "SELECT body FROM spreads WHERE monitor = ? AND end_time = ?", monitor, end
            )
        return from_json(tuple[Distribution, ...], rows[0][0]) if rows else ()

    def add_late_rows(self, monitor: str, kept: FrozenBucket, late_rows: int) -> None:
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
            dict(evaluation.estimated),
            None if performance is None else performance.window.end,
            evaluation.judged,
            evaluation.withheld,
            evaluation.quarantined,
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
        if evaluation.segments:
            self._rows(
                "INSERT INTO segments VALUES (?, ?, ?)",
                evaluation.monitor,
                evaluation.window.end,
                dump(evaluation.segments, tuple[Segment, ...]),
            )

    def last_window(self, monitor: str) -> Window | None:
        """Return the last window that was judged; None before the first."""
        with self._lock:
            rows = self._rows(
                "SELECT past FROM windows WHERE monitor = ? ORDER BY end_time DESC LIMIT 1", monitor
            )
        return from_json(PastWindow, rows[0][0]).window if rows else None

    def judged(self, monitor: str) -> list[tuple[PastWindow, tuple[Verdict, ...]]]:
        """Return every evaluated window with its verdicts, by time."""
        with self._lock:
            rows = self._rows(
                "SELECT past, verdicts FROM windows WHERE monitor = ? ORDER BY end_time", monitor
            )
        return [
            (from_json(PastWindow, past), from_json(tuple[Verdict, ...], verdicts))
            for past, verdicts in rows
        ]

    def episodes(self) -> list[EpisodeRecord]:
        """Return every open episode and the last that closed, newest first in each."""
        with self._lock:
            return queries.episodes(self._rows, 1_000_000)

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
                episode.members,
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
        for episode in decision.changed:
            record = self.episode(episode.episode_id)
            self.journal.rewrite(replace(record, members=episode.members, summary=episode.summary))
        for closed in decision.closed:
            record = self.episode(closed.episode.episode_id)
            self.journal.rewrite(
                replace(
                    record,
                    closed_at=closed.at,
                    reason=closed.reason,
                    members=closed.episode.members,
                )
            )
        for trigger in decision.triggers:
            self._add_trigger(monitor, config, trigger)
        self.add_alerts(decision.alerts)

    def _add_trigger(self, monitor: str, config: MonitorConfig, trigger: Trigger) -> None:
        fired = trigger.outcome is Outcome.FIRED
        self._rows(
            "INSERT INTO triggers VALUES ($1, (SELECT coalesce(max(position), 0) + 1 "
            "FROM triggers), $2, $3, $4, $5, $6, $7, $8, NULL, 0, false) "
            "ON CONFLICT DO UPDATE SET state = $4, reason = $5, episode_ids = $6, "
            "decided_at = $7, fired_at = $8",
            trigger.request_id,
            monitor,
            config.model,
            trigger.state.value,
            trigger.reason,
            [one.episode_id for one in trigger.episodes],
            trigger.at,
            trigger.at if fired else None,
        )
        if trigger.decided:
            self._count("decisions", monitor, trigger.outcome.value)
        if fired:
            self._rows(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, 'pending', 0)",
                trigger.request_id,
                config.pipeline,
                messages.request(monitor, config.model, trigger).SerializeToString(),
                datetime.now(UTC),
            )

    # Reading

    def state(self, monitors: Mapping[str, MonitorConfig]) -> State:
        """Return the last committed state; what the daemon adds (jobs, idle) is left out."""
        with self._lock:
            if self._state is None or list(self._state.monitors) != list(monitors):
                self._state = State(
                    monitors={name: self._monitor(name, monitors[name]) for name in monitors},
                    episodes=tuple(queries.episodes(self._rows)),
                    triggers=tuple(queries.triggers(self._rows)),
                    promotions=tuple(queries.promotions(self._rows)),
                    alerts=tuple(self.alerts_before(queries.LISTED)),
                    outbox=queries.outbox(self._rows),
                    counters=queries.counters(self._rows),
                )
            return self._state

    def _monitor(self, name: str, config: MonitorConfig) -> MonitorState:
        """Read one monitor, but only what is newer than what was read before."""
        held, before = self.held(name), self._monitors.get(name)
        if before is None or before.watermark != held.watermark:
            self._monitors[name] = queries.monitor(self._rows, name, config, held)
        return self._monitors[name]


def _past(at: datetime, run: Run | None) -> PastRun:
    """Return a retraining as later ones are decided by; one that has not ended costs a whole run.

    A run of ours that ended without a model was fitted once of twice if its model was judged, and
    not at all if its data were refused.
    """
    if run is None:
        return PastRun(at)
    gain, error = gain_of(
        (gate.difference, gate.low, gate.high) for gate in run.gates if gate.HasField("difference")
    )
    if messages.was_promoted(run):
        return PastRun(at, 1.0, True, gain, error)
    return PastRun(at, 0.5 if run.metrics else 0.0, False, gain, error)
