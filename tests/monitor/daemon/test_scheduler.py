"""Scheduler on the real scheduler: stuck ones, failing ones, missed ones."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from steadfeast.monitor.daemon import scheduler as under_test
from steadfeast.monitor.daemon.scheduler import Scheduler
from support.monitor_world import wait_for

if TYPE_CHECKING:
    import pytest


def test_a_job_that_is_stuck_shows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(under_test, "STUCK_SECONDS", 0.2)
    jobs, release = Scheduler(), threading.Event()
    jobs.plan({"slow": release.wait}, timedelta(milliseconds=20))
    jobs.start()
    try:
        assert "stuck" in wait_for(jobs.problem, 10)
        assert wait_for(lambda: jobs.states()["slow"].misfires > 0, 10)
        release.set()
        wait_for(lambda: not jobs.problem(), 10)
    finally:
        release.set()
        jobs.close()


def test_a_job_that_fails_is_counted_and_runs_again():
    jobs, fail = Scheduler(), threading.Event()
    fail.set()

    def work() -> None:
        if fail.is_set():
            raise ZeroDivisionError

    jobs.plan({"work": work}, timedelta(milliseconds=20))
    jobs.start()
    try:
        assert "failed" in wait_for(jobs.failing, 10)
        assert not jobs.problem()  # a new process would fail as well
        fail.clear()
        wait_for(lambda: not jobs.failing(), 10)
        state = jobs.states()["work"]
        assert state.failures >= under_test.FAILURES
        assert state.last_success is not None
    finally:
        jobs.close()
    assert jobs.problem() == "it does not run"


def test_a_job_that_does_not_run_is_a_problem_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(under_test, "OVERDUE_SECONDS", 0.3)
    jobs = Scheduler()
    jobs.plan({"work": lambda: None}, timedelta(milliseconds=20))
    jobs.start()
    try:
        wait_for(lambda: jobs.states()["work"].runs > 2, 10)
        jobs._scheduler.pause()
        assert "job work is overdue" in wait_for(jobs.problem, 10)
        jobs._scheduler.resume()
        wait_for(lambda: not jobs.problem(), 10)
    finally:
        jobs.close()


def test_a_removed_job_disappears():
    jobs = Scheduler()
    jobs.plan({"a": lambda: None, "b": lambda: None}, timedelta(milliseconds=20))
    jobs.start()
    try:
        wait_for(lambda: jobs.states()["b"].runs, 10)
        jobs.plan({"a": lambda: None}, timedelta(milliseconds=20))
        assert list(jobs.states()) == ["a"]
        assert not jobs.problem()
    finally:
        jobs.close()


def test_jobs_do_not_all_start_at_the_same_moment():
    jobs = Scheduler()
    jobs.plan({"a": lambda: None}, timedelta(seconds=30))
    jobs.start()
    try:
        trigger = jobs._scheduler.get_job("a").trigger
        assert (trigger.interval, trigger.jitter) == (timedelta(seconds=30), 3)
    finally:
        jobs.close()
