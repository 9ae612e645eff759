"""What runs again and again: APScheduler's jobs, and what became of their runs.

Above `state`, below `daemon`, which says what the jobs are.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Lock
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import duckdb
import structlog
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from steadfeast.featurestore.errors import SourceError, UserError
from steadfeast.monitor.ledger import JobState

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

STUCK_SECONDS = 300.0
"""A job that runs for longer is stuck, unless its tick is longer still."""
OVERDUE = 3
"""Intervals without a run that make a job a problem; never sooner than `OVERDUE_SECONDS`."""
OVERDUE_SECONDS = 60.0
CLOCK_STEP_SECONDS = 1.0
"""Between two looks the wall clock runs as the monotonic one does, but for a step."""
FAILURES = 3
"""Failures of one job in a row that make the daemon unhealthy."""

EXPECTED = (UserError, OSError, duckdb.IOException)
"""What comes from outside, as a full disk: told in a line, because a traceback would not help."""


class Scheduler:
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
        self._last: dict[str, str] = {}
        self._ran: dict[str, float] = {}
        self._tick = timedelta()
        self._clock = _clock_lead()

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
            self._ran = {name: self._ran.get(name, monotonic()) for name in jobs}

    def start(self) -> None:
        """Begin to run."""
        self._scheduler.start()

    def close(self) -> None:
        """Start nothing more and wait for what runs."""
        self._scheduler.shutdown(wait=True)

    def follow_clock(self) -> None:
        """Have every job run now if the wall clock was set since the last look.

        APScheduler's next times are of the wall clock: set back by two hours, nothing would run
        for two hours.
        """
        lead = _clock_lead()
        if abs(lead - self._clock) < CLOCK_STEP_SECONDS:
            return
        log.warning("clock_stepped", seconds=round(lead - self._clock, 3))
        self._clock = lead
        for job in self._scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(UTC))

    def states(self) -> dict[str, JobState]:
        """Return every job since the start, by name."""
        with self._lock:
            return dict(self._states)

    def problem(self) -> str:
        """Return which job does not run, in one line; empty if all do. A new process would."""
        limit = max(STUCK_SECONDS, 10 * self._tick.total_seconds())
        now = monotonic()
        with self._lock:
            for name, began in self._began.items():
                if now - began > limit:
                    return f"job {name} is stuck: it runs for {now - began:.0f} s"
            overdue = max(OVERDUE * self._tick.total_seconds(), OVERDUE_SECONDS)
            for name, ran in self._ran.items():
                if name not in self._began and now - ran > overdue:
                    return f"job {name} is overdue: it last ran {now - ran:.0f} s ago"
        return "" if self._scheduler.running else "it does not run"

    def failing(self) -> str:
        """Return which job fails each time, and why, in one line; empty if none does."""
        with self._lock:
            for name, failures in self._in_a_row.items():
                if failures >= FAILURES and name in self._states:
                    return f"job {name} failed {failures} times in a row: {self._last[name]}"
        return ""

    def _run(self, name: str, work: Callable[[], object]) -> None:
        began = monotonic()
        with self._lock:
            self._began[name] = began
            self._change(name, last_start=datetime.now(UTC))
        succeeded = fine = False
        try:
            work()
            succeeded = fine = True
        except BaseException as error:
            fine = isinstance(error, SourceError)  # the data's trouble, and one monitor's
            with self._lock:
                self._last[name] = _line(error)
            raise
        finally:
            seconds = monotonic() - began
            with self._lock:
                del self._began[name]
                if name in self._states:
                    self._ran[name] = monotonic()
                self._in_a_row[name] = 0 if fine else self._in_a_row.get(name, 0) + 1
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
            told: dict[str, Any] = {"exc_info": event.exception}
            if isinstance(event.exception, EXPECTED):
                told = {"reason": _line(event.exception)}
            log.error("job_failed", job=event.job_id, **told)
            return
        with self._lock:
            if event.job_id in self._states:
                misfires = self._states[event.job_id].misfires + 1
                self._change(event.job_id, misfires=misfires)


def _clock_lead() -> float:
    """Return how far the wall clock is ahead of the monotonic one, in seconds."""
    return time() - monotonic()


def _line(error: BaseException) -> str:
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
