"""A short soak: does the real daemon keep its threads and descriptors, and its memory in bounds?

`python benchmarks/soak.py` is the long one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_thirds_of_a_minute_leak_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "benchmarks/soak.py", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "all met" in done.stdout.splitlines()[-1]
