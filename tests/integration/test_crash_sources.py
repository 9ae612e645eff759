"""The daemon dies anywhere while it watches a view, files and a database: one snapshot a bucket.

A real process over a real Feast repository. The oracle is a daemon that nobody disturbs.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support import monitor_world as world
from support.monitor_world import DAY, PER_DAY, START, TS, Daemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRAINED, DAYS, DRIFT_FROM = 21, 5, 3
END = START + (TRAINED + DAYS) * DAY
KINDS = ("view", "files", "database")

FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64
item = Entity(name="item", value_type=ValueType.STRING)
stock = FeatureView(
    name="stock", entities=[item], ttl=timedelta(days=1), schema=[Field(name="x", dtype=Float64)],
    source=FileSource(path="rows", timestamp_field="at"),
)
"""
STORE = """
project: tiny
provider: local
registry: registry.db
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""
CONFIG = """
store: {{repo: ., data: data}}
monitor:
  state: data/monitor
  http: 127.0.0.1:{http}
  grpc: 127.0.0.1:{grpc}
  clock: watermark
  tick: 100ms
  monitors:
    view:
      source: {{view: stock}}
      {rest}
    files:
      source: {{files: "rows/*.parquet", timestamp: at, keys: [item]}}
      {rest}
    database:
      source: {{database: rows.duckdb, table: rows, timestamp: at, keys: [item]}}
      {rest}
"""
REST = f"""reference: {{from: {START:%Y-%m-%d}, to: {START + TRAINED * DAY:%Y-%m-%d}}}
      window: 2d
      min_rows: 100
      episode: {{k: 1, n: 1, close: 9}}
      features: [x]"""


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources with the same rows, applied and not yet watched."""
    folder = tmp_path_factory.mktemp("plant")
    (folder / "rows").mkdir()
    for number in range(TRAINED + DAYS):
        rng = np.random.default_rng(number)
        at = [START + number * DAY + DAY * (i / PER_DAY) for i in range(PER_DAY)]
        x = rng.normal(3.0 * (number >= TRAINED + DRIFT_FROM), 1, PER_DAY)
        item = [f"i{i % 20}" for i in range(PER_DAY)]
        table = pa.table({"at": pa.array(at, TS), "item": item, "x": x})
        pq.write_table(table, folder / "rows" / f"{number:02}.parquet")
    with duckdb.connect(str(folder / "rows.duckdb")) as con:
        con.execute(f"CREATE TABLE rows AS FROM '{folder}/rows/*.parquet'")
    (folder / "feature_store.yaml").write_text(STORE)
    (folder / "features.py").write_text(FEATURES)
    command = "import sys; from feast.cli.cli import cli; cli()"
    subprocess.run([sys.executable, "-c", command, "apply"], cwd=folder, check=True, timeout=120)
    return folder


def live(
    plant: Path, folder: Path, wait: Callable[[Daemon], object], fault: str = ""
) -> tuple[dict[str, Any], Daemon]:
    """Watch everything there is, and return what the ledger holds in the end."""
    shutil.copytree(plant, folder)
    daemon = Daemon(folder, 1)
    daemon.config.write_text(CONFIG.format(http=daemon.http, grpc=daemon.grpc, rest=REST))
    daemon.start(fault)
    try:
        wait(daemon)
        if not daemon.alive():
            daemon.start()
            daemon.idle(END)
        assert daemon.stop() == 0
    finally:
        daemon.kill()
    return world.ledger(folder), daemon


@pytest.fixture(scope="module")
def undisturbed(plant: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ledger of a daemon that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "world"
    return live(plant, folder, lambda daemon: daemon.idle(END))[0]


def in_any_order(rows: list[str]) -> list[str]:
    """Return rows without the sequence of alerts: which monitor comes first is up to chance."""
    return sorted(re.sub(r"^\(\d+, |\"sequence\":\d+", "", row) for row in rows)


def check(found: dict[str, Any], undisturbed: dict[str, Any], folder: Path) -> None:
    """The same ledger; and on the disk one file for each of its buckets."""
    for name, rows in undisturbed.items():
        assert in_any_order(found[name]) == in_any_order(rows), name
    state = folder / "data" / "monitor"
    with duckdb.connect(str(state / "monitor.duckdb"), read_only=True) as con:
        kept = con.execute("SELECT monitor, path, row_count FROM buckets").fetchall()
    assert len(kept) == len(KINDS) * (DAYS - 1)
    assert {rows for _, _, rows in kept} == {PER_DAY}
    files = sorted(map(str, (state / "snapshots").rglob("*")))
    folders = [str(state / "snapshots" / kind) for kind in KINDS]
    assert files == sorted([str(state / path) for _, path, _ in kept] + folders)


def test_the_story_without_crashes(undisturbed: dict[str, Any]) -> None:
    """What the others are compared with is not empty: three drifts, told, and nothing fired."""
    assert len(undisturbed["buckets"]) == len(KINDS) * (DAYS - 1)
    assert len(undisturbed["episodes"]) == len(KINDS)
    assert not undisturbed["triggers"]
    hashes = {found for row in undisturbed["buckets"] for found in re.findall("[0-9a-f]{64}", row)}
    assert len(hashes) == DAYS - 1  # the same rows and columns in each source


@pytest.mark.parametrize("fault", ["before_commit:3", "after_commit:3"])
def test_it_dies_around_its_commits(
    plant: Path, undisturbed: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    found, daemon = live(
        plant, tmp_path / "world", lambda daemon: daemon.survive(END, fault), fault
    )
    assert daemon.lives > 3
    check(found, undisturbed, tmp_path / "world")


def test_it_is_killed_at_any_moment(
    plant: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    moments = random.Random(7)

    def wait(daemon: Daemon) -> None:
        for _ in range(3):
            if not daemon.alive():
                daemon.start()
            patience = time.monotonic() + timedelta(seconds=60).total_seconds()
            while daemon.log().count('"evaluated"') < 1 and time.monotonic() < patience:
                time.sleep(0.05)
            time.sleep(moments.uniform(0.0, 1.5))
            daemon.kill()
        daemon.survive(END)

    found, _ = live(plant, tmp_path / "world", wait)
    check(found, undisturbed, tmp_path / "world")
