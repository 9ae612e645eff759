"""What a frozen bucket is compared with beside the reference's profile: its like, and its columns.

Below `window`, which measures a bucket. Volumes of earlier buckets come from the ledger once and
are kept from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.monitor.drift import (
    WEEK,
    WEEKS,
    BucketFacts,
    expected_volume,
    repeated_requests,
    repeats,
    unique_columns,
)
from steadfeast.monitor.profiles import places_of
from steadfeast.monitor.sources import AT, REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import duckdb

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Reference
    from steadfeast.monitor.ledger import FrozenBucket
    from steadfeast.monitor.sources import Snapshot, Source

ALIKE = 0.1
"""Total variation of two columns below which one may be the other under a new name."""
_MOST_ROWS = 100_000


class Surroundings:
    """Gathers the facts of buckets; remembers how many rows the last weeks had.

    Args:
        kept: Gives a monitor's frozen buckets in a stretch of time.
    """

    def __init__(self, kept: Callable[[str, datetime, datetime], list[FrozenBucket]]) -> None:
        self._kept = kept
        self._volumes: dict[str, dict[datetime, int]] = {}

    def facts(
        self,
        con: duckdb.DuckDBPyConnection,
        config: MonitorConfig,
        source: Source,
        snapshot: Snapshot,
        reference: Reference,
        before: Sequence[FrozenBucket],
    ) -> BucketFacts:
        """Return what is known of a frozen bucket.

        Args:
            con: Any DuckDB connection.
            config: Of the monitor.
            source: What it watches.
            snapshot: The bucket.
            reference: What is compared with.
            before: The buckets of the window before it.
        """
        volume = expected_volume(
            snapshot.bucket.start,
            config.bucket,
            reference.facts,
            self._before(snapshot, config),
        )
        absent, unknown = _columns(config, source, snapshot, reference)
        return BucketFacts(
            repeats=_repeats(con, config, source, snapshot, reference),
            earlier=[one.rows for one in before],
            volume=volume,
            absent=absent,
            new=_new(unknown, before),
            renamed=_renamed(snapshot, reference, unknown),
            quarantined=snapshot.quarantined,
        )

    def _before(self, snapshot: Snapshot, config: MonitorConfig) -> dict[datetime, int]:
        """Return the rows of the last weeks' buckets by their starts, and remember this one's."""
        name, start = snapshot.monitor, snapshot.bucket.start
        oldest = start - WEEKS * max(WEEK, config.bucket)
        known = self._volumes.get(name)
        if known is None:
            known = {one.bucket.start: one.rows for one in self._kept(name, oldest, start)}
        known = {at: rows for at, rows in known.items() if oldest <= at < start}
        self._volumes[name] = {**known, start: snapshot.rows}
        return known


def _repeats(
    con: duckdb.DuckDBPyConnection,
    config: MonitorConfig,
    source: Source,
    snapshot: Snapshot,
    reference: Reference,
) -> dict[str, int]:
    if config.source is None:
        return {REQUEST: repeated_requests(con, snapshot)}
    if not snapshot.rows:
        return {}
    named = unique_columns(source.keys, reference.edges.identifiers, AT)
    known = {name: parts for name, parts in named.items() if name in reference.facts.repeats}
    return repeats(con, snapshot.path, known) if known else {}


def _columns(
    config: MonitorConfig, source: Source, snapshot: Snapshot, reference: Reference
) -> tuple[list[str], list[str]]:
    """Return the columns that are gone and not watched, and those that the reference lacks."""
    if config.source is None or not snapshot.rows:
        return [], []
    there = pq.read_schema(snapshot.path).names
    gone = [name for name in source.keys if name in reference.columns and name not in there]
    known = {AT, REQUEST, *reference.columns}
    return gone, [] if config.features else [name for name in there if name not in known]


def _new(unknown: Sequence[str], before: Sequence[FrozenBucket]) -> list[str]:
    """Return the columns that the bucket before lacked: it was told of the others then."""
    if unknown and before and before[-1].rows:
        try:
            there = pq.read_schema(before[-1].path).names
        except (OSError, pa.ArrowException):  # out of retention, or damaged: told elsewhere
            return list(unknown)
        return [name for name in unknown if name not in there]
    return list(unknown)


def _renamed(snapshot: Snapshot, reference: Reference, unknown: Sequence[str]) -> dict[str, str]:
    """Return for a watched column that is gone the unknown one whose values are spread alike."""
    there = set(pq.read_schema(snapshot.path).names) if unknown else set()
    found: dict[str, str] = {}
    for name, edges in reference.edges.columns.items():
        counts = reference.profile.columns[name].counts
        if not unknown or name in there or edges.source or not edges.bins or not counts.sum():
            continue
        for candidate in unknown:
            column = pq.read_table(snapshot.path, columns=[candidate])[candidate]
            places = places_of(column.slice(0, _MOST_ROWS), edges)
            now = np.bincount(places[places < edges.bins], minlength=edges.bins)
            if not now.sum():
                continue
            was, share = edges.coarse(counts / counts.sum()), edges.coarse(now / now.sum())
            if np.abs(was - share).sum() / 2 < ALIKE:
                found[name] = candidate
    return found
