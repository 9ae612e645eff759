"""What is done again and again costs what is new, and leaves nothing behind."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from steadfeast.monitor.config.schema import DaemonConfig
from steadfeast.monitor.drift import segments
from steadfeast.monitor.evaluation import reference_builder, window
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.ledger import file
from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.monitor_world import DAY, START, TRAINED_DAYS, serve, train

SERVED_FROM = START + TRAINED_DAYS * DAY
NEVER = START + 10_000 * DAY
WINDOW_DAYS = 5


class World:
    """An evaluator over a world in which nothing drifts."""

    def __init__(self, folder, **more):
        self.folder, self.days = folder, 0
        self.manifest = train(folder, "first", START, NEVER)
        self.monitor = {
            "service": "prices",
            "model": "price",
            "window": timedelta(days=WINDOW_DAYS),
            "min_rows": 100,
            "reference": str(self.manifest),
            "performance": None,
            **more,
        }
        self.open()

    def open(self, **more):
        state = self.folder / "state"
        config = DaemonConfig(state=state, clock="watermark", monitors={"m": self.monitor}, **more)
        self.ledger = Ledger(state)
        self.evaluator = Evaluator(config, self.ledger, self.folder / "data")
        self.evaluator.configure(config, self.evaluator.prepare(config))

    def close(self):
        self.evaluator.close()
        self.ledger.close()

    def live(self, days):
        """Serve so many days, and evaluate each when it is over; return how many were."""
        done = 0
        for _ in range(days):
            serve(self.folder, SERVED_FROM + self.days * DAY, 1, NEVER)
            self.days += 1
            done += self.evaluator.evaluate("m", 64)
        return done

    @property
    def state(self):
        return self.ledger.state(self.evaluator.config.monitors).monitors["m"]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.close()


def held(con):
    """Return the bytes that DuckDB holds."""
    return con.execute("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").fetchone()[0]


def test_a_bucket_is_split_once_however_long_the_window(tmp_path, monkeypatch):
    """And again after a restart; the parts of the window are its rows, filtered."""
    read = Counter()
    profiles = segments.profiles

    def counted(batches, reference):
        read["buckets"] += 1
        return profiles(batches, reference)

    world = World(tmp_path, segments=["kind", "item"])
    monkeypatch.setattr(segments, "profiles", counted)
    assert world.live(9) == 8
    assert read["buckets"] == 8
    before = world.state
    world.close()
    world.open()
    world.live(1)
    assert read["buckets"] == 8 + WINDOW_DAYS
    world.live(1)
    assert read["buckets"] == 8 + WINDOW_DAYS + 1
    state = world.state
    assert state.window.start == before.window.start + 2 * DAY
    rows = pq.ParquetDataset(tmp_path / "data" / "served" / "prices").read()
    at = rows["request_time"]
    inside = rows.filter(
        pc.and_(pc.greater_equal(at, state.window.start), pc.less(at, state.window.end))
    )
    expected = Counter(("kind", one) for one in inside["kind"].to_pylist())
    by_item = Counter(inside["item"].to_pylist())
    parts = {(one.column, one.value): one.rows for one in state.segments}
    listed = [value for column, value in parts if column == "item" and value != segments.OTHERS]
    expected |= Counter({("item", one): by_item.pop(one) for one in listed})
    expected["item", segments.OTHERS] = by_item.total()
    assert parts == expected
    assert len(listed) == segments.MOST - 1
    world.close()


def test_the_parts_of_a_window_do_not_depend_on_what_was_summed_before(tmp_path):
    """Whoever starts only now says the same, to the last bit."""
    world = World(tmp_path, segments=["kind"])
    world.live(12)
    said = world.state.segments
    with world.ledger.transaction():
        world.ledger._rows("DELETE FROM windows WHERE end_time = ?", world.state.window.end)
    (last,) = world.ledger.buckets("m", world.state.window.end - DAY, world.state.window.end)
    for table in ("segments", "spreads"):
        world.ledger._rows(f"DELETE FROM {table} WHERE end_time = ?", last.bucket.end)
    world.ledger._rows("DELETE FROM buckets WHERE start_time = ?", last.bucket.start)
    world.ledger._rows("UPDATE monitors SET watermark = ?", last.bucket.start)
    world.close()
    world.open()
    assert world.evaluator.evaluate("m", 64) == 1
    assert world.state.segments == said
    world.close()


def test_every_snapshot_out_of_retention_goes_at_once(world):
    """A shorter retention, or a stop, leaves many."""
    assert world.live(16) == 15
    snapshots = world.folder / "state" / "snapshots" / "m"
    assert len(list(snapshots.iterdir())) == 15
    world.close()
    world.open(retention=2 * DAY)
    assert world.live(1) == 1
    assert len(list(snapshots.iterdir())) == WINDOW_DAYS + 2
    assert world.live(3) == 3
    assert len(list(snapshots.iterdir())) == WINDOW_DAYS + 2
    config = world.evaluator.config.model_copy(update={"retention": DAY})
    world.evaluator.configure(config, world.evaluator.prepare(config))
    assert world.live(1) == 1
    assert len(list(snapshots.iterdir())) == WINDOW_DAYS + 1


def test_one_thread_builds_every_reference(tmp_path, monkeypatch):
    """What a build has freed stays with its thread: of many, each would hold as much."""
    threads = set()
    build = reference_builder.reference_from

    def noted(*given, **known):
        threads.add(threading.get_ident())
        return build(*given, **known)

    monkeypatch.setattr(reference_builder, "reference_from", noted)
    world = World(tmp_path, reference=None)
    run = pb.Run(model="price", manifest_uri=str(world.manifest), model_version="1")
    with ThreadPoolExecutor(4) as followers:
        built = list(followers.map(lambda _: world.evaluator.build(run), range(8)))
    assert [set(one) for one in built] == [{"m"}] * 8
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    world.close()


def test_of_the_file_nothing_is_held_after_a_checkpoint(world, monkeypatch):
    world.live(4)
    con = world.ledger.file.con
    limit = con.execute("SELECT current_setting('memory_limit')").fetchone()
    for table in ("windows", "buckets", "spreads"):
        con.execute(f'SELECT max(hash(t)) FROM "{table}" AS t').fetchall()
    assert held(con) > 2**20
    monkeypatch.setattr(world.ledger.file, "_checkpoint_bytes", 1)
    with world.ledger.transaction():
        world.ledger.add_audit("a", "cause", "s", "r")
    assert held(con) < 2**20
    assert con.execute("SELECT current_setting('memory_limit')").fetchone() == limit
    assert world.ledger.file._checkpoint_bytes == file.CHECKPOINT_BYTES
    assert world.live(1) == 1


def test_of_the_buckets_that_were_read_nothing_is_held(world, monkeypatch):
    monkeypatch.setattr(window, "BUCKETS_PER_CONNECTION", 4)
    first = world.evaluator._measurer._con
    assert world.live(4) == 3
    assert held(first) == 0
    assert world.live(1) == 1
    assert world.evaluator._measurer._con is not first
    assert world.live(3) == 3


THREADS = """
import ctypes, sys, tempfile, threading
from steadfeast.monitor.daemon.process import one_heap

if sys.argv[1] == "one":
    one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
here = threading.Barrier(30)

def allocate():
    libc.malloc(5000)
    here.wait()

threads = [threading.Thread(target=allocate) for _ in range(30)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    told = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, told)
    libc.fclose(told)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_threads_share_one_heap():
    """Each would keep what a reference took to build, whichever thread heard of a promotion."""
    heaps = {
        how: int(subprocess.check_output([sys.executable, "-c", THREADS, how]))
        for how in ("one", "many")
    }
    assert heaps["one"] <= 3 < heaps["many"], "those of imports are there before"
