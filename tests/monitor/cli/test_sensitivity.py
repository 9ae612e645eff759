"""`steadfeast monitor calibrate`: what it says would be seen, is; and how it reads."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from steadfeast.monitor.cli.sensitivity import sensitivities
from steadfeast.monitor.drift.detector import detect
from steadfeast.monitor.profiles.profile import Window as Stretch
from steadfeast.monitor.profiles.profile import total
from support.drift_world import CONFIG, DAY, T0, training_set, window
from support.normal_world import made, normal_days, normal_edges

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = 12


def over(reference, days, first, *, latest=True):
    """Which features are over their limit in the one window that `days` are."""
    end = T0 + (first + len(days)) * DAY
    current = total(days, reference.edges)
    found = detect(
        reference,
        current,
        Stretch(end - 7 * DAY, end, current.rows),
        CONFIG,
        latest=[(end - DAY, days[-1])] if latest else [],
    )
    return [one.level == "drift" for one in found]


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_what_it_says_would_be_seen_within_a_day_is_seen_nine_times_in_ten(jitter):
    edges = normal_edges(COLUMNS)
    reference = made(edges, normal_days(edges, 56, 2000, jitter=jitter, seed=1))
    shift = np.median([one.day for one in sensitivities(reference, CONFIG)])
    seen = {1.0: [], 0.5: []}
    for times in seen:
        for seed in range(12):
            calm = normal_days(edges, 7, 2000, jitter=jitter, seed=100 + seed)
            moved = normal_days(edges, 7, 2000, jitter=jitter, seed=100 + seed, shift=times * shift)
            seen[times] += over(reference, [*calm[:6], moved[6]], 56)
    assert 0.8 <= np.mean(seen[1.0]) <= 1
    assert np.mean(seen[0.5]) < 0.3


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_what_it_says_would_be_seen_within_a_week_opens_an_episode_within_it(jitter):
    edges = normal_edges(COLUMNS)
    reference = made(edges, normal_days(edges, 56, 2000, jitter=jitter, seed=2))
    found = sensitivities(reference, CONFIG)
    assert all(one.week < one.day for one in found)
    shift = np.median([one.week for one in found])
    opened = []
    for seed in range(6):
        calm = normal_days(edges, 7, 2000, jitter=jitter, seed=200 + seed)
        moved = normal_days(edges, 7, 2000, jitter=jitter, seed=300 + seed, shift=shift)
        days = [*calm[:6], *moved[6:], *moved[:6]]  # the weekdays go on
        flags = np.array(
            [_by_name(reference, days[i - 6 : i + 1], 56 + i - 6) for i in range(6, len(days))]
        )
        recent = np.array([flags[max(0, i - 2) : i + 1].sum(axis=0) for i in range(len(flags))])
        opened += (flags & (recent >= 2)).any(axis=0).tolist()
    assert np.mean(opened) >= 0.8


def _by_name(reference, days, first):
    end = T0 + (first + len(days)) * DAY
    current = total(days, reference.edges)
    found = detect(
        reference,
        current,
        Stretch(end - 7 * DAY, end, current.rows),
        CONFIG,
        latest=[(end - DAY, days[-1])],
    )
    return [one.level == "drift" for one in sorted(found, key=lambda one: one.feature)]


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
    assert "late: 4 false alarms a year" in done.stdout
    assert lines["x"][1] == "psi"
    assert lines["x"][5] == "sd"
    assert lines["kind"][5] == "%"
    assert lines["level"][2] == "none"
    assert "No limit for level" in done.stdout
    assert "2 of 3 windows" in done.stdout


def test_json_has_every_figure_and_null_where_there_is_none(folder: Path):
    done = steadfeast(folder, "late", "--reference", "set/manifest.json", "--json")
    found = {one["feature"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"x", "rain", "kind", "flag", "level"}
    assert found["x"]["unit"] == "sd"
    assert 0 < found["x"]["week"] < found["x"]["day"] < 1
    assert found["kind"]["unit"] == "share"
    assert 0 < found["kind"]["unseen"] < 0.1
    assert found["level"]["limit"] is found["level"]["day"] is None
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
