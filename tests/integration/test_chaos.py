"""A short run of chaos: does every fault of a quick run end, and is what was lost said?

`python benchmarks/chaos.py` is the long one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.service("redis-server")
def test_a_quick_run_survives_every_fault():
    done = subprocess.run(
        [sys.executable, "benchmarks/chaos.py", "--quick", "--seed", "7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "all survived" in done.stdout.splitlines()[-1]
