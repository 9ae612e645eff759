"""One closed bucket after the other: measured, decided, committed.

Above `ledger`; below `daemon`, which says when. A bucket is evaluated once: its key in the
ledger, its episode, trigger and outbox message commit together, and what to do next follows
from the watermark that commits with them. A crash in between leaves a snapshot file, which is
found again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from time import time_ns
from typing import TYPE_CHECKING

import duckdb
import structlog

from featurestore.served import ServedLog
from monitor.calibrate import Reference, build_reference
from monitor.detect import Level, Verdict, detect
from monitor.episodes import Decision, Evaluation, ModelHistory, NotDecidableError
from monitor.performance import measure
from monitor.policy import approve, decide, move_reference, reject
from monitor.profile import Profile, Window, profile, total
from monitor.quality import figures, freshness, incidents
from monitor.snapshot import EPOCH, Bucket, Snapshot, bucket_path, buckets, freeze, load
from monitor.statistics import statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from monitor.config import DaemonConfig, MonitorConfig
    from monitor.ledger import Held, Kept, Ledger
    from monitor.state import TriggerRecord

log = structlog.get_logger(__name__)

SETTLED_NS = 1_000_000_000

_REFERENCE_FIELDS = {
    "bucket", "window", "min_rows", "statistic", "features", "false_alarms_per_year", "episode",
}  # fmt: skip
"""What of a monitor's configuration a reference depends on."""


