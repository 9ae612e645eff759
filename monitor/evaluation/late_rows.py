"""Rows that came after their bucket was frozen for good; docs/adr/0013-late-rows.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from steadfeast.monitor.ledger import FrozenBucket
    from steadfeast.monitor.sources import Bucket, Source

GRAIN_SECONDS = 0.02
"""How far the kernel's times of files may lag behind the clock."""


def late_rows(
    con: duckdb.DuckDBPyConnection, source: Source, before: Sequence[FrozenBucket]
) -> list[tuple[FrozenBucket, int]]:
    """Return the buckets that got rows after they were frozen, and how many by now.

    Only what changed later is a reason to count.
    """
    found: list[tuple[FrozenBucket, int]] = []
    if not before:
        return found
    oldest = min(kept.frozen_at for kept in before).timestamp()
    parts = source.parts(before[0].bucket.start, before[-1].bucket.end)
    came = [part for part in parts if part.changed > oldest - GRAIN_SECONDS]
    for kept in before:
        start, end = kept.bucket.start, kept.bucket.end
        since = kept.frozen_at.timestamp() - GRAIN_SECONDS
        if any(p.first < end and p.last >= start and p.changed > since for p in came):
            late = _count(con, source, kept.bucket) - kept.rows
            if late != kept.late_rows:
                found.append((kept, late))
    return found


def _count(con: duckdb.DuckDBPyConnection, source: Source, bucket: Bucket) -> int:
    """Count the rows that a source now has of a bucket."""
    with source.reading(con, bucket.start, bucket.end) as reading:
        rows = reading.rows
        if rows is None:
            return 0
        ((many,),) = con.execute(
            f"SELECT count(*) FROM ({rows.query}) "
            "WHERE request_time >= $start AND request_time < $end",
            {**rows.values, "start": bucket.start, "end": bucket.end},
        ).fetchall()
    return int(many)
