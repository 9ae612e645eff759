"""A test run that is killed leaves no server behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.reaper import MARK

RUN = r"""
import subprocess, time
def test_that_starts_a_server():
    server = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(f"\nserver {server.pid}", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("stop", ["kill", "terminate"])
def test_the_server_of_a_run_that_is_stopped_ends(tmp_path: Path, stop: str):
    (tmp_path / "test_server.py").write_text(RUN)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "support.reaper", "test_server.py"]
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        said = next(line for line in run.stdout if line.startswith("server"))
        state = Path("/proc") / said.split()[1] / "stat"
        assert state.exists()
        getattr(run, stop)()
    until = time.monotonic() + 60
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until, "the server still runs"
        time.sleep(0.05)
