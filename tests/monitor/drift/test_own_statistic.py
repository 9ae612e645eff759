"""A statistic of one's own: one function and one entry point, in a package that is installed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from support.drift_world import training_set, window

if TYPE_CHECKING:
    from pathlib import Path

FUNCTION = """
def largest_gap(reference, current):
    return float(abs(reference / reference.sum() - current / current.sum()).max())
"""

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "gaps"
version = "1"
[project.entry-points."steadfeast.statistics"]
largest_gap = "gaps:largest_gap"
[tool.setuptools]
py-modules = ["gaps"]
"""

USE = """
import sys
from pathlib import Path
import duckdb, pyarrow.parquet as pq
from steadfeast.monitor.drift.reference import build_reference
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift.detector import detect
from steadfeast.monitor.profiles.profile import profile

config = MonitorConfig(
    service="late", model="late", statistic="largest_gap", features=("x", "kind")
)
with duckdb.connect() as con:
    reference = build_reference(con, Path(sys.argv[1]), config)
rows = pq.read_table(sys.argv[2])
current = profile(rows.to_batches(), reference.edges)
for one in detect(reference, current, reference.window, config):
    print(one.feature, one.statistic, one.level, one.value)
"""


def test_it_decides_like_any_other(tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "gaps.py").write_text(FUNCTION)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", target, source], check=True, capture_output=True
    )
    assert list(target.glob("gaps-1*/entry_points.txt"))
    manifest = training_set(tmp_path / "training", window(0, 42))
    pq.write_table(window(42, shift=1.0), tmp_path / "now.parquet")
    script = f"import sys; sys.path.append({str(target)!r})\n" + USE
    done = subprocess.run(
        [sys.executable, "-c", script, manifest, tmp_path / "now.parquet"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {(name, statistic, level) for name, statistic, level, _ in lines} == {
        ("x", "largest_gap", "drift"),
        ("kind", "largest_gap", "ok"),
    }
    assert all(0 < float(value) < 1 for *_, value in lines)
