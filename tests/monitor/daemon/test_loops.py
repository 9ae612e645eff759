"""Loops are started and stopped in order, and one whose thread has ended says so by name."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from steadfeast.monitor.daemon.loops import Loops
from steadfeast.monitor.daemon.store_audits import Asked, StoreAudits
from steadfeast.monitor.delivery.threads import Worker
from support.monitor_world import START

if TYPE_CHECKING:
    from pathlib import Path


def wait_for(met) -> None:
    for _ in range(1000):
        if met():
            return
        time.sleep(0.02)
    raise TimeoutError


class Recorded:
    def __init__(self, name: str, seen: list[str], problem: str = "") -> None:
        self.name, self.seen, self.said = name, seen, problem

    def start(self) -> None:
        self.seen.append(f"start {self.name}")

    def close(self) -> None:
        self.seen.append(f"close {self.name}")

    def problem(self) -> str:
        return self.said


def test_what_was_started_last_is_stopped_first():
    seen: list[str] = []
    loops = Loops({"a": Recorded("a", seen), "b": Recorded("b", seen, "broke")})
    loops.start()
    assert loops.problem() == "b: broke"
    loops.close()
    assert seen == ["start a", "start b", "close b", "close a"]


def test_a_thread_that_ends_by_an_error_says_which():
    def work() -> None:
        raise OSError(28, "No space left on device")

    worker = Worker("audits", work)
    assert worker.problem() == "thread audits does not run"
    worker.start()
    worker.join()
    assert "thread audits has ended: OSError" in worker.problem()
    assert "No space left" in worker.problem()


def test_a_worker_that_works_has_no_problem():
    stop = threading.Event()
    worker = Worker("w", stop.wait)
    worker.start()
    assert worker.problem() == ""
    stop.set()
    worker.join()


def test_a_dead_thread_of_audits_is_a_problem_of_the_daemon(tmp_path: Path):
    """What asks for audits fails in a way that nobody foresaw."""

    def asked() -> list[Asked]:
        raise RuntimeError("nobody foresaw this")

    audits = StoreAudits(tmp_path / "steadfeast.yaml", tmp_path / "state", asked)
    loops = Loops({"audits": audits})
    loops.start()
    wait_for(loops.problem)
    assert "audits: thread audits has ended: RuntimeError: nobody foresaw this" in loops.problem()
    loops.close()


def test_an_audit_that_cannot_be_kept_is_tried_again(tmp_path: Path, monkeypatch):
    """A full disk ends one audit, not all of them."""
    tries: list[int] = []

    def full(*_: object) -> None:
        tries.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StoreAudits, "_found", lambda *_: None)
    monkeypatch.setattr(StoreAudits, "_keep", full)
    audit = Asked("m", "s", timedelta(0), START)
    audits = StoreAudits(tmp_path / "steadfeast.yaml", tmp_path / "state", lambda: [audit])
    audits.start()
    wait_for(lambda: len(tries) > 1)
    assert not audits.problem()
    audits.close()
