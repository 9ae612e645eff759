"""The worker: one run at a time, whatever a run does, and out of the way when told to stop."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from steadfeast.pipeline.queue import RunQueue, worker_lock
from steadfeast.pipeline.server.worker import Worker
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.shop_world import at, trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = 20


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[RunQueue]:
    with RunQueue(tmp_path / "runs.db") as made:
        yield made


class Work:
    """A run that can be held in the middle, and then goes on to its next step."""

    def __init__(self, queue: RunQueue) -> None:
        self.queue = queue
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.done: list[str] = []

    def __call__(self, run: pb.Run, check: Callable[[], None]) -> None:
        self.reached.set()
        self.go_on.wait(SECONDS)
        check()
        self.done.append(run.run_id)
        self.queue.finish(run.run_id, pb.RUN_STATE_PROMOTED)


@contextmanager
def working(work: Work, folder: Path) -> Iterator[Worker]:
    worker = Worker(work.queue, work, folder)
    try:
        with worker:
            yield worker
    finally:
        work.go_on.set()


def test_runs_end_in_their_order_one_at_a_time(queue, tmp_path):
    work = Work(queue)
    ids = [queue.accept(trigger(at(day)))[0].run_id for day in range(3)]
    with working(work, tmp_path) as worker:
        assert work.reached.wait(SECONDS)
        assert [run.state for run in queue.runs()].count(pb.RUN_STATE_RUNNING) == 1
        work.go_on.set()
        for run_id in ids:
            assert worker.follow(run_id).state == pb.RUN_STATE_PROMOTED
    assert work.done == ids


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("no\nrows"), "ZeroDivisionError: no rows (test_worker.py:"),
        (MemoryError(), "MemoryError (test_worker.py:"),
        (SystemExit(3), "RunExitedError: called for the process to exit with 3"),
    ],
)
def test_what_a_run_raises_is_its_end_and_not_the_queues(queue, tmp_path, error, reason):
    first, _ = queue.accept(trigger(at(40)))
    second, _ = queue.accept(trigger(at(41)))

    def execute(run: pb.Run, _: Callable[[], None]) -> None:
        if run.run_id == first.run_id:
            raise error
        queue.finish(run.run_id, pb.RUN_STATE_REFUSED, "a gate")

    with Worker(queue, execute, tmp_path) as worker:
        failed = worker.follow(first.run_id)
        assert worker.follow(second.run_id).state == pb.RUN_STATE_REFUSED
    assert failed.state == pb.RUN_STATE_FAILED
    assert failed.reason.startswith(reason)


def test_a_running_run_is_cancelled_at_its_next_step(queue, tmp_path):
    work = Work(queue)
    run, _ = queue.accept(trigger(at(40)))
    with working(work, tmp_path) as worker:
        assert work.reached.wait(SECONDS)
        queue.cancel(run.run_id, "not needed")
        work.go_on.set()
        ended = worker.follow(run.run_id)
    assert (ended.state, ended.reason) == (pb.RUN_STATE_CANCELLED, "not needed")
    assert work.done == []


def test_stopping_puts_a_run_that_reaches_its_next_step_back(queue, tmp_path):
    work = Work(queue)
    run, _ = queue.accept(trigger(at(40)))
    with working(work, tmp_path) as worker:
        assert work.reached.wait(SECONDS)
        stop = threading.Thread(target=worker.stop, args=(SECONDS,))
        stop.start()
        work.go_on.set()
        stop.join()
        assert worker.ended.is_set()
    assert queue.get(run.run_id).state == pb.RUN_STATE_QUEUED
    assert work.done == []


def test_stopping_leaves_a_run_that_does_not_to_the_next_start(queue, tmp_path):
    work = Work(queue)
    run, _ = queue.accept(trigger(at(40)))
    with working(work, tmp_path) as worker:
        assert work.reached.wait(SECONDS)
        worker.stop(0)
        assert queue.get(run.run_id).state == pb.RUN_STATE_RUNNING
        assert queue.claim().reason.startswith("resumed")


def test_a_worker_waits_while_another_process_is_the_worker(queue, tmp_path):
    work = Work(queue)
    work.go_on.set()
    run, _ = queue.accept(trigger(at(40)))
    with worker_lock(tmp_path) as mine, working(work, tmp_path) as worker:
        assert mine
        assert not work.reached.wait(1)
    assert worker.ended.is_set()
    with working(work, tmp_path) as worker:
        assert worker.follow(run.run_id).state == pb.RUN_STATE_PROMOTED


def test_a_queue_that_is_gone_ends_the_worker_visibly(queue, tmp_path, monkeypatch):
    """Nobody would work any more: the process must know, and end."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with Worker(queue, lambda *_: None, tmp_path) as worker:
        queue.close()
        assert worker.ended.wait(SECONDS)
