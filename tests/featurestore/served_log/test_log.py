"""The served log: whole files, in order, complete, and cheap on the hot path."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast import OnlineFeatures, ServedLog
from steadfeast.featurestore.errors import LogRefusedError, LogUnavailableError, NotFoundError
from steadfeast.featurestore.served_log import log as served_module
from steadfeast.featurestore.served_log.files import lineage

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def vectors(rows=2, contract="c" * 64, **more):
    columns = {"user_id": pa.array(range(rows), pa.int64()), "spend": pa.array([1.5] * rows)}
    columns |= {name: pa.array([value] * rows) for name, value in more.items()}
    names = [name for name in columns if name != "user_id"]
    return OnlineFeatures(
        pa.table(columns),
        {name: np.ones(rows, np.uint8) for name in names},
        {"users": pa.array([NOON] * (rows - 1) + [None], pa.timestamp("us", "UTC"))},
        contract,
    )


def append(log, time, rows=2, prefix="r", **more):
    log.append(
        "s",
        vectors(rows),
        request_ids=[f"{prefix}{n}" for n in range(rows)],
        request_time=time,
        **more,
    )


def awaited(log, count):
    """The files of service s, once the log's own thread has written `count` of them."""
    deadline = time.monotonic() + 60
    while len(log.files("s", NOON, NOON + 3600 * SECOND)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return log.files("s", NOON, NOON + 3600 * SECOND)


def test_what_is_appended_is_read_back_column_by_column(tmp_path):
    log = ServedLog(tmp_path)
    append(log, NOON, model="m", model_version="3", predictions=np.array([0.25, 0.75]))
    append(log, NOON + SECOND, prefix="q")
    log.flush()
    (path,) = log.files("s", NOON, NOON + 2 * SECOND)
    first, last, _ = path.name.split("-", 2)
    assert int(last) - int(first) == 1_000_000
    table = pq.read_table(path, partitioning=None)
    assert table.schema.remove_metadata() == pa.schema(
        [
            ("request_id", pa.string()),
            ("request_time", pa.timestamp("us", "UTC")),
            ("model", pa.string()),
            ("model_version", pa.string()),
            ("contract", pa.string()),
            ("user_id", pa.int64()),
            ("spend", pa.float64()),
            ("users__event_timestamp", pa.timestamp("us", "UTC")),
            ("prediction", pa.float64()),
        ]
    )
    assert table["request_id"].to_pylist() == ["r0", "r1", "q0", "q1"]
    assert table["request_time"].to_pylist() == [NOON, NOON, NOON + SECOND, NOON + SECOND]
    assert table["prediction"].to_pylist() == [0.25, 0.75, None, None]
    assert table["model"].to_pylist() == ["m", "m", "", ""]
    assert table["users__event_timestamp"].to_pylist() == [NOON, None, NOON, None]
    assert log.watermark("s") == NOON + SECOND


def test_files_are_chosen_by_their_times_alone(tmp_path):
    log = ServedLog(tmp_path)
    for start in range(0, 50, 10):
        append(log, NOON + start * SECOND)
        append(log, NOON + (start + 5) * SECOND)
        log.flush()
    chosen = log.files("s", NOON + 15 * SECOND, NOON + 30 * SECOND)
    assert len(chosen) == 2
    assert len(log.files("s", NOON + 6 * SECOND, NOON + 10 * SECOND)) == 0
    assert log.files("other", NOON, NOON + SECOND) == []
    assert log.watermark("other") is None


def test_labels_wait_for_flush_and_carry_their_times(tmp_path):
    log = ServedLog(tmp_path)
    log.append_labels("s", ["a", "b"], [1.0, 0.0], NOON)
    log.append_labels(
        "s",
        pa.chunked_array([["c"]]),
        pa.chunked_array([pa.array([1])]),
        pa.chunked_array([pa.array([NOON + SECOND])]),
    )
    log.append_labels("s", [], [], NOON)
    assert log.label_files("s", NOON, NOON + 2 * SECOND) == []
    log.flush()
    log.flush()
    (path,) = log.label_files("s", NOON, NOON + SECOND)
    assert pq.read_table(path, partitioning=None).to_pydict() == {
        "request_id": ["a", "b", "c"],
        "label": [1.0, 0.0, 1.0],
        "known_at": [NOON, NOON, NOON + SECOND],
    }


def test_two_contracts_with_other_columns_get_a_file_each(tmp_path):
    log = ServedLog(tmp_path)
    for turn in range(4):
        contract, more = ("a" * 64, {}) if turn % 2 else ("b" * 64, {"visits": 1})
        log.append(
            "s", vectors(contract=contract, **more), request_ids=["x", "y"], request_time=NOON
        )
    log.flush()
    files = log.files("s", NOON, NOON + SECOND)
    assert sorted(pq.read_metadata(path).num_rows for path in files) == [4, 4]


def test_a_full_buffer_is_written_without_being_asked(tmp_path):
    log = ServedLog(tmp_path, rows_per_file=10)
    for n in range(12):
        append(log, NOON + n * SECOND)
    files = awaited(log, 2)
    assert [pq.read_metadata(path).num_rows for path in files] == [10, 10]
    deadline = time.monotonic() + 60
    while log.counters("s").written < 20:  # a file is there a moment before it is counted
        assert time.monotonic() < deadline
        time.sleep(0.005)
    counters = log.counters("s")
    assert (counters.requests, counters.rows, counters.written) == (12, 24, 20)


def test_a_reader_never_sees_part_of_a_file_and_nothing_is_lost(tmp_path):
    """Four threads write, one reads all the while; every row arrives once."""
    log = ServedLog(tmp_path, rows_per_file=50)
    done = threading.Event()
    problems = []

    def write(writer):
        for n in range(100):
            append(log, NOON + n * SECOND, prefix=f"{writer}-{n}-")

    def read():
        while not done.is_set():
            for path in log.files("s", NOON, NOON + 200 * SECOND):
                try:
                    pq.read_table(path, partitioning=None)
                except (OSError, pa.ArrowInvalid) as error:
                    problems.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    log.flush()
    done.set()
    reader.join()
    assert problems == []
    files = log.files("s", NOON, NOON + 200 * SECOND)
    ids = [i for path in files for i in pq.read_table(path)["request_id"].to_pylist()]
    assert len(ids) == len(set(ids)) == log.counters("s").rows == 800
    assert not [f for f in tmp_path.rglob(".*") if f.suffix != ".intake"]


NAIVE = datetime(2024, 3, 10, 12)  # noqa: DTZ001 - what is refused
NONSENSE = {
    "fewer ids than rows": {"request_ids": ["a"]},
    "an id that is null": {"request_ids": ["a", None]},
    "an id that is empty": {"request_ids": pa.array(["a", ""])},
    "an id that is null in Arrow": {"request_ids": pa.array(["a", None])},
    "ids that are numbers": {"request_ids": pa.array([1, 2])},
    "an id that is a number": {"request_ids": ["a", 2]},
    "one id for two rows": {"request_ids": ["a", "a"]},
    "one id for two rows in Arrow": {"request_ids": pa.chunked_array([["a"], ["a"]])},
    "one id for two rows in numpy": {"request_ids": np.array(["a", "a"])},
    "a time without a zone": {"request_time": NAIVE},
    "a time that is a number": {"request_time": 1710072000},
    "a time that is a text": {"request_time": "2024-03-10T12:00:00Z"},
    "fewer predictions than rows": {"predictions": [0.5]},
    "predictions that are texts": {"predictions": ["0.5", "0.5"]},
    "predictions that are texts in Arrow": {"predictions": pa.array(["0.5", "0.5"])},
    "predictions of two columns": {"predictions": np.ones((2, 2))},
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_refused_and_nothing_of_it_taken(tmp_path, what):
    log = ServedLog(tmp_path)
    usual = {"request_ids": ["a", "b"], "request_time": NOON}
    with pytest.raises(LogRefusedError, match="served log of 's'"):
        log.append("s", vectors(), **{**usual, **NONSENSE[what]})
    log.flush()
    assert log.counters("s").rows == 0
    assert log.watermark("s") is None


LABELS = {
    "an id that is null": (["a", None], [1.0, 0.0], NOON),
    "double ids": (["a", "a"], [1.0, 0.0], NOON),
    "fewer labels": (["a", "b"], [1.0], NOON),
    "a label that is null": (["a", "b"], [1.0, None], NOON),
    "labels that are texts": (["a", "b"], ["1", "0"], NOON),
    "a time without a zone": (["a", "b"], [1.0, 0.0], NAIVE),
    "times without a zone": (["a", "b"], [1.0, 0.0], pa.array([NAIVE, NAIVE])),
    "times of numpy": (["a", "b"], [1.0, 0.0], np.array([NAIVE] * 2, "datetime64[us]")),
    "times that are numbers": (["a", "b"], [1.0, 0.0], [1, 2]),
    "times that are numbers in Arrow": (["a", "b"], [1.0, 0.0], pa.array([1, 2])),
    "a time that is null": (["a", "b"], [1.0, 0.0], pa.array([NOON, None])),
}


@pytest.mark.parametrize("what", LABELS)
def test_labels_that_are_nonsense_are_refused(tmp_path, what):
    log = ServedLog(tmp_path)
    with pytest.raises(LogRefusedError, match="served log of 's'"):
        log.append_labels("s", *LABELS[what])
    log.flush()
    assert log.label_files("s", NOON, NOON + SECOND) == []


def test_other_versions_say_what_they_say_beside_the_vector(tmp_path):
    log = ServedLog(tmp_path)
    append(log, NOON, model="m", model_version="1")
    given = {"request_time": NOON, "model": "m"}
    log.append_predictions("s", ["r0", "r1"], [0.5, 0.25], model_version="2", **given)
    log.append_predictions("s", ["r0"], np.array([0.75]), model_version="3", **given)
    with pytest.raises(LogRefusedError, match="must both be named"):
        log.append_predictions("s", ["r0"], [0.75], model_version="", **given)
    log.flush()
    (path,) = log.prediction_files("s", NOON, NOON + SECOND)
    assert pq.read_table(path, partitioning=None).to_pydict() == {
        "request_id": ["r0", "r1", "r0"],
        "request_time": [NOON] * 3,
        "model": ["m"] * 3,
        "model_version": ["2", "2", "3"],
        "prediction": [0.5, 0.25, 0.75],
    }


def test_a_service_that_there_is_not_is_refused_by_name(tmp_path):
    there = ["s"]
    log = ServedLog(tmp_path, services=lambda: there)
    append(log, NOON)
    usual = {"request_ids": ["a", "b"], "request_time": NOON}
    with pytest.raises(NotFoundError, match="no feature service 't'"):
        log.append("t", vectors(), **usual)
    with pytest.raises(NotFoundError, match="no feature service 't'"):
        log.append_labels("t", ["a"], [1.0], NOON)
    there.append("t")
    log.append("t", vectors(), **usual)
    log.flush()
    assert {path.name for path in (tmp_path / "served").iterdir()} == {"s", "t"}


def test_vectors_of_which_no_table_can_be_made_are_counted_and_stop_nothing(tmp_path):
    """The log's own thread outlives them, and the file says what it left out and when."""
    log = ServedLog(tmp_path, flush_seconds=0.02)
    bad = vectors()
    bad.event_times["users"] = pa.array([NOON], pa.timestamp("us", "UTC"))  # one for two rows
    for n, features in enumerate([bad, vectors(), bad]):
        ids = [f"{n}-{i}" for i in range(2)]
        log.append("s", features, request_ids=ids, request_time=NOON + n * SECOND)
    log.flush()
    assert awaited(log, 1)
    append(log, NOON + 9 * SECOND)
    log.flush()
    found = log.counters("s")
    assert (found.rows, found.written, found.dropped, found.malformed) == (8, 4, 4, 4)
    told = [lineage(path) for path in log.files("s", NOON, NOON + 60 * SECOND)]
    assert (sum(one.dropped for one in told), sum(one.holds for one in told)) == (4, 4)
    chosen = log.files("s", NOON + 2 * SECOND, NOON + 3 * SECOND)
    assert sum(lineage(path).dropped for path in chosen) > 0


def test_a_log_of_nothing_but_malformed_vectors_still_counts_them(tmp_path):
    log = ServedLog(tmp_path)
    bad = vectors()
    bad.event_times["users"] = pa.array([NOON], pa.timestamp("us", "UTC"))
    log.append("s", bad, request_ids=["a", "b"], request_time=NOON)
    log.flush()
    (path,) = log.files("s", NOON, NOON + SECOND)
    assert (lineage(path).dropped, lineage(path).holds) == (2, 0)


def test_the_hot_path_pays_microseconds(tmp_path):
    log = ServedLog(tmp_path)
    features, ids = vectors(100), [str(n) for n in range(100)]
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(100):
            log.append("s", features, request_ids=ids, request_time=NOON)
        best = min(best, (time.process_time() - start) / 100)
    assert best < 100e-6  # 3 in practice; a hundred times that would be Arrow work


def test_a_row_waits_no_longer_than_it_may(tmp_path):
    log = ServedLog(tmp_path, flush_seconds=0.05)
    append(log, NOON)
    assert pq.read_metadata(awaited(log, 1)[0]).num_rows == 2
    append(log, NOON + SECOND)  # the thread has ended with nothing to do; another starts
    assert len(awaited(log, 2)) == 2


class Disk:
    """A disk that takes nothing while `full`, and is slow while `held`."""

    def __init__(self, monkeypatch):
        self.full, self.held = False, threading.Event()
        self.held.set()
        right = served_module.pq.write_table

        def write(*args, **options):
            assert self.held.wait(20)
            if self.full:
                raise OSError(28, "No space left on device")
            right(*args, **options)

        monkeypatch.setattr(served_module.pq, "write_table", write)


def test_a_log_that_blocks_makes_requests_wait_and_loses_nothing(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    log = ServedLog(tmp_path, rows_per_file=4, rows_waiting=8)
    disk.held.clear()
    for n in range(4):
        append(log, NOON + n * SECOND, prefix=f"{n}-")
    waiting = threading.Thread(target=append, args=(log, NOON + 4 * SECOND), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    disk.held.set()
    waiting.join(20)
    assert not waiting.is_alive()
    log.flush()
    counters = log.counters("s")
    assert (counters.rows, counters.written, counters.dropped) == (10, 10, 0)


def test_a_log_that_drops_counts_what_it_dropped_and_when(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    log = ServedLog(tmp_path, rows_per_file=4, rows_waiting=8, when_full="drop")
    disk.held.clear()
    for n in range(7):
        append(log, NOON + n * SECOND)
    assert log.counters("s").dropped == 6
    disk.held.set()
    log.flush()
    counters = log.counters("s")
    assert counters.rows == 14 == counters.written + counters.dropped
    told = [lineage(path) for path in log.files("s", NOON, NOON + 60 * SECOND)]
    assert sum(one.dropped for one in told) == 6
    assert sum(one.holds for one in told) == 8
    # The times of what was dropped choose the file that says so.
    chosen = log.files("s", NOON + 6 * SECOND, NOON + 7 * SECOND)
    assert sum(lineage(path).dropped for path in chosen) == 6


def test_a_disk_that_takes_nothing_is_an_error_and_loses_nothing(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    log = ServedLog(tmp_path, rows_per_file=2, rows_waiting=4)
    disk.full = True
    append(log, NOON, prefix="a")
    append(log, NOON, prefix="b")
    with pytest.raises(LogUnavailableError, match="No space left") as caught:
        append(log, NOON, prefix="c")
    assert caught.value.folder == tmp_path
    with pytest.raises(OSError, match="No space left"):
        log.flush()
    disk.full = False
    awaited(log, 2)  # its own thread tries again
    append(log, NOON, prefix="d")
    log.flush()
    ids = [i for path in awaited(log, 3) for i in pq.read_table(path)["request_id"].to_pylist()]
    assert sorted(ids) == ["a0", "a1", "b0", "b1", "d0", "d1"]
    assert log.counters("s").rows == log.counters("s").written == 6


KILLED = """
import sys, pathlib, time
sys.path.insert(0, sys.argv[2])
from datetime import timedelta
from test_log import NOON, append
from steadfeast import ServedLog
log = ServedLog(pathlib.Path(sys.argv[1]), rows_per_file=200, rows_waiting=400, flush_seconds=0.2)
n = 0
while True:
    append(log, NOON + timedelta(seconds=n), prefix=f"{n}-")
    n += 1
    sys.stdout.write(f"{n * 2}\\n"); sys.stdout.flush()
    time.sleep(0.001)
"""


def test_kill_9_loses_no_more_than_may_wait_and_leaves_no_half_file(tmp_path):
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, str(tmp_path), folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        given = 0
        while given < 1500:
            given = int(process.stdout.readline())
        process.kill()
        given = int([given, *process.stdout.read().split("\n")[:-1]][-1])
    log = ServedLog(tmp_path)
    files = log.files("s", NOON, NOON + 36000 * SECOND)
    ids = [i for path in files for i in pq.read_table(path)["request_id"].to_pylist()]
    assert len(ids) == len(set(ids))
    assert given - 400 <= len(ids) <= given + 2
    # What there is has no holes: everything up to the last row on disk is on disk.
    assert sorted(int(i.split("-")[0]) for i in ids) == [n // 2 for n in range(len(ids))]
    told = sorted(lineage(path).number for path in files)
    assert told == list(range(len(files)))
