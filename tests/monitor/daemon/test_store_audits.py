"""The auditor: what it runs, keeps and survives."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from steadfeast.monitor.daemon import store_audits
from steadfeast.monitor.daemon.store_audits import Asked, StoreAudits
from steadfeast.monitor.ledger.state import AuditCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REPORT = {
    "service": "prices",
    "contract": "ab" * 32,
    "ok": False,
    "checks": [
        {
            "invariant": "I2",
            "subject": "prices",
            "cells": 600,
            "mismatches": {"value": 2},
            "features": {"price": {"value": 2}},
            "examples": [],
            "note": "",
            "ok": False,
        }
    ],
}
CHECK = AuditCheck("I2", "prices", 600, {"value": 2}, holds=False, features={"price": {"value": 2}})
SINCE = datetime(2024, 1, 1, tzinfo=UTC)
ASKED = Asked("m", "prices", timedelta(hours=1), SINCE)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., StoreAudits]]:
    """Give what starts an auditor whose process is a few lines of Python of ours."""
    monkeypatch.setattr(store_audits, "LOOK_SECONDS", 0.02)
    running: list[StoreAudits] = []

    def start(command: str | None = None, asked: Asked = ASKED) -> StoreAudits:
        if command is not None:
            monkeypatch.setattr(store_audits, "_COMMAND", command)
        auditor = StoreAudits(tmp_path / "steadfeast.yaml", tmp_path / "state", lambda: [asked])
        auditor.start()
        running.append(auditor)
        return auditor

    yield start
    for auditor in running:
        auditor.close()


def prints(report: object, code: int, count: Path) -> str:
    """Return a program that notes its arguments, prints a report and ends."""
    return (
        f"import sys; open({str(count)!r}, 'a').write(repr(sys.argv[1:]) + '\\n'); "
        f"print({json.dumps(report)!r}); sys.exit({code})"
    )


def test_a_violation_is_a_result_and_is_kept(started, tmp_path):
    """Exit code 1 says that an invariant fails; a restart still knows it and does not hurry."""
    count = tmp_path / "count"
    first = started(prints(REPORT, 1, count))
    until(lambda: bool(first.latest()))
    found = first.latest()["m"]
    assert found.checks == (CHECK,)
    first.close()
    again = started()
    assert again.latest() == {"m": found}
    time.sleep(0.2)
    [arguments] = count.read_text().splitlines()
    assert "'store', 'audit', 'prices'" in arguments
    assert SINCE.isoformat() in arguments


def test_it_comes_again_after_its_interval(started, tmp_path):
    asked = Asked("m", "prices", timedelta(milliseconds=100), SINCE)
    count = tmp_path / "count"
    started(prints(REPORT, 0, count), asked)
    until(lambda: count.is_file() and len(count.read_text().splitlines()) >= 3)


@pytest.mark.parametrize(
    "command",
    [
        "import sys; sys.stderr.write('no service prices\\n'); sys.exit(2)",
        "import sys; sys.exit(1)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_what_did_not_come_to_its_end_is_no_result(started, tmp_path, command):
    """Wrong arguments, a traceback, a crash: nothing is shown as audited, and it goes on."""
    auditor = started(command, Asked("m", "prices", timedelta(milliseconds=50), SINCE))
    until(lambda: "m" in auditor._tried)
    first = auditor._tried["m"]
    until(lambda: auditor._tried["m"] > first)
    assert auditor.latest() == {}
    assert not (tmp_path / "state" / "audits").exists()


def test_closing_does_not_wait_for_an_audit(started):
    auditor = started("import time; time.sleep(60)")
    until(lambda: auditor._process is not None)
    began = time.monotonic()
    auditor.close()
    assert time.monotonic() - began < 10
    assert auditor.latest() == {}
