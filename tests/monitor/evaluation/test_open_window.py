"""A bucket that has ended and takes late rows: shown as it stands, decided on once it is frozen."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from steadfeast.monitor.drift.detector import Level
from support import monitor_world as world
from support.daemon_world import NEVER, SERVED, Here
from support.monitor_world import DAY, PER_DAY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LATENESS = "      lateness: 2d\n"


def opened(folder: Path, extra: str = LATENESS) -> Here:
    here = Here(folder, extra=extra)
    here.daemon.champions.follow()
    return here


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    here = opened(tmp_path)
    yield here
    here.close()
    here.server.stop()


def held_back(here: Here, first: object, rows: int) -> object:
    """Serve a day without its last rows, and return what gives the rest."""
    world.serve(here.folder, first, 1, NEVER)
    folder = here.folder / "data" / "served" / "prices"
    newest = max(folder.glob("*.parquet"), key=lambda file: int(file.name.split("-")[0]))
    table = pq.read_table(newest)
    newest.unlink()
    world.write(folder, table.slice(0, PER_DAY - rows), "request_time")
    return lambda: world.write(folder, table.slice(PER_DAY - rows), "request_time")


def on_disk(here: Here) -> list[str]:
    folder = here.folder / "data" / "monitor" / "snapshots" / "prices"
    return sorted(file.suffix for file in folder.iterdir())


def test_the_freshest_window_does_not_wait_out_the_lateness(here: Here, tmp_path: Path):
    """It says what a daemon that expects no late rows says, which decides at once."""
    world.serve(here.folder, SERVED, 6, NEVER)
    assert here.daemon.evaluate("") == 3
    shown = here.prices
    assert shown.watermark == SERVED + 3 * DAY
    assert shown.window.end == SERVED + 5 * DAY
    assert shown.open_until == SERVED + 7 * DAY
    assert on_disk(here) == [".open"] * 2 + [".parquet"] * 3
    (tmp_path / "other").mkdir()
    other = opened(tmp_path / "other", extra="")
    world.serve(other.folder, SERVED, 6, NEVER)
    assert other.daemon.evaluate("") == 5
    at_once = other.prices
    assert at_once.open_until is None
    for name in ("window", "verdicts", "figures", "freshness", "distributions", "estimated"):
        assert getattr(shown, name) == getattr(at_once, name), name
    other.close()
    other.server.stop()


def test_rows_that_come_in_time_open_the_bucket_again_and_later_ones_are_counted(here: Here):
    world.serve(here.folder, SERVED, 4, NEVER)
    rest = held_back(here, SERVED + 4 * DAY, 60)
    later = held_back(here, SERVED + 5 * DAY, 7)
    here.daemon.evaluate("")
    before = here.prices
    assert before.window.rows == 3 * PER_DAY - 60
    rest()
    here.daemon.evaluate("")
    assert here.prices.window.rows == 3 * PER_DAY
    assert here.prices.verdicts != before.verdicts
    assert here.prices.late_rows == 0
    world.serve(here.folder, SERVED + 6 * DAY, 3, NEVER)
    here.daemon.evaluate("")
    frozen = here.ledger.buckets("prices", SERVED, SERVED + 9 * DAY)
    assert [one.rows for one in frozen] == [PER_DAY] * 5 + [PER_DAY - 7]
    later()  # two days and more after its end
    world.serve(here.folder, SERVED + 9 * DAY, 1, NEVER)
    here.daemon.evaluate("")
    assert here.prices.late_rows == 7
    frozen = here.ledger.buckets("prices", SERVED, SERVED + 9 * DAY)
    assert [one.rows for one in frozen][5] == PER_DAY - 7
    assert [one.late_rows for one in frozen][5] == 7


def test_nothing_is_decided_on_a_bucket_that_lacks_rows(here: Here):
    """Drift shows at once; its episode opens when the bucket is frozen, and only one does."""
    world.serve(here.folder, SERVED, 5, NEVER)
    here.daemon.evaluate("")
    world.serve(here.folder, SERVED + 5 * DAY, 2, SERVED)
    here.daemon.evaluate("")
    drifted = {one.feature for one in here.prices.verdicts if one.level is Level.DRIFT}
    assert drifted == {"x"}
    assert here.prices.window.end == SERVED + 6 * DAY
    for _ in range(3):
        here.daemon.evaluate("")
    assert not here.daemon.state().episodes
    world.serve(here.folder, SERVED + 7 * DAY, 3, SERVED)
    here.daemon.evaluate("")
    assert len({one.episode_id for one in here.daemon.state().episodes if one.kind == "drift"}) == 1
    assert len(list(here.daemon.state().triggers)) <= 2


def test_what_a_crash_leaves_is_looked_at_again(here: Here):
    """Open rows are nobody's truth: a process that starts has none, and freezes them anew."""
    world.serve(here.folder, SERVED, 6, NEVER)
    here.daemon.evaluate("")
    shown = here.prices
    folder = here.folder / "data" / "monitor" / "snapshots" / "prices"
    (folder / ".20240101T000000.000000Z.parquet.99.half").write_bytes(b"half")
    here.open_again()
    assert on_disk(here) == [".parquet"] * 3
    assert here.prices.window.end == SERVED + 3 * DAY
    assert here.daemon.evaluate("") == 0
    assert here.prices.verdicts == shown.verdicts
    assert here.prices.open_until == shown.open_until


def test_it_is_read_again_only_when_it_has_changed(here: Here, monkeypatch: pytest.MonkeyPatch):
    world.serve(here.folder, SERVED, 6, NEVER)
    here.daemon.evaluate("")
    seen: list[object] = []
    frozen = sys.modules["steadfeast.monitor.evaluation.window"].frozen
    monkeypatch.setattr(
        "steadfeast.monitor.evaluation.window.frozen",
        lambda *a, **k: (seen.append(a[2]) if k["again"] else None) or frozen(*a, **k),
    )
    here.daemon.evaluate("")
    assert not seen
    world.serve(here.folder, SERVED + 6 * DAY, 1, NEVER)
    here.daemon.evaluate("")
    assert [bucket.start for bucket in seen] == [SERVED + 5 * DAY]
