"""The queue: accepted once, kept, ordered, resumed, and never changed after its end."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import uuid
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.pipeline import queue as under_test
from steadfeast.pipeline.queue import (
    ENDED,
    MAX_CUT_OFFS,
    QueueBrokenError,
    QueueFormatError,
    RequestConflictError,
    RunEndedError,
    RunNotRetriedError,
    RunQueue,
    canonical,
    worker_lock,
)
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.shop_world import at, trigger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[RunQueue]:
    with RunQueue(tmp_path / "state" / "runs.db") as made:
        yield made


def test_the_same_request_gives_the_same_run(queue: RunQueue):
    request = trigger(at(40))
    first, created = queue.accept(request)
    again, created_again = queue.accept(request)
    assert (created, created_again) == (True, False)
    assert again == first
    assert first.state == pb.RUN_STATE_QUEUED
    assert first.as_of == request.as_of
    assert first.cause == request.cause


def test_the_same_id_with_another_body_is_a_conflict_that_carries_the_first_hash(queue: RunQueue):
    request = trigger(at(40))
    run, _ = queue.accept(request)
    other = trigger(at(41), request.request_id)
    with pytest.raises(RequestConflictError) as caught:
        queue.accept(other)
    assert caught.value.run_id == run.run_id
    assert caught.value.accepted_sha256 == canonical(request)[1]
    assert caught.value.offered_sha256 == canonical(other)[1]
    assert len(queue.runs()) == 1


def test_one_of_many_callers_at_once_creates_the_run(queue: RunQueue):
    request, created = trigger(at(40)), []
    threads = [
        threading.Thread(target=lambda: created.append(queue.accept(request)[1])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]


def test_what_was_accepted_is_there_for_another_process_before_the_answer(queue, tmp_path):
    run, _ = queue.accept(trigger(at(40)))
    with sqlite3.connect(tmp_path / "state" / "runs.db") as other:
        assert other.execute("SELECT run_id FROM runs").fetchall() == [(run.run_id,)]
        assert other.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    other.close()


def test_a_file_of_another_version_is_refused(tmp_path: Path):
    with sqlite3.connect(tmp_path / "runs.db") as con:
        con.execute("PRAGMA user_version = 99")
    con.close()
    with pytest.raises(QueueFormatError, match="schema version 99"):
        RunQueue(tmp_path / "runs.db")


@pytest.mark.parametrize("how", ["truncated", "garbled", "text"])
def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path: Path, how: str):
    path = tmp_path / "runs.db"
    with RunQueue(path) as queue:
        for _ in range(50):
            queue.accept(trigger(at(40)))
    content = path.read_bytes()
    damaged = {
        "truncated": content[: len(content) // 2],
        "garbled": content[:100] + bytes(byte ^ 0x5A for byte in content[100:]),
        "text": b"not a database, and never was one",
    }[how]
    path.write_bytes(damaged)
    with pytest.raises(QueueBrokenError, match=r"runs\.db: truncated, damaged or not a queue"):
        RunQueue(path)
    assert path.read_bytes() == damaged


def test_runs_are_claimed_in_the_order_they_were_accepted(queue: RunQueue):
    accepted = [queue.accept(trigger(at(day)))[0].run_id for day in (40, 30, 50)]
    claimed = []
    while (run := queue.claim()) is not None:
        claimed.append(run.run_id)
        queue.finish(run.run_id, pb.RUN_STATE_REFUSED, "a gate")
    assert claimed == accepted


def test_a_run_that_was_cut_off_comes_first_and_says_so(tmp_path: Path):
    with RunQueue(tmp_path / "runs.db") as queue:
        first, _ = queue.accept(trigger(at(40)))
        queue.accept(trigger(at(41)))
        assert queue.claim().run_id == first.run_id
    with RunQueue(tmp_path / "runs.db") as queue:
        resumed = queue.claim()
        assert resumed.run_id == first.run_id
        assert resumed.reason.startswith("resumed")


def test_a_run_that_never_gets_to_its_end_is_given_up(queue: RunQueue):
    run, _ = queue.accept(trigger(at(40)))
    after, _ = queue.accept(trigger(at(41)))
    for _ in range(MAX_CUT_OFFS):
        assert queue.claim().run_id == run.run_id
    assert queue.claim().run_id == after.run_id
    assert queue.get(run.run_id).state == pb.RUN_STATE_FAILED
    reason = queue.get(run.run_id).reason
    assert reason.startswith("cut off 3 times while building its training set")
    assert f"steadfeast pipeline retry {run.run_id}" in reason


def test_a_run_that_gets_further_each_time_is_not_given_up(queue: RunQueue):
    """Cut off by drains again and again, it still comes to its end; at one step it does not."""
    run, _ = queue.accept(trigger(at(40)))
    further = [{}, {"manifest_uri": "training/a/manifest.json"}, {"model_version": "7"}]
    for fields in further:
        queue.change(run.run_id, lambda run, fields=fields: run.MergeFrom(pb.Run(**fields)))
        for _ in range(MAX_CUT_OFFS):
            assert queue.claim().run_id == run.run_id
    assert queue.claim() is None
    reason = queue.get(run.run_id).reason
    assert reason.startswith("cut off 3 times while judging and promoting its version")


def test_reboots_do_not_give_up_a_run(queue: RunQueue, monkeypatch: pytest.MonkeyPatch):
    run, _ = queue.accept(trigger(at(40)))
    for boot in range(3 * MAX_CUT_OFFS):
        monkeypatch.setattr(under_test, "_boot", lambda boot=boot: f"boot {boot // 2}")
        assert queue.claim().run_id == run.run_id
    monkeypatch.setattr(under_test, "_boot", lambda: "the last")
    for _ in range(MAX_CUT_OFFS):
        assert queue.claim().run_id == run.run_id
    assert queue.claim() is None


def test_a_run_that_was_given_up_can_be_asked_for_once_more(queue: RunQueue):
    first, _ = queue.accept(trigger(at(40)))
    for _ in range(MAX_CUT_OFFS + 1):
        queue.claim()
    assert queue.get(first.run_id).state == pb.RUN_STATE_FAILED
    again = queue.retry(first.run_id, "local user ada")
    assert again.run_id != first.run_id
    assert (again.model, again.as_of, again.state) == (
        first.model,
        first.as_of,
        pb.RUN_STATE_QUEUED,
    )
    assert again.cause.kind == first.cause.kind
    assert again.cause.summary == f"run {first.run_id} once more"
    assert again.asked_by == "local user ada"
    assert queue.get(first.run_id).state == pb.RUN_STATE_FAILED  # it stays as it ended
    claimed = queue.claim()
    assert claimed is not None
    assert claimed.run_id == again.run_id


def test_only_what_failed_or_was_cancelled_is_done_once_more(queue: RunQueue):
    run, _ = queue.accept(trigger(at(40)))
    with pytest.raises(RunNotRetriedError, match="is queued"):
        queue.retry(run.run_id, "ada")
    queue.finish(run.run_id, pb.RUN_STATE_PROMOTED)
    with pytest.raises(RunNotRetriedError, match="is promoted"):
        queue.retry(run.run_id, "ada")
    with pytest.raises(NotFoundError):
        queue.retry("no such run", "ada")


def test_a_released_run_was_not_started(queue: RunQueue):
    run, _ = queue.accept(trigger(at(40)))
    for _ in range(2 * MAX_CUT_OFFS):
        assert queue.claim().run_id == run.run_id
        queue.release(run.run_id)
    assert queue.get(run.run_id).state == pb.RUN_STATE_QUEUED


def test_cancelling_ends_a_queued_run_and_asks_a_running_one(queue: RunQueue):
    running, _ = queue.accept(trigger(at(40)))
    queued, _ = queue.accept(trigger(at(41)))
    queue.claim()
    assert queue.cancelled(running.run_id) is None
    assert queue.cancel(running.run_id, "not now").state == pb.RUN_STATE_RUNNING
    assert queue.cancelled(running.run_id) == "not now"
    assert queue.cancel(queued.run_id, "").state == pb.RUN_STATE_CANCELLED
    assert queue.get(queued.run_id).reason == "cancelled on request"


@pytest.mark.parametrize("state", sorted(ENDED))
def test_nothing_changes_a_run_that_has_ended(queue: RunQueue, state: int):
    run, _ = queue.accept(trigger(at(40)))
    queue.finish(run.run_id, state, "for a reason")
    before = queue.events(run.run_id, 0)
    for change in (
        lambda: queue.cancel(run.run_id, "late"),
        lambda: queue.finish(run.run_id, pb.RUN_STATE_PROMOTED),
        lambda: queue.release(run.run_id),
        lambda: queue.judged(run.run_id, "1", lambda _: None),
    ):
        with pytest.raises(RunEndedError):
            change()
    assert queue.events(run.run_id, 0) == before
    assert queue.cancelled(run.run_id) is None
    assert queue.judged_against(run.run_id) is None


def test_what_does_not_exist_is_named(queue: RunQueue):
    run, _ = queue.accept(trigger(at(40)))
    for look in (
        queue.get,
        lambda name: queue.events(name, 0),
        lambda name: queue.cancel(name, ""),
    ):
        with pytest.raises(NotFoundError, match="no run 'nowhere'") as caught:
            look("nowhere")
        assert caught.value.known == (run.run_id,)


def test_the_last_promotion_is_the_first_promoted_run_whatever_was_asked_first(queue: RunQueue):
    early, _ = queue.accept(trigger(at(40)))
    late, _ = queue.accept(trigger(at(41)))
    for run in (late, early):
        queue.finish(run.run_id, pb.RUN_STATE_PROMOTED)
    assert [run.run_id for run in queue.runs(states=[pb.RUN_STATE_PROMOTED], limit=1)] == [
        early.run_id
    ]
    assert queue.runs("another model") == []
    assert len(queue.runs("sale")) == 2


changes = st.lists(st.sampled_from(["accept", "claim", "note", "finish", "cancel", "release"]))


@settings(max_examples=30)
@given(changes)
def test_events_count_up_and_the_last_one_is_the_run(tmp_path_factory, names):
    """Whatever happens, a watcher that resumes anywhere sees every later state, once."""
    path = tmp_path_factory.mktemp("queue") / "runs.db"
    with RunQueue(path) as queue:
        ids = []
        for name in names:
            if name == "accept":
                ids.append(queue.accept(trigger(at(40), str(uuid.uuid4())))[0].run_id)
            elif name == "claim":
                queue.claim()
            elif ids and queue.get(ids[-1]).state not in ENDED:
                {
                    "note": lambda: queue.change(ids[-1], lambda run: run.metrics.update(auc=1.0)),
                    "finish": lambda: queue.finish(ids[-1], pb.RUN_STATE_REFUSED, "a gate"),
                    "cancel": lambda: queue.cancel(ids[-1], "enough"),
                    "release": lambda: queue.release(ids[-1]),
                }[name]()
        for run_id in ids:
            events = queue.events(run_id, 0)
            assert [event.sequence for event in events] == [*range(1, len(events) + 1)]
            assert events[-1].run == queue.get(run_id)
            for after in range(len(events) + 1):
                assert queue.events(run_id, after) == events[after:]


def test_only_one_process_is_the_worker_and_its_end_frees_the_lock(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from steadfeast.pipeline.queue import worker_lock\n"
        "with worker_lock(Path(sys.argv[1])) as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline().strip() == "True"
        with worker_lock(tmp_path) as mine:
            assert not mine
        other.kill()
        other.wait()
        with worker_lock(tmp_path) as mine:
            assert mine