class Evaluator:
    """Evaluates the monitors of one configuration; safe to share between threads.

    Args:
        config: The monitors and the clock.
        ledger: Where everything is committed.
        data: Folder that holds `served/` and `labels/`.
    """

    def __init__(self, config: DaemonConfig, ledger: Ledger, data: Path) -> None:
        self.config = config
        self._ledger, self._log = ledger, ServedLog(data)
        self._served = data / "served"
        self._latest: dict[str, tuple[int, datetime | None]] = {}
        # In memory and only for reading Parquet: the ledger's connection stays free meanwhile.
        self._con = duckdb.connect()
        self._con.execute("SET TimeZone = 'UTC'")
        self._busy = Lock()
        self._profiles: dict[tuple[str, datetime, str], Profile] = {}
        self._first: dict[str, datetime] = {}

    def prepare(self, config: DaemonConfig) -> dict[str, Reference]:
        """Build the references that `config` needs anew; changes nothing.

        Raises:
            UserError: The configuration does not fit the reference's training set.
        """
        built: dict[str, Reference] = {}
        with duckdb.connect() as con:
            for name, monitor in config.monitors.items():
                statistic(monitor.statistic)
                held = self._ledger.held(name)
                old = held.reference
                pinned = monitor.reference
                if pinned is not None and (old is None or old.uri != str(pinned)):
                    built[name] = build_reference(con, pinned, monitor)
                elif old is not None and held.reference_key != _key(old, monitor):
                    built[name] = build_reference(
                        con,
                        Path(old.uri),
                        monitor,
                        model_version=old.model_version,
                        performance=old.performance,
                    )
        return built

    def configure(self, config: DaemonConfig, prepared: Mapping[str, Reference]) -> None:
        """Go on with another configuration, and what was prepared for it, from now on."""
        with self._busy:
            self.config = config
            if prepared:
                self.move(prepared, "the configuration changed")

    def close(self) -> None:
        """Wait for an evaluation under way and let go of the connection."""
        with self._busy:
            self._con.close()

    # Time

    def latest(self, monitor: str) -> datetime | None:
        """Return the latest request in the monitor's served log; reads file names only.

        A folder that has not changed since it was listed is not listed again.
        """
        service = self.config.monitors[monitor].service
        folder = self._served / service
        changed = folder.stat().st_mtime_ns if folder.exists() else 0
        seen, latest = self._latest.get(service, (-1, None))
        if changed != seen:
            latest = self._log.watermark(service)
            # A change within the clock's grain of the last one may not show in the time.
            settled = time_ns() - changed > SETTLED_NS
            self._latest[service] = (changed if settled else -1, latest)
        return latest

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
        now = latest if self.config.clock == "watermark" else datetime.now(UTC)
        after = self._ledger.held(monitor).watermark or self._start(monitor, latest)
        until = now - config.lateness
        if limit is not None:
            until = min(until, after + (limit + 1) * config.bucket)
        return buckets(after, until, config.bucket)[:limit]

    def _start(self, monitor: str, now: datetime) -> datetime:
        """Return the start of the bucket of the first row ever served."""
        if monitor not in self._first:
            config = self.config.monitors[monitor]
            files = self._log.files(config.service, EPOCH, now + timedelta(microseconds=1))
            first = EPOCH + timedelta(microseconds=min(_span(file)[0] for file in files))
            self._first[monitor] = EPOCH + (first - EPOCH) // config.bucket * config.bucket
        return self._first[monitor]

    # Evaluating

    def evaluate(self, monitor: str, limit: int, stop: Callable[[], bool] = lambda: False) -> int:
        """Evaluate at most `limit` closed buckets, in order, and return how many it were.

        Without a reference nothing is evaluated; the buckets wait for one.

        Args:
            monitor: Which.
            limit: Bound on the work of one call.
            stop: Asked between buckets.
        """
        done = 0
        with self._busy:
            for bucket in self.due(monitor, limit):
                held = self._ledger.held(monitor)
                while held.reference is not None and not stop():
                    if self._evaluate(monitor, bucket, held, held.reference):
                        done += 1
                        break
                    held = self._ledger.held(monitor)
                else:
                    break
        return done

    def _evaluate(self, monitor: str, bucket: Bucket, held: Held, reference: Reference) -> bool:
        """Evaluate one bucket; False if the reference moved meanwhile, and nothing is kept."""
        config = self.config.monitors[monitor]
        frozen_at = datetime.now(UTC)
        start = bucket.end - config.window
        files = self._log.files(config.service, bucket.start, bucket.end)
        path = bucket_path(self.config.state, monitor, bucket)
        snapshot = freeze(self._con, files, bucket, path)
        current = _profiled(snapshot, reference)
        before = self._ledger.buckets(monitor, start, bucket.start)
        late = self._late(config, before)
        parts = [self._profile(monitor, kept, held.reference_key, reference) for kept in before]
        whole = total([*parts, current], reference.edges)
        first = before[0].bucket.start if before else bucket.start
        earlier = [(kept.path, kept.rows) for kept in before if kept.path.exists()]
        window = Window(start, bucket.end, whole.rows)
        ages = freshness(self._con, snapshot)
        broken = incidents(
            reference, current, ages, config, Window(bucket.start, bucket.end, snapshot.rows)
        )
        live = measure(
            self._con,
            # A snapshot without rows has no columns to read.
            [path for path, rows in (*earlier, (snapshot.path, snapshot.rows)) if rows],
            self._log.label_files(config.service, start, bucket.end + config.lateness),
            window,
            bucket.end + config.lateness,
            config,
            model_version=reference.model_version or None,
        )
        evaluation = Evaluation(
            monitor=monitor,
            window=window,
            reference_window=reference.window,
            verdicts=_judged(detect(reference, whole, window, config), window, first),
            incidents=tuple(broken),
            figures=tuple(figures(whole)),
            freshness=tuple(ages),
            performance=live,
            expected=reference.performance,
            contract=reference.contract,
            model_version=reference.model_version,
        )
        with self._ledger.transaction():
            # Read again under the lock: a person or the end of a run may have come between.
            now = self._ledger.held(monitor)
            if now.reference is not reference:
                return False
            evaluation = replace(evaluation, history=self._history(monitor))
            decision = decide(now.policy, evaluation, config)
            self._ledger.add_bucket(monitor, snapshot, current, held.reference_key, frozen_at)
            self._ledger.add_window(evaluation)
            for kept, rows in late:
                self._ledger.add_late_rows(monitor, kept, rows)
            self._decided(monitor, decision, watermark=bucket.end)
        self._profiles[monitor, bucket.start, held.reference_key] = current
        self._forget(monitor, start)
        log.info(
            "evaluated",
            monitor=monitor,
            until=bucket.end.isoformat(),
            rows=whole.rows,
            drifted=sum(v.level is Level.DRIFT for v in evaluation.verdicts),
            incidents=len(broken),
        )
        return True

    def _decided(
        self, monitor: str, decision: Decision, *, watermark: datetime | None = None
    ) -> None:
        """Commit a decision, inside a transaction."""
        held = self._ledger.held(monitor)
        self._ledger.add_decision(monitor, self.config.monitors[monitor], decision)
        self._ledger.hold(
            monitor,
            replace(held, policy=decision.state, watermark=watermark or held.watermark),
        )
        for trigger in decision.triggers:
            log.info(
                "trigger",
                monitor=monitor,
                episode=trigger.episode.episode_id,
                request=trigger.request_id,
                outcome=trigger.outcome.value,
                reason=trigger.reason,
            )

    def _history(self, monitor: str) -> ModelHistory:
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

    # Profiles of earlier buckets

    def _profile(self, monitor: str, kept: Kept, key: str, reference: Reference) -> Profile:
        """Return a frozen bucket's profile over `reference`, counted anew if that has moved."""
        cached = self._profiles.get((monitor, kept.bucket.start, key))
        if cached is None:
            if kept.reference_key == key:
                cached = Profile.from_json(kept.profile, reference.edges)
            elif kept.path.exists():
                frozen: Snapshot = load(self._con, kept.bucket, kept.path)
                cached = _profiled(frozen, reference)
            else:
                cached = Profile.empty(reference.edges)
            self._profiles[monitor, kept.bucket.start, key] = cached
        return cached

    def _forget(self, monitor: str, before: datetime) -> None:
        """Let go of what left the window, and of snapshots that are out of retention."""
        for key in [k for k in self._profiles if k[0] == monitor and k[1] < before]:
            del self._profiles[key]
        horizon = before - self.config.retention
        oldest = horizon - self.config.monitors[monitor].bucket
        for kept in self._ledger.buckets(monitor, oldest, horizon):
            kept.path.unlink(missing_ok=True)

    def _late(self, config: MonitorConfig, before: list[Kept]) -> list[tuple[Kept, int]]:
        """Return the buckets that got rows after they were frozen, and how many by now.

        Only files that came later are a reason to count; ctime, because a rename sets it.
        """
        found: list[tuple[Kept, int]] = []
        if not before:
            return found
        start, end = before[0].bucket.start, before[-1].bucket.end
        came = [
            (*_span(file), file.stat().st_ctime, file)
            for file in self._log.files(config.service, start, end)
        ]
        for kept in before:
            low, high = _micros(kept.bucket.start), _micros(kept.bucket.end)
            inside = [item for item in came if item[0] < high and item[1] >= low]
            if all(at <= kept.frozen_at.timestamp() for _, _, at, _ in inside):
                continue
            files = [file for *_, file in inside]
            ((rows,),) = self._con.execute(
                "SELECT count(*) FROM read_parquet($files, union_by_name = true) "
                "WHERE request_time >= $start AND request_time < $end",
                {
                    "files": [str(file) for file in files],
                    "start": kept.bucket.start,
                    "end": kept.bucket.end,
                },
            ).fetchall()
            if rows - kept.rows != kept.late_rows:
                found.append((kept, rows - kept.rows))
        return found

    # References

    def without_reference(self) -> list[str]:
        """Return the monitors that wait for one."""
        return [name for name in self.config.monitors if self._ledger.held(name).reference is None]

    def build(
        self, model: str, manifest: Path, version: str, performance: Mapping[str, float]
    ) -> dict[str, Reference]:
        """Build the reference of each of the model's monitors; commits nothing.

        Monitors whose reference the configuration names keep it.

        Raises:
            UserError: The training set is missing or cannot be a reference.
        """
        with duckdb.connect() as con:
            return {
                name: build_reference(
                    con, manifest, config, model_version=version, performance=performance
                )
                for name, config in self.config.monitors.items()
                if config.model == model and config.reference is None
            }

    def move(self, references: Mapping[str, Reference], reason: str) -> None:
        """Commit new references; open episodes on the old ones close. The same one is no news."""
        with self._ledger.transaction():
            for monitor, reference in references.items():
                held = self._ledger.held(monitor)
                key = _key(reference, self.config.monitors[monitor])
                if key == held.reference_key:
                    continue
                decision = move_reference(held.policy, monitor, reason)
                self._decided(monitor, decision)
                held = self._ledger.held(monitor)
                self._ledger.hold(monitor, replace(held, reference=reference, reference_key=key))
                log.info(
                    "reference",
                    monitor=monitor,
                    manifest=reference.uri,
                    model_version=reference.model_version,
                    reason=reason,
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
                decision = approve(policy, monitor, request, config, self._history(monitor))
            else:
                reason = f"rejected by {actor}" + (f": {comment}" if comment else "")
                decision = reject(policy, monitor, request, reason)
            self._decided(monitor, decision)
            self._ledger.add_audit(actor, "approve" if yes else "reject", request, comment)
            return self._ledger.trigger(request)


def _profiled(snapshot: Snapshot, reference: Reference) -> Profile:
    edges = reference.edges
    return profile(snapshot.batches(edges.columns, categories=edges.categorical), edges)


def _key(reference: Reference, config: MonitorConfig) -> str:
    """Return what changes whenever the reference or what it was built for does."""
    made_for = config.model_dump_json(include=_REFERENCE_FIELDS)
    text = f"{reference.uri}\n{reference.model_version}\n{made_for}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _span(file: Path) -> tuple[int, int]:
    """Return the first and last request time in a served-log file, from its name."""
    first, last, _ = file.name.split("-", 2)
    return int(first), int(last)


def _micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _judged(verdicts: list[Verdict], window: Window, first: datetime) -> tuple[Verdict, ...]:
    """Withhold judgement on a window that begins before the first bucket there is."""
    if first <= window.start:
        return tuple(verdicts)
    reason = f"the window is not full: rows are there from {first:%Y-%m-%dT%H:%MZ} on"
    return tuple(
        replace(verdict, level=Level.INSUFFICIENT_DATA, reason=reason) for verdict in verdicts
    )
