"""One closed bucket after the other: measured, decided, committed.

Above `ledger`; below `daemon`, which says when. A bucket is evaluated once: its key in the
ledger, its episode, trigger and outbox message commit together, and what to do next follows
from the watermark that commits with them. A crash in between leaves a snapshot file, which is
found again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.served_log import ServedLog
from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.decisions import (
    Decision,
    ModelHistory,
    NotDecidableError,
    approve,
    decide,
    move_reference,
    reject,
)
from steadfeast.monitor.drift import Level
from steadfeast.monitor.evaluation.open_window import OpenWindows
from steadfeast.monitor.evaluation.reference_builder import ReferenceBuilder, reference_key
from steadfeast.monitor.evaluation.window import Measurer
from steadfeast.monitor.profiles import distributions
from steadfeast.monitor.sources import Bucket, Sources, buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from steadfeast.monitor.config import DaemonConfig, MonitorConfig
    from steadfeast.monitor.drift import Reference
    from steadfeast.monitor.ledger import (
        FrozenBucket,
        Ledger,
        MonitorState,
        Position,
        TriggerRecord,
    )
    from steadfeast.monitor.sources import Source, ViewFacts
    from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run

log = structlog.get_logger(__name__)

_REMEASURED = "limits are measured in another way since Steadfeast was upgraded"


class Evaluator:
    """Evaluates the monitors of one configuration; safe to share between threads.

    Args:
        config: The monitors and the clock.
        ledger: Where everything is committed.
        data: Folder that holds `served/` and `labels/`.
        views: What is known of the store's feature views.
    """

    def __init__(
        self,
        config: DaemonConfig,
        ledger: Ledger,
        data: Path,
        views: Mapping[str, ViewFacts] = MappingProxyType({}),
    ) -> None:
        self.config = config
        self._ledger, self._log = ledger, ServedLog(data)
        self._sources = Sources(self._log, views)
        self._latest: dict[str, datetime | None] = {}
        self._problems: dict[str, str] = {}
        self._measurer = Measurer(
            self._source, self._log, data, config.state, ledger.buckets, ledger.profile
        )
        self._looks = OpenWindows(self._measurer, self._source)
        self._builder = ReferenceBuilder(ledger, data)
        self._busy = Lock()
        self._dropped: dict[str, datetime] = {}

    def _source(self, monitor: str, config: MonitorConfig) -> Source:
        return self._sources.of(monitor, config)

    def prepare(
        self, config: DaemonConfig, views: Mapping[str, ViewFacts] | None = None
    ) -> dict[str, Reference]:
        """Build the references that `config` needs anew; changes nothing.

        Raises:
            UserError: The configuration does not fit what is watched, or the reference.
        """
        sources = self._sources if views is None else Sources(self._log, views)
        return self._builder.prepare(config, sources)

    def configure(
        self,
        config: DaemonConfig,
        prepared: Mapping[str, Reference],
        views: Mapping[str, ViewFacts] | None = None,
    ) -> None:
        """Go on with another configuration, and what was prepared for it, from now on."""
        with self._busy:
            self.config = config
            if views is not None:
                self._sources = Sources(self._log, views)
            self._dropped.clear()  # buckets may have had another length
            if prepared:
                self.move(prepared, "the configuration changed")

    def reference_problem(self) -> str:
        """Return what is wrong with the building of references; empty if nothing is."""
        return self._builder.problem()

    def close(self) -> None:
        """Wait for an evaluation under way and let go of the connection."""
        self._builder.close()
        with self._busy:
            self._measurer.close()

    # Time

    def latest(self, monitor: str) -> datetime | None:
        """Return the latest event time of what a monitor watches; reads no rows.

        Of a table that cannot be read now, what it was; see `problem`.
        """
        try:
            self._latest[monitor] = self._source(monitor, self.config.monitors[monitor]).latest()
            self._problems.pop(monitor, None)
        except SourceError as error:
            self._problems[monitor] = str(error)
        return self._latest.get(monitor)

    def has_rows(self, monitor: str, start: datetime, end: datetime) -> bool:
        """Say whether what a monitor watches may have rows in [start, end)."""
        return bool(self._source(monitor, self.config.monitors[monitor]).parts(start, end))

    def problem(self, monitor: str) -> str:
        """Return why what a monitor watches cannot be read; empty if it can, as of `latest`."""
        return self._problems.get(monitor, "")

    def now(self, monitor: str, *, latest: datetime | None = None) -> datetime | None:
        """Return what time it is for `monitor`; none before the first row of a replay."""
        if self.config.clock == "wall":
            return datetime.now(UTC)
        return latest or self.latest(monitor)

    def due(
        self, monitor: str, limit: int | None = None, *, latest: datetime | None = None
    ) -> list[Bucket]:
        """Return the closed buckets that are not yet evaluated, in order, at most `limit`.

        Args:
            monitor: Which.
            limit: None means all.
            latest: What `latest(monitor)` said, to look no further.
        """
        config = self.config.monitors[monitor]
        latest = latest or self.latest(monitor)
        if latest is None:
            return []
        now = self.now(monitor, latest=latest) or latest
        after = self._ledger.held(monitor).watermark or self._start(monitor, latest)
        until = now - config.lateness
        if limit is not None:
            until = min(until, after + (limit + 1) * config.bucket)
        return buckets(after, until, config.bucket)[:limit]

    def _start(self, monitor: str, latest: datetime) -> datetime:
        """Return the start of the bucket of the first row, or where the reference ends."""
        config = self.config.monitors[monitor]
        first = self._source(monitor, config).first() or latest
        if config.stretch is not None:
            first = max(first, config.stretch.end)
        return EPOCH + (first - EPOCH) // config.bucket * config.bucket

    # Evaluating

    def evaluate(self, monitor: str, limit: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Evaluate at most `limit` closed buckets, in order, and return how many it were.

        Without a reference nothing is evaluated; the buckets wait for one. When it has moved,
        the buckets of the window are counted anew first, and with what is left of `limit` those
        before them.

        Args:
            monitor: Which.
            limit: Bound on the buckets that one call reads.
            stop: Asked between buckets.
        """
        done = 0
        with self._busy:
            limit -= self._recount(monitor, limit, stop, only_window=True)
            for bucket in self.due(monitor, limit):
                held = self._ledger.held(monitor)
                while held.reference is not None and not stop():
                    if self._evaluate(monitor, bucket, held, held.reference):
                        done += 1
                        break
                    held = self._ledger.held(monitor)
                else:
                    break
            self._recount(monitor, limit - done, stop, only_window=False)
            if self.config.monitors[monitor].lateness and not stop():
                self._look(monitor)
        return done

    def prime(self, monitor: str, until: datetime) -> None:
        """Freeze and count the buckets that the first window needs before `until`; decide nothing.

        Where there are rows before that time, the first window is whole.
        """
        config, held = self.config.monitors[monitor], self._ledger.held(monitor)
        first = self._source(monitor, config).first()
        if first is None or held.reference is None:
            return
        with self._busy:
            for bucket in buckets(until + config.bucket - config.window, until, config.bucket):
                if bucket.end <= first:
                    continue
                at = datetime.now(UTC)
                found = self._measurer.count(monitor, config, bucket, held.reference)
                with self._ledger.transaction():
                    self._ledger.add_bucket(
                        monitor, found.snapshot, found.profile, held.reference_key, at
                    )

    def _look(self, monitor: str) -> None:
        """Look at the newest window that has ended, while late rows still count in it.

        It is shown and kept nowhere: decisions wait until a bucket is frozen for good, so that
        one that lacks rows alarms nobody, and no trigger has to be taken back.
        """
        config, latest = self.config.monitors[monitor], self.latest(monitor)
        now = self.now(monitor, latest=latest)
        if latest is None or now is None or self.due(monitor, 1, latest=latest):
            return
        held = self._ledger.held(monitor)
        after = held.watermark or self._start(monitor, latest)
        self._looks.look(monitor, config, held, buckets(after, now, config.bucket))

    def shown(self, monitor: str, state: MonitorState) -> MonitorState:
        """Return a monitor's last committed state with the last look at what came since."""
        return self._looks.shown(state, self._ledger.held(monitor))

    def outdated(self, monitor: str, *, only_window: bool = False) -> list[FrozenBucket]:
        """Return the buckets to be counted over the reference as it is now, newest first.

        Args:
            monitor: Which.
            only_window: Leave out what is before the next window; else, what is out of retention.
        """
        held, config = self._ledger.held(monitor), self.config.monitors[monitor]
        if held.reference is None or held.watermark is None:
            return []
        start = held.watermark + config.bucket - config.window
        if not only_window:
            start -= self.config.retention
        found = self._ledger.buckets(monitor, start, held.watermark, but=held.reference_key)
        return [kept for kept in reversed(found) if kept.path.exists()]

    def _recount(
        self, monitor: str, limit: int, stop: Callable[[], bool], *, only_window: bool
    ) -> int:
        """Count at most `limit` outdated buckets anew; returns how many it were."""
        held, done = self._ledger.held(monitor), 0
        outdated = self.outdated(monitor, only_window=only_window)[:limit] if limit > 0 else []
        for kept in outdated:
            if held.reference is None or stop():
                break
            counted = self._measurer.recounted(kept, held.reference)
            with self._ledger.transaction():
                if self._ledger.held(monitor).reference is not held.reference:
                    break
                self._ledger.add_profile(monitor, kept, counted, held.reference_key)
            done += 1
        return done

    def _evaluate(self, monitor: str, bucket: Bucket, held: Position, reference: Reference) -> bool:
        """Evaluate one bucket; False if the reference moved meanwhile, and nothing is kept."""
        config = self.config.monitors[monitor]
        self._looks.close_bucket(monitor, bucket)
        found = self._measurer.measure(monitor, config, bucket, reference, held.reference_key)
        with self._ledger.transaction():
            # Read again under the lock: a person or the end of a run may have come between.
            now = self._ledger.held(monitor)
            if now.reference is not reference:
                return False
            evaluation = replace(found.evaluation, history=self.history(monitor))
            decision = decide(now.policy, evaluation, config)
            self._ledger.add_bucket(
                monitor, found.snapshot, found.profile, held.reference_key, found.frozen_at
            )
            self._ledger.add_window(evaluation)
            self._ledger.add_spread(
                monitor,
                bucket.end,
                held.reference_key,
                distributions(reference.profile, found.whole),
            )
            for kept, rows in found.late:
                self._ledger.add_late_rows(monitor, kept, rows)
            self.decided(monitor, decision, watermark=bucket.end)
        self._forget(monitor, evaluation.window.start)
        log.info(
            "evaluated",
            monitor=monitor,
            until=bucket.end.isoformat(),
            rows=evaluation.window.rows,
            drifted=sum(v.level is Level.DRIFT for v in evaluation.verdicts),
            incidents=len(evaluation.incidents),
        )
        return True

    def decided(
        self, monitor: str, decision: Decision, *, watermark: datetime | None = None
    ) -> None:
        """Commit a decision, inside a transaction."""
        held = self._ledger.held(monitor)
        self._ledger.add_decision(monitor, self.config.monitors[monitor], decision)
        self._ledger.hold(
            monitor,
            replace(held, policy=decision.state, watermark=watermark or held.watermark),
        )
        for trigger in (one for one in decision.triggers if one.decided):
            log.info(
                "trigger",
                monitor=monitor,
                episodes=[one.episode_id for one in trigger.episodes],
                request=trigger.request_id,
                outcome=trigger.outcome.value,
                reason=trigger.reason,
            )

    def history(self, monitor: str) -> ModelHistory:
        """Return what happened to the monitor's model, seen from the monitor."""
        config = self.config.monitors[monitor]
        history = self._ledger.history(config.model)
        for name, other in self.config.monitors.items():
            held = self._ledger.held(name)
            if name == monitor or other.model != config.model or held.watermark is None:
                continue
            blocked = held.policy.blocked(held.watermark - other.window)
            if blocked:
                return replace(history, blocked=f"{name}: {blocked}")
        return history

    def _forget(self, monitor: str, before: datetime) -> None:
        """Let go of what left the window, and of every snapshot that is out of retention."""
        config = self.config.monitors[monitor]
        self._measurer.forget(monitor, config, before)
        horizon = before - self.config.retention
        # From where it was left off: a stop or a shorter retention leaves more than one bucket.
        for kept in self._ledger.buckets(monitor, self._dropped.get(monitor, EPOCH), horizon):
            kept.path.unlink(missing_ok=True)
        self._dropped[monitor] = horizon - config.bucket

    # References

    def without_reference(self) -> list[str]:
        """Return the monitors that wait for one."""
        return [name for name in self.config.monitors if self._ledger.held(name).reference is None]

    def build(self, run: Run) -> dict[str, Reference]:
        """Build the reference of each of the monitors of a promoted run's model; commits nothing.

        Monitors whose reference the configuration names keep it.

        Raises:
            UserError: The training set is missing or cannot be a reference.
        """
        return self._builder.of_run(run, self.config)

    def move(self, references: Mapping[str, Reference], reason: str) -> None:
        """Commit new references; open episodes on the old ones close. The same one is no news."""
        with self._ledger.transaction():
            for monitor, reference in references.items():
                held = self._ledger.held(monitor)
                key = reference_key(reference, self.config.monitors[monitor])
                if key == held.reference_key:
                    continue
                why = reason if held.outdated is None else _REMEASURED
                decision = move_reference(held.policy, monitor, why)
                self.decided(monitor, decision)
                held = self._ledger.held(monitor)
                self._ledger.hold(
                    monitor,
                    replace(held, reference=reference, reference_key=key, outdated=None),
                )
                log.info(
                    "reference",
                    monitor=monitor,
                    manifest=reference.uri,
                    model_version=reference.model_version,
                    reason=why,
                )

    # People

    def resend(self, request: str, *, actor: str, comment: str) -> TriggerRecord:
        """Deliver a trigger that was given up, unchanged, to where its monitor now sends.

        Raises:
            NotFoundError: There is no such trigger.
            NotDecidableError: It was not given up, or its monitor has no pipeline any more.
        """
        with self._ledger.transaction():
            monitor = self.config.monitors.get(self._ledger.trigger(request).monitor)
            if monitor is None or monitor.pipeline is None:
                raise NotDecidableError(request, "its monitor has no pipeline any more")
            self._ledger.revive(request, monitor.pipeline)
            self._ledger.add_audit(actor, "resend", request, comment)
            return self._ledger.trigger(request)

    def decide(self, request: str, *, yes: bool, actor: str, comment: str) -> TriggerRecord:
        """Approve or reject a trigger that waits.

        Raises:
            NotFoundError: There is no such trigger.
            NotDecidableError: It does not wait, or may not fire now.
        """
        with self._ledger.transaction():
            monitor = self._ledger.trigger(request).monitor
            config, policy = self.config.monitors[monitor], self._ledger.held(monitor).policy
            if yes:
                decision = approve(policy, monitor, request, config, self.history(monitor))
            else:
                reason = f"rejected by {actor}" + (f": {comment}" if comment else "")
                decision = reject(policy, monitor, request, reason)
            self.decided(monitor, decision)
            self._ledger.add_audit(actor, "approve" if yes else "reject", request, comment)
            return self._ledger.trigger(request)
