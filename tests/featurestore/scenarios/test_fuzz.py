"""The fuzz finds nothing in a few lives, and what is wrong it prints as a program that shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WRONG = """
import sys
sys.path.insert(0, "benchmarks")
from steadfeast import SQLiteOnlineStore
right = SQLiteOnlineStore.write_batch
def one_row_short(self, config, view, batch):
    return right(self, config, view, batch.slice(0, batch.num_rows - 1))
SQLiteOnlineStore.write_batch = one_row_short
import fuzz
sys.argv = ["fuzz", "--only", "5", "--redis", "no", "--shrink", "3"]
sys.exit(fuzz.main())
"""


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(["src", "benchmarks", os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_a_few_lives_go_as_the_loop_says():
    found = ran("benchmarks/fuzz.py", "--programs", "4", "--seed", "8", "--redis", "no")
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert "4 programs" in found.stdout
    assert " 0 disagreements" in found.stdout


def test_what_is_wrong_is_printed_as_a_program(tmp_path):
    found = ran("-c", WRONG)
    assert found.returncode == 1, found.stderr[-2000:]
    program = found.stdout.split("# ----")[0]
    assert "r.store().apply()" in program
    path = tmp_path / "program.py"
    path.write_text(program)
    again = ran(str(path))
    assert again.returncode == 0, again.stderr[-2000:]
