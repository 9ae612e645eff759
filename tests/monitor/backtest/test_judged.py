"""A backtest says what it judged: no alarm means something only where one could have been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import yaml

from steadfeast.monitor.backtest import replay, report
from steadfeast.monitor.config.schema import DaemonConfig
from support.table_world import DAY, START, TRAINED, day_of, evaluator, written

if TYPE_CHECKING:
    from pathlib import Path


def calm(rng, _day, rows):
    return {"x": rng.normal(0, 1, rows), "kind": rng.choice(["a", "b"], rows)}


def config(folder: Path, files: Path, **changes: object) -> DaemonConfig:
    monitor = {
        "source": {"files": str(files), "timestamp": "ts"},
        "reference": {"from": START, "to": START + TRAINED * DAY},
        **changes,
    }
    return DaemonConfig(state=folder / "state", monitors={"m": monitor})


def replayed(folder: Path, files: Path, first: int, last: int, **changes: object):
    settings = config(folder, files, **changes)
    [found] = replay.run(settings, folder, START + first * DAY, START + last * DAY, {})
    return found


def test_where_nothing_could_be_judged_there_is_no_no_alarm(tmp_path):
    """Twenty rows a day never reach `min_rows`."""
    found = replayed(tmp_path, written(tmp_path, calm, TRAINED + 10, 20), TRAINED, TRAINED + 9)
    assert (found.judged, found.first_verdict, len(found.windows)) == (0, None, 9)
    assert sum(one.windows for one in found.withheld) == 9
    [summary, *lines] = [str(part) for part in list(report.tables([found]))[:3]]
    assert "no alarm" not in summary
    assert "0 of 9 windows judged; no feature could be judged" in summary
    assert any("min_rows is 200" in line for line in lines)
    plain = json.loads(report.as_json([found]))["m"]
    assert (plain["judged"], plain["first_verdict_at"]) == (0, None)
    assert {one["windows_judged"] for one in plain["features"]} == {0}
    assert {one["worst_ratio"] for one in plain["features"]} == {0.0}


def test_rows_before_the_first_day_fill_its_window(tmp_path):
    """As in a daemon that came there day by day; whose verdict on that window is the same."""
    files, first = written(tmp_path, calm, TRAINED + 21), TRAINED + 12
    found = replayed(tmp_path, files, first, TRAINED + 20)
    assert found.judged == len(found.windows) == 8
    assert found.first_verdict == START + (first + 1) * DAY
    assert found.withheld == ()
    assert found.windows[0].window.rows == 7 * 250
    with evaluator(tmp_path / "daemon", files) as (made, ledger):
        made.evaluate("m", 100)
        lived = {past.window.end: past.ratios for past, _ in ledger.judged("m")}
    for past in found.windows:
        if past.window.end in lived:
            assert past.ratios == pytest.approx(lived[past.window.end])
    assert "8 of 8 windows judged; no alarm" in str(next(iter(report.tables([found]))))


def test_windows_without_a_verdict_are_counted_by_reason(tmp_path):
    """Two days without rows in a source of half-day buckets, and a reference that just ends."""
    files = written(tmp_path, calm, TRAINED + 7, lambda day: 250 * (day != TRAINED + 3))
    half = timedelta(hours=12)
    found = replayed(tmp_path, files, TRAINED, TRAINED + 6, bucket=half, window=half, min_rows=100)
    assert len(found.windows) == 12
    assert found.judged == 10
    [gap] = found.withheld
    assert (gap.windows, gap.reason) == (2, "the window has no rows")
    assert gap.last - gap.first == half


def test_json_is_all_that_is_on_standard_output_whatever_is_logged(tmp_path):
    files = written(tmp_path, calm, TRAINED + 10)
    table = day_of(calm, TRAINED + 2, 250)
    pq.write_table(table.drop_columns(["x"]), files / "odd.parquet")  # something to log
    (tmp_path / "feature_store.yaml").write_text("registry: gone.db\nproject: p\nprovider: local\n")
    plain = {
        "store": {"repo": ".", "data": "data"},
        "monitor": {
            "state": "state",
            "monitors": {
                "m": {
                    "source": {"files": "t", "timestamp": "ts"},
                    "reference": {"from": "2024-01-01", "to": f"{START + TRAINED * DAY:%Y-%m-%d}"},
                }
            },
        },
    }
    path = tmp_path / "steadfeast.yaml"
    path.write_text(yaml.safe_dump(plain))
    command = (
        "import os, sys; print('on import'); os.environ['PYTHONUNBUFFERED'] = '1'; "
        "from steadfeast.monitor.evaluation import applied; "
        "applied.log.warning('said early'); "
        "from steadfeast.monitor.backtest import report as r; kept = r.replayed; "
        "r.replayed = lambda *a, **k: (print('noise'), os.write(1, b'raw'), "
        "applied.log.error('loud'), kept(*a, **k))[-1]; "
        "from steadfeast.featurestore.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "monitor", "backtest", "--config", str(path), "--json",
         "--from", f"{START + TRAINED * DAY:%Y-%m-%d}", "--to",
         f"{START + (TRAINED + 9) * DAY:%Y-%m-%d}"],
        capture_output=True, text=True, check=False, env=dict(os.environ), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["m"]["windows"] == 9
    said = [
        line for line in done.stdout.splitlines() if "on import" not in line and "early" not in line
    ]
    assert len(said) == 1
    assert "noise" in done.stderr
    assert "loud" in done.stderr
