"""Ends what a test run leaves behind, however the run ends: a plugin of pytest, and its helper.

The run marks the environment of everything that it starts. A helper process waits until its
standard input closes, which even `kill -9` of the run does, and then kills what bears the mark.
Needs Linux's /proc; elsewhere it does nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

MARK = "STEADFEAST_TEST_RUN"
_helpers: list[subprocess.Popen[bytes]] = []


def pytest_configure() -> None:
    """Start the helper; workers of a run are its children and bear its mark already."""
    if MARK in os.environ or not Path("/proc/self/environ").exists():
        return
    mark = uuid.uuid4().hex
    command = [sys.executable, "-P", __file__, mark]
    _helpers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
    os.environ[MARK] = mark  # after the helper has started: it must not end itself


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what tests left behind."""
    del config
    while _helpers:
        _helpers.pop().communicate()
        del os.environ[MARK]


def marked(value: str) -> list[int]:
    """Return the processes whose environment says `MARK=value`."""
    wanted, found = f"{MARK}={value}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended, or is somebody else's
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def main() -> None:
    """Wait for the end of the run, then kill its processes until none is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run
    sys.stdin.read()
    while left := marked(sys.argv[1]):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
