"""The long-running process: composes the parts, schedules, and stops and reloads in order.

Above everything in `monitor` but `cli`. Signals are messages that the main thread reads between
its beats, so that nothing is cut in half: SIGTERM and SIGINT drain, SIGHUP reloads. What has to
be done next is never remembered here; it follows from the ledger and from the files there are.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from featurestore.errors import UserError
from monitor.access import Access
from monitor.audits import Asked, Auditor
from monitor.config import load
from monitor.evaluation import Evaluator
from monitor.known import check
from monitor.ledger import Ledger
from monitor.messages import ENDED
from monitor.outbox import Outbox
from monitor.security import Certificates, principals
from monitor.server import Monitor, Server
from monitor.sinks import Sinks
from monitor.state import JobState, State
from monitor.web import Health, Operator, app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from monitor.config import DaemonConfig, TlsConfig

log = structlog.get_logger(__name__)

BUCKETS_PER_TICK = 64
BEAT_SECONDS = 1.0
MAX_HTTP = 256
"""Connections to the HTTP port; more are answered 503."""
STUCK_SECONDS = 300.0
"""A job that runs for longer is stuck, unless its tick is longer still."""
FAILURES = 3
"""Failures of one job in a row that make the daemon unhealthy."""
REFERENCES = "references"


class PortTakenError(UserError):
    """An address of the configuration cannot be listened on.

    Attributes:
        field: Field of the configuration.
        address: The address.
    """

    def __init__(self, field: str, address: str, problem: str) -> None:
        self.field, self.address = field, address
        super().__init__(f"monitor.{field}: cannot listen on {address}: {problem}")


class FixedFieldError(UserError):
    """A reload changes what only a restart can.

    Attributes:
        fields: The fields.
    """

    def __init__(self, fields: list[str]) -> None:
        self.fields = tuple(fields)
        super().__init__(f"monitor: {', '.join(fields)}: only a restart can change this")


class Jobs:
    """APScheduler's jobs, and what became of their runs.

    One run of a job at a time; runs that it has missed are one. A job that raises has failed,
    with its traceback in the log, and runs again at its next time.
    """

    def __init__(self) -> None:
        self._scheduler = BackgroundScheduler(
            timezone=UTC, executors={"default": ThreadPoolExecutor(4)}
        )
        self._scheduler.add_listener(
            self._heard, EVENT_JOB_ERROR | EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES
        )
        self._lock = Lock()
        self._states: dict[str, JobState] = {}
        self._began: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}
        self._tick = timedelta()

    def plan(self, jobs: dict[str, Callable[[], object]], tick: timedelta) -> None:
        """Have exactly `jobs` run every `tick`, at once for the first time."""
        self._tick = tick
        for job in self._scheduler.get_jobs():
            if job.id not in jobs:
                job.remove()
        for name, work in jobs.items():
            self._scheduler.add_job(
                partial(self._run, name, work),
                "interval",
                seconds=tick.total_seconds(),
                # Monitors do not all start at the same moment, nor do daemons.
                jitter=min(tick.total_seconds() / 10, 5),
                id=name,
                replace_existing=True,
                coalesce=True,
                max_instances=1,
                misfire_grace_time=max(1, round(tick.total_seconds())),
                next_run_time=datetime.now(UTC),
            )
        with self._lock:
            self._states = {name: self._states.get(name, JobState(name)) for name in jobs}

    def start(self) -> None:
        """Begin to run."""
        self._scheduler.start()

    def close(self) -> None:
        """Start nothing more and wait for what runs."""
        self._scheduler.shutdown(wait=True)

    def states(self) -> dict[str, JobState]:
        """Return every job since the start, by name."""
        with self._lock:
            return dict(self._states)

    def problem(self) -> str:
        """Return what is wrong with the jobs, in one line; empty if nothing is."""
        limit = max(STUCK_SECONDS, 10 * self._tick.total_seconds())
        now = monotonic()
        with self._lock:
            for name, began in self._began.items():
                if now - began > limit:
                    return f"job {name} is stuck: it runs for {now - began:.0f} s"
            for name, failures in self._in_a_row.items():
                if failures >= FAILURES and name in self._states:
                    return f"job {name} failed {failures} times in a row"
        return "" if self._scheduler.running else "the scheduler does not run"

    def _run(self, name: str, work: Callable[[], object]) -> None:
        began = monotonic()
        with self._lock:
            self._began[name] = began
            self._change(name, last_start=datetime.now(UTC))
        succeeded = False
        try:
            work()
            succeeded = True
        finally:
            seconds = monotonic() - began
            with self._lock:
                del self._began[name]
                self._in_a_row[name] = 0 if succeeded else self._in_a_row.get(name, 0) + 1
                if name in self._states:
                    done = self._states[name]
                    self._change(
                        name,
                        last_success=datetime.now(UTC) if succeeded else done.last_success,
                        last_seconds=seconds,
                        seconds=done.seconds + seconds,
                        runs=done.runs + 1,
                        failures=done.failures + (not succeeded),
                    )

    def _change(self, name: str, **changes: Any) -> None:
        if name in self._states:
            self._states[name] = replace(self._states[name], **changes)

    def _heard(self, event: JobEvent) -> None:
        if event.code == EVENT_JOB_ERROR:
            log.error("job_failed", job=event.job_id, exc_info=event.exception)
            return
        with self._lock:
            if event.job_id in self._states:
                misfires = self._states[event.job_id].misfires + 1
                self._change(event.job_id, misfires=misfires)


class Daemon:
    """The parts of a running daemon, put together.

    Args:
        path: The configuration file; read again at a reload.
        config: What it said.
        data: Folder of the served log.
        ledger: Open; closed by whoever opened it.
    """

    def __init__(self, path: Path, config: DaemonConfig, data: Path, ledger: Ledger) -> None:
        self._path, self._data, self._ledger = path, data, ledger
        self.evaluator = Evaluator(config, ledger, data)
        self.evaluator.configure(config, self.evaluator.prepare(config))
        self.outbox = Outbox(ledger, self.evaluator)
        self.sinks = Sinks(ledger, config.alerts)
        self.auditor = Auditor(path, config.state, self._audited)
        self.jobs = Jobs()
        self.inbox: SimpleQueue[int] = SimpleQueue()  # put() is reentrant
        self._draining = Event()
        self._reloads = self._reloads_rejected = 0

    def start(self) -> None:
        """Begin to work."""
        self._plan()
        self.outbox.start()
        self.sinks.start()
        self.jobs.start()
        self.auditor.start()

    def close(self) -> None:
        """Finish the bucket that is being evaluated and the delivery under way."""
        self._draining.set()
        self.auditor.close()
        self.jobs.close()
        self.outbox.close()
        self.sinks.close()
        self.evaluator.close()

    def run(self, beat: Callable[[], None]) -> None:
        """Work until SIGTERM or SIGINT; call `beat` every second."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _: self.inbox.put(received))
        while True:
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
                for name in (
                    "state",
                    "http",
                    "grpc",
                    "operator_token",
                    "tokens",
                    "tls",
                    "alerts",
                    "clock",
                )
                if getattr(config, name) != getattr(before, name)
            ]
            if store.data != self._data:
                fixed.append("store.data")
            if fixed:
                raise FixedFieldError(fixed)
            check(self._path, config, store)
            prepared = self.evaluator.prepare(config)
        except UserError as error:
            self._reloads_rejected += 1
            log.error("reload_rejected", reason=str(error))  # noqa: TRY400 - the user's
            return
        self.evaluator.configure(config, prepared)
        self._plan()
        self._reloads += 1
        self._note(config, before)
        log.info("reloaded", monitors=list(config.monitors))

    def _note(self, config: DaemonConfig, before: DaemonConfig) -> None:
        """Keep in the audit log which fields of the configuration have changed; never values."""
        changed = [
            f"monitors.{name}"
            for name in {**before.monitors, **config.monitors}
            if before.monitors.get(name) != config.monitors.get(name)
        ]
        changed += [
            name
            for name in type(config).model_fields
            if name != "monitors" and getattr(config, name) != getattr(before, name)
        ]
        with self._ledger.transaction():
            self._ledger.add_audit("SIGHUP", "configure", str(self._path), ", ".join(changed))

    def evaluate(self, monitor: str) -> int:
        """Evaluate now what a tick would, and return how many buckets it were.

        Args:
            monitor: Which; all for the empty name.
        """
        names = [monitor] if monitor else list(self.evaluator.config.monitors)
        return sum(
            self.evaluator.evaluate(name, BUCKETS_PER_TICK, self._draining.is_set) for name in names
        )

    def state(self) -> State:
        """Return the last committed state and what only the process knows."""
        config = self.evaluator.config
        # What is due is looked at first: what its evaluation fired is then in the state.
        latest = {name: self.evaluator.latest(name) for name in config.monitors}
        due = any(
            latest[name] is not None
            and not self.outbox.nobody_has(name)
            and self.evaluator.due(name, 1, latest=latest[name])
            for name in config.monitors
        )
        state = self._ledger.state(config.monitors)
        under_way = any(
            trigger.run is not None and trigger.run.state not in ENDED for trigger in state.triggers
        )
        jobs, audits = self.jobs.states(), self.auditor.latest()
        return replace(
            state,
            monitors={
                name: replace(
                    monitor,
                    latest_event=latest.get(name),
                    waits_for="" if monitor.reference else self.outbox.waits_for(name),
                    max_age=config.monitors[name].max_age,
                    audit=audits.get(name),
                    audit_interval=config.monitors[name].audit,
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
        problem = self.jobs.problem()
        if not problem and not (self.outbox.alive() and self.sinks.alive()):
            problem = "a delivery thread has ended"
        return Health(ok=not problem, reason=problem)

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
        self.jobs.plan({REFERENCES: self.outbox.find_references, **jobs}, config.tick)


class Web:
    """The HTTP port, served by a thread of its own.

    Args:
        daemon: Whose state is shown.
        address: `host:port`; port 0 takes a free one.
        operator: What people may do there.
        tls: None serves plaintext.
    """

    def __init__(
        self,
        daemon: Daemon,
        address: str,
        operator: Operator,
        tls: TlsConfig | None = None,
    ) -> None:
        """Bind the port.

        Raises:
            PortTakenError: The address cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_server((host, int(port)))
        except OSError as error:
            raise PortTakenError("http", address, error.strerror or str(error)) from error
        self.port = int(self._socket.getsockname()[1])
        served = app(daemon.state, daemon.healthy, operator)
        self._server = uvicorn.Server(
            uvicorn.Config(
                served,
                log_config=None,
                access_log=False,
                lifespan="off",
                limit_concurrency=MAX_HTTP,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
            )
        )
        self._server.config.load()
        self._thread = Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def refresh(self, certificates: Certificates) -> None:
        """Use the certificates as they are now."""
        context = self._server.config.ssl
        if context is not None:
            certificates.refresh(context)

    def close(self) -> None:
        """Let requests finish, stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def main(path: Path, *, json_logs: bool) -> int:
    """Run a daemon until it is told to stop; returns 0.

    Raises:
        UserError: The configuration, the ledger or a port cannot be used. Nothing was opened
            that others see.
    """
    config, store = load(path)
    configure_logs(json_logs=json_logs)
    check(path, config, store)
    with ExitStack() as stack:  # closes in reverse order
        ledger = stack.enter_context(Ledger(config.state))
        daemon = Daemon(path, config, store.data, ledger)
        token = config.operator_token.get_secret_value()
        others = principals(config)
        certificates = None if config.tls is None else Certificates(config.tls)
        people = Operator(token, ledger.acknowledge, daemon.evaluator.decide, others)
        web = Web(daemon, config.http, people, config.tls)
        stack.callback(web.close)
        service = Monitor(
            ledger, daemon.state, daemon.evaluate, daemon.evaluator.decide, daemon.evaluator.resend
        )
        try:
            access = Access(token, principals=others)
            server = Server(service, config.grpc, access, certificates)
        except RuntimeError as error:
            raise PortTakenError("grpc", config.grpc, str(error)) from error
        daemon.start()
        stack.callback(daemon.close)
        web.start()
        stack.callback(server.close)
        server.start()
        log.info("started", grpc=server.port, http=web.port, monitors=list(config.monitors))

        def beat() -> None:
            server.serving(healthy=daemon.healthy().ok)
            if certificates is not None:
                web.refresh(certificates)

        daemon.run(beat)
    log.info("stopped")
    return 0


def configure_logs(*, json_logs: bool) -> None:
    """Send our logs and those of libraries to standard error, as JSON lines or for a person."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: Any = (
        structlog.processors.JSONRenderer()
        if json_logs
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    last = [structlog.processors.format_exc_info, render] if json_logs else [render]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # What it says is counted as misfires and failures, and told once by `Jobs`.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
