"""`steadfeast monitor calibrate`: what it says would be seen, is; and how it reads."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats as sp

from steadfeast.monitor.cli.sensitivity import sensitivities
from steadfeast.monitor.drift.false_alarms import episodes
from steadfeast.monitor.drift.persistence import opens
from support.drift_world import CONFIG, training_set, window
from support.normal_world import judge, made, normal_days, normal_edges
from support.tiny_repo import one_view, tiny_repo

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS, DAYS = 12, 56


def told(reference, shift, jitter, seed):
    """Which features are told within a week of a shift; and which are before it, of three weeks."""
    calm = normal_days(reference.edges, 21, 2000, jitter=jitter, seed=seed)
    moved = normal_days(reference.edges, 7, 2000, jitter=jitter, seed=seed + 1000, shift=shift)
    evidence = [
        [one.evidence for one in judge(reference, day, DAYS + number)]
        for number, day in enumerate([*calm, *moved])
    ]
    begun, _ = episodes(np.array(evidence).T)
    return begun[:, 21:].any(axis=1), begun[:, :21].any(axis=1)


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_what_it_says_would_be_seen_within_a_week_is_seen_nine_times_in_ten(jitter):
    """Exact: with a chance of .9 fewer would come, and with one of .1 more, once in a million."""
    reference = made(
        normal_edges(COLUMNS), normal_days(normal_edges(COLUMNS), DAYS, 2000, jitter=jitter, seed=1)
    )
    shift = np.median([one.smallest for one in sensitivities(reference, CONFIG)])
    found = np.array([told(reference, shift, jitter, seed) for seed in range(6)])
    seen, false = found.sum(axis=(0, 2))
    many = 6 * COLUMNS
    assert seen >= sp.binom.ppf(1e-6, many, 0.9)
    assert false <= sp.binom.isf(1e-6, many, 0.01)
    half = np.array([told(reference, 0.4 * shift, jitter, seed)[0] for seed in range(6)])
    assert half.sum() <= sp.binom.isf(1e-6, many, 0.1)


def test_what_it_says_is_told_at_once_is_told_on_the_first_day():
    reference = made(
        normal_edges(COLUMNS), normal_days(normal_edges(COLUMNS), DAYS, 2000, jitter=0.05, seed=2)
    )
    at_once = max(one.at_once for one in sensitivities(reference, CONFIG))
    [day] = normal_days(reference.edges, 1, 2000, jitter=0.0, seed=5, shift=1.3 * at_once)
    assert all(opens([one.evidence]) for one in judge(reference, day, DAYS))
    [day] = normal_days(reference.edges, 1, 2000, jitter=0.0, seed=5, shift=0.6 * at_once)
    assert not any(opens([one.evidence]) for one in judge(reference, day, DAYS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("calibrate")
    training_set(made / "set", window(0, 56))
    (made / "steadfeast.yaml").write_text(
        "store: {repo: ., data: data}\n"
        "monitor:\n"
        "  state: data/monitor\n"
        "  grpc: 127.0.0.1:1\n"
        "  monitors:\n"
        "    late: {service: late, model: late}\n"
    )
    return made


def steadfeast(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = "import sys; from steadfeast.featurestore.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", command, "monitor", "calibrate", *words],
        cwd=folder,
        env={"COLUMNS": "160", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_prints_a_line_for_each_feature_and_what_to_do(folder: Path):
    done = steadfeast(folder, "--reference", "set/manifest.json")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert "late: 4 false notifications a year, 18 days with a false alarm" in done.stdout
    assert lines["x"][1] == "psi"
    assert lines["x"][6] == "sd"
    assert lines["kind"][6] == "%"
    assert lines["level"][2] == "none"
    assert "No limit for level" in done.stdout
    assert "4 of the last 5 buckets" in " ".join(done.stdout.split())


def test_json_has_every_figure_and_null_where_there_is_none(folder: Path):
    done = steadfeast(folder, "late", "--reference", "set/manifest.json", "--json")
    found = {one["feature"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"x", "rain", "kind", "flag", "level"}
    assert found["x"]["unit"] == "sd"
    assert 0 < found["x"]["limit"] < found["x"]["smallest"] < found["x"]["at_once"]
    assert found["kind"]["unit"] == "share"
    assert 0 < found["kind"]["unseen"] < 0.1
    assert found["level"]["limit"] is found["level"]["smallest"] is None
    assert {one["monitor"] for one in found.values()} == {"late"}


def test_what_is_missing_is_said(folder: Path):
    for words, text in (
        (["--reference", "nosuch.json"], "nosuch.json"),
        ([], "give --reference"),
        (["nobody", "--reference", "set/manifest.json"], "no monitor 'nobody'"),
    ):
        done = steadfeast(folder, *words)
        assert done.returncode == 2
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_a_service_that_is_not_applied_is_told_with_those_that_are(tmp_path: Path):
    """Though the reference is there: limits of another service's features would mislead."""
    training_set(tmp_path / "set", window(0, 3))
    rows = pa.table({"k": [1], "at": pa.array([0], pa.timestamp("us", "UTC")), "x": [1.0]})
    with tiny_repo(tmp_path, rows, one_view('Field(name="x", dtype=Float64)')) as store:
        store.apply()
    (tmp_path / "steadfeast.yaml").write_text(
        "store: {repo: ., data: data}\n"
        "monitor:\n"
        "  state: data/monitor\n"
        "  monitors:\n"
        "    late: {service: late, reference: set/manifest.json}\n"
    )
    done = steadfeast(tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: steadfeast.yaml: monitor.monitors.late.service: no feature service 'late'; "
        "did you mean svc?\n"
    )
