"""The daemon: composes the parts, schedules, and stops and reloads in order.

Above everything but the edges and `process`, which opens what is composed here. Signals are
messages that the main thread reads between its beats, so that nothing is cut in half: SIGTERM and
SIGINT drain, SIGHUP reloads. What has to be done next is never remembered here; it follows from
the ledger and from the files there are.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import SourceError, UserError
from steadfeast.featurestore.security import Security, load_security
from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.config import load
from steadfeast.monitor.daemon.digests import SALT, digests
from steadfeast.monitor.daemon.loops import Loops
from steadfeast.monitor.daemon.scheduler import Scheduler
from steadfeast.monitor.daemon.snapshot_checks import SnapshotChecks
from steadfeast.monitor.daemon.store_audits import Asked, StoreAudits
from steadfeast.monitor.delivery import AlertSenders, Champions, Connections, Dispatcher
from steadfeast.monitor.evaluation import Causes, Evaluator, check
from steadfeast.monitor.ledger import ENDED
from steadfeast.monitor.web import Health

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from steadfeast.monitor.config import DaemonConfig
    from steadfeast.monitor.ledger import FrozenBucket, Ledger, State
    from steadfeast.monitor.sources import ViewFacts

log = structlog.get_logger(__name__)

BUCKETS_PER_TICK = 64
BEAT_SECONDS = 1.0
_END = datetime(9999, 1, 1, tzinfo=UTC)
REFERENCES, SNAPSHOTS = "references", "snapshots"


class FixedFieldError(UserError):
    """A reload changes what only a restart can.

    Attributes:
        fields: The fields.
    """

    def __init__(self, fields: list[str]) -> None:
        self.fields = tuple(fields)
        super().__init__(f"{', '.join(fields)}: only a restart can change this")


class Daemon:
    """The parts of a running daemon, put together.

    Args:
        path: The configuration file; read again at a reload.
        config: What it said.
        data: Folder of the served log.
        ledger: Open; closed by whoever opened it.
        project: Name of the Feast project, for whoever watches several.
        views: What is known of the store's feature views.
        security: Of its ports; a reload gives it other tokens.
    """

    def __init__(
        self,
        path: Path,
        config: DaemonConfig,
        data: Path,
        ledger: Ledger,
        project: str = "",
        views: Mapping[str, ViewFacts] = MappingProxyType({}),
        security: Security | None = None,
    ) -> None:
        self._path, self._data, self._ledger = path, data, ledger
        self._security = security or Security()
        self._project = project
        self.evaluator = Evaluator(config, ledger, data, views)
        self.evaluator.configure(config, self.evaluator.prepare(config))
        self.causes = Causes(ledger, self.evaluator)
        connections = Connections(lambda: self.evaluator.config.pipelines)
        self.champions = Champions(ledger, self.evaluator, connections)
        self.audits = StoreAudits(path, config.state, self._audited)
        self.snapshots = SnapshotChecks(self._frozen)
        self.scheduler = Scheduler()
        self._loops = Loops(
            {
                "alerts": AlertSenders(ledger, config.alerts),
                "outbox": Dispatcher(ledger, self.evaluator, connections=connections),
                "scheduler": self.scheduler,
                "audits": self.audits,
            }
        )
        self.inbox: SimpleQueue[int] = SimpleQueue()  # of signals; put() is reentrant
        self._draining = Event()
        self._reloads = self._reloads_rejected = 0

    def start(self) -> None:
        """Begin to work."""
        config = self.evaluator.config
        self._note("start", config, self._ledger.fields())
        self._plan()
        self._loops.start()

    def close(self) -> None:
        """Finish the bucket that is being evaluated and the delivery under way."""
        self._draining.set()
        self._loops.close()
        self.evaluator.close()

    def run(self, beat: Callable[[], None]) -> None:
        """Work until SIGTERM or SIGINT is in `inbox`; call `beat` every second."""
        while True:
            self.scheduler.follow_clock()
            beat()
            try:
                received = self.inbox.get(timeout=BEAT_SECONDS)
            except Empty:
                continue
            if received != signal.SIGHUP:
                log.info("draining", signal=signal.Signals(received).name)
                return
            self.reload()

    def reload(self) -> None:
        """Take over the configuration file as it is now, whole or not at all."""
        before = self.evaluator.config
        try:
            config, store = load(self._path)
            fixed = [
                name
                for name in ("state", "http", "grpc", "alerts", "clock")
                if getattr(config, name) != getattr(before, name)
            ]
            security, was = load_security(self._path), self._security.config
            fixed += [
                f"security.{name}"
                for name in ("tls", "allow_plaintext", "hosts")
                if getattr(security, name) != getattr(was, name)
            ]
            if store.data != self._data:
                fixed.append("store.data")
            if fixed:
                raise FixedFieldError(fixed)
            views = check(self._path, config, store)
            prepared = self.evaluator.prepare(config, views)
        except UserError as error:
            self._reloads_rejected += 1
            log.error("reload_rejected", reason=str(error))  # noqa: TRY400 - the user's
            return
        self.evaluator.configure(config, prepared, views)
        self._security.reload(security)
        self._plan()
        self._reloads += 1
        self._note("SIGHUP", config, self._ledger.fields())
        log.info("reloaded", monitors=list(config.monitors))

    def _note(self, actor: str, config: DaemonConfig, before: Mapping[str, str]) -> None:
        """Keep in the audit log which fields of the configuration have changed; never values."""
        now = digests(config, self._security.config, before.get(SALT, ""))
        if now == before:
            return
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        told = ", ".join(name for name in changed if name != SALT)
        with self._ledger.transaction():
            self._ledger.keep_fields(now)
            self._ledger.add_audit(
                actor, "configure", str(self._path), told if before else "the first configuration"
            )

    def evaluate(self, monitor: str) -> int:
        """Evaluate now what a tick would, and return how many buckets it were.

        Args:
            monitor: Which; all for the empty name.

        Raises:
            SourceError: What one of them watches cannot be read; the others were evaluated.
        """
        done, unread = 0, None
        for name in [monitor] if monitor else list(self.evaluator.config.monitors):
            try:
                done += self.evaluator.evaluate(name, BUCKETS_PER_TICK, self._draining.is_set)
            except SourceError as error:
                unread = error
                continue
            if not self._draining.is_set():
                self.causes.look(name)
        if unread is not None:
            raise unread
        return done

    def state(self) -> State:
        """Return the last committed state and what only the process knows."""
        config = self.evaluator.config
        # What is due is looked at first: what its evaluation fired is then in the state.
        latest = {name: self.evaluator.latest(name) for name in config.monitors}
        due = any(
            latest[name] is not None
            and not self.champions.nobody_has(name)
            and (
                self.evaluator.due(name, 1, latest=latest[name])
                or self.evaluator.outdated(name)
                or self.causes.due(name)
            )
            for name in config.monitors
        )
        state = self._ledger.state(config.monitors)
        under_way = any(
            trigger.run is not None and trigger.run.state not in ENDED for trigger in state.triggers
        )
        jobs, audits = self.scheduler.states(), self.audits.latest()
        return replace(
            state,
            project=self._project,
            monitors={
                name: replace(
                    self.evaluator.shown(name, monitor),
                    latest_event=latest.get(name),
                    late_rows=state.counters.late_rows.get(name, 0),
                    waits_for=self.evaluator.problem(name)
                    or ("" if monitor.reference else self.champions.waits_for(name)),
                    max_age=config.monitors[name].max_age,
                    audit=audits.get(name),
                    audit_interval=config.monitors[name].audit,
                    damaged=self.snapshots.damaged(name),
                )
                for name, monitor in state.monitors.items()
            },
            jobs=jobs,
            counters=replace(
                state.counters,
                misfires=sum(job.misfires for job in jobs.values()),
                reloads=self._reloads,
                reloads_rejected=self._reloads_rejected,
            ),
            latest_event=max((at for at in latest.values() if at is not None), default=None),
            idle=not due and not state.outbox.depth and not under_way,
        )

    def healthy(self) -> Health:
        """Say whether the daemon does its work."""
        stuck = self._loops.problem() or self.evaluator.reference_problem()
        problem = stuck or self._ledger.problem or self.scheduler.failing()
        return Health(ok=not problem, reason=problem, stuck=bool(stuck))

    def _audited(self) -> list[Asked]:
        """Say what is to be audited: the current window of each monitor that asks for it."""
        config = self.evaluator.config
        state = self._ledger.state(config.monitors)
        return [
            Asked(name, monitor.service, monitor.audit, window.start)
            for name, monitor in config.monitors.items()
            if monitor.audit is not None and (window := state.monitors[name].window) is not None
        ]

    def _plan(self) -> None:
        config = self.evaluator.config
        jobs: dict[str, Callable[[], object]] = {
            f"evaluate:{name}": partial(self.evaluate, name) for name in config.monitors
        }
        always = {REFERENCES: self._references, SNAPSHOTS: self.snapshots.look}
        self.scheduler.plan({**always, **jobs}, config.tick)

    def _frozen(self) -> list[tuple[str, FrozenBucket]]:
        """Return every frozen bucket that has rows to be counted again, by monitor."""
        return [
            (name, kept)
            for name in self.evaluator.config.monitors
            for kept in self._ledger.buckets(name, EPOCH, _END)
            if kept.path.exists()
        ]

    def _references(self) -> None:
        self._ledger.probe()
        self.champions.follow()
