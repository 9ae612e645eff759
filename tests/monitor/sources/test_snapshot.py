"""Buckets and their frozen rows, over real Parquet files and a real DuckDB."""

import hashlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfeast.monitor.sources.snapshot import Bucket, bucket_path, buckets, freeze, read_snapshot

DAY = timedelta(days=1)
T0 = datetime(2013, 3, 10, tzinfo=UTC)
BUCKET = Bucket(T0, T0 + DAY)
US = timedelta(microseconds=1)


def served(ids, times, **columns):
    return pa.table(
        {
            "request_id": ids,
            "request_time": pa.array(times, pa.timestamp("us", "UTC")),
            **columns,
        }
    )


@pytest.fixture
def con():
    with duckdb.connect() as con:
        yield con


@pytest.fixture
def log(tmp_path):
    """Three files with unlike columns; rows on both edges of the bucket."""
    tables = [
        served(["b", "z"], [T0, T0 - US], x=[1.0, 9.0]),
        served(["a", "y"], [T0 + DAY - US, T0 + DAY], x=[2.0, 9.0], extra=["e", "f"]),
        served(["c"], [T0 + timedelta(hours=3)], x=pa.array([None], pa.float64())),
    ]
    files = []
    for i, table in enumerate(tables):
        files.append(tmp_path / f"served{i}.parquet")
        pq.write_table(table, files[-1])
    return files


def test_a_snapshot_holds_the_rows_of_its_bucket_start_included_end_not(con, log, tmp_path):
    path = bucket_path(tmp_path / "state", "late's", BUCKET)
    found = freeze(con, log, BUCKET, path)
    assert path.relative_to(tmp_path).as_posix() == (
        "state/snapshots/late's/20130310T000000.000000Z.parquet"
    )
    assert (found.monitor, found.bucket, found.rows) == ("late's", BUCKET, 3)
    assert found.watermark == T0 + DAY - US
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    table = pa.Table.from_batches(found.batches())
    assert table["request_id"].to_pylist() == ["a", "b", "c"]
    assert table["x"].to_pylist() == [2.0, 1.0, None]
    assert table["extra"].to_pylist() == ["e", None, None]
    assert table.schema.field("request_time").type == pa.timestamp("us", "UTC")
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    [only] = found.batches(["x", "not there"])
    assert only.schema.names == ["x"]


def test_the_hash_depends_on_rows_and_not_on_files_order_or_threads(con, log, tmp_path):
    one = freeze(con, log, BUCKET, tmp_path / "one" / "s.parquet")
    merged = pa.concat_tables([pq.read_table(f) for f in log], promote_options="default")
    big = tmp_path / "merged.parquet"
    pq.write_table(merged.take([4, 2, 0, 3, 1]), big)
    con.execute("SET threads = 4")
    con.execute("SET TimeZone = 'America/New_York'")
    two = freeze(con, [big], BUCKET, tmp_path / "two" / "s.parquet")
    assert two.sha256 == one.sha256
    con.execute("SET threads = 1")
    assert freeze(con, log[::-1], BUCKET, tmp_path / "3" / "s.parquet").sha256 == one.sha256
    assert freeze(con, log[1:], BUCKET, tmp_path / "4" / "s.parquet").sha256 != one.sha256


def test_a_bucket_is_frozen_once(con, log, tmp_path):
    """Rows that come later, or files that go, change nothing."""
    path = tmp_path / "m" / "s.parquet"
    first = freeze(con, log[:2], BUCKET, path)
    assert freeze(con, log, BUCKET, path) == first
    for file in log:
        file.unlink()
    assert freeze(con, log, BUCKET, path) == first
    assert read_snapshot(con, BUCKET, path) == first


def test_what_a_crash_left_aside_is_not_a_snapshot(con, log, tmp_path):
    path = tmp_path / "m" / "s.parquet"
    path.parent.mkdir()
    path.with_suffix(".1234.partial").write_bytes(b"half a file")
    assert freeze(con, log, BUCKET, path).rows == 3


def test_a_failure_leaves_nothing_behind(con, tmp_path):
    path = tmp_path / "m" / "s.parquet"
    with pytest.raises(duckdb.IOException):
        freeze(con, [tmp_path / "gone.parquet"], BUCKET, path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("how", ["cut", "garbled"])
def test_a_file_that_cannot_be_read_is_frozen_again(con, log, tmp_path, how):
    path = tmp_path / "m" / "s.parquet"
    first = freeze(con, log, BUCKET, path)
    content = path.read_bytes()
    wrong = content[:4] + bytes(byte ^ 0x5A for byte in content[4:-8]) + content[-8:]
    path.write_bytes(wrong if how == "garbled" else content[:40])
    assert freeze(con, log, BUCKET, path) == first


def test_an_empty_bucket_is_a_snapshot_too(con, log, tmp_path):
    later = Bucket(T0 + 5 * DAY, T0 + 6 * DAY)
    for name, files in {"none": [], "others": log}.items():
        found = freeze(con, files, later, tmp_path / name / "s.parquet")
        assert (found.rows, found.watermark) == (0, None)
        assert sum(len(batch) for batch in found.batches()) == 0


def test_large_buckets_have_the_same_hash_twice(con, tmp_path):
    """More than one row group, written by several threads."""
    con.execute("SET threads = 4")
    con.execute(
        "COPY (SELECT (i * 7919 % 400000)::VARCHAR AS request_id, "
        "TIMESTAMPTZ '2013-03-10 00:00:00Z' + to_microseconds(i) AS request_time, "
        f"random() AS x FROM range(400000) r(i)) TO '{tmp_path}/big.parquet'"
    )
    hashes = {
        freeze(con, [tmp_path / "big.parquet"], BUCKET, tmp_path / str(i) / "s.parquet").sha256
        for i in range(3)
    }
    assert len(hashes) == 1


times = st.datetimes(datetime(1960, 1, 1), datetime(2030, 1, 1)).map(  # noqa: DTZ001
    lambda t: t.replace(tzinfo=UTC)
)


@given(times, st.integers(0, 20), st.sampled_from([1, 6, 24, 48]), st.integers(0, 3599))
def test_buckets_are_whole_adjacent_aligned_and_inside(after, many, hours, seconds):
    length = timedelta(hours=hours)
    until = after + many * length + timedelta(seconds=seconds)
    found = buckets(after, until, length)
    assert abs(len(found) - many) <= 1
    for one in found:
        assert after <= one.start < one.end <= until
        assert one.end - one.start == length
        assert one.start.timestamp() % length.total_seconds() == 0
    assert all(a.end == b.start for a, b in pairwise(found))


def test_buckets_go_on_where_the_last_ended():
    assert buckets(T0, T0 + 3 * DAY, DAY) == [
        *buckets(T0, T0 + DAY, DAY),
        *buckets(T0 + DAY, T0 + 3 * DAY, DAY),
    ]
    assert buckets(T0, T0 + DAY - US, DAY) == []
