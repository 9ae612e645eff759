"""The profiles of the buckets that make up a window, summed: all rows, and by segment."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.drift import PREDICTION, segments
from steadfeast.monitor.profiles import Profile, Sums, profile, total
from steadfeast.monitor.references import own
from steadfeast.monitor.sources import OPEN, Snapshot, SnapshotUnreadableError, read_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    import duckdb
    import pyarrow as pa

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Key, Reference
    from steadfeast.monitor.ledger import FrozenBucket
    from steadfeast.monitor.sources import Bucket

_Bucket = TypeVar("_Bucket", "FrozenBucket", "Snapshot", "FrozenBucket | Snapshot")


@dataclass(frozen=True, slots=True)
class _Sums:
    """What is summed of one monitor's buckets, over the reference of `key`: all, and by segment."""

    key: str
    whole: Sums
    parts: dict[Key, Sums]


class WindowProfiles:
    """Sums the profiles of a window's buckets; remembers those that are still in a window.

    Args:
        stored: Gives the profile of one of a monitor's frozen buckets, as JSON.
    """

    def __init__(self, stored: Callable[[str, FrozenBucket], str]) -> None:
        self._stored = stored
        self._sums: dict[str, _Sums] = {}

    def forget(self, monitor: str, config: MonitorConfig, before: datetime) -> None:
        """Let go of the profiles of buckets that start before `before`."""
        if monitor in self._sums:
            held = self._sums[monitor]
            for one in (held.whole, *held.parts.values()):
                one.forget(_number(before, config))

    def window(
        self,
        con: duckdb.DuckDBPyConnection,
        monitor: str,
        config: MonitorConfig,
        before: Sequence[FrozenBucket],
        current: Profile,
        bucket: Bucket,
        key: str,
        reference: Reference,
    ) -> Profile:
        """Return the profile of the window.

        Buckets that nobody can count any more are not in it.
        """
        sums = self._held(monitor, key, reference).whole
        earlier = _placed(before, config)
        last = _number(bucket.start, config)

        def one(number: int) -> Profile:
            parts = [
                self.counted(con, monitor, kept, key, reference) for kept in earlier.get(number, ())
            ]
            return total([*parts, current] if number == last else parts, reference.edges)

        return sums.total(min(earlier, default=last), last + 1, one)

    def counted(
        self,
        con: duckdb.DuckDBPyConnection,
        monitor: str,
        kept: FrozenBucket,
        key: str,
        reference: Reference,
    ) -> Profile:
        """Return a frozen bucket's profile over `reference`; empty if nobody can count it."""
        if kept.reference_key == key:
            return Profile.from_json(self._stored(monitor, kept), reference.edges)
        if _gone(kept, key):
            return Profile.empty(reference.edges)
        return recounted(con, kept, reference)

    def segments(
        self,
        con: duckdb.DuckDBPyConnection,
        monitor: str,
        config: MonitorConfig,
        buckets: Sequence[FrozenBucket | Snapshot],
        key: str,
        reference: Reference,
    ) -> dict[Key, Profile]:
        """Return the profile of each segment of the window that `buckets` make up.

        What still takes late rows is counted each time, for it changes.
        """
        closed = [one for one in buckets if one.path.suffix != OPEN]
        found = (
            self._closed_segments(con, monitor, config, closed, key, reference) if closed else {}
        )
        for one in buckets:
            if one.path.suffix == OPEN and one.rows:
                rows = rows_of(read_snapshot(con, one.bucket, one.path), reference)
                for part, counted in segments.profiles(rows, reference).items():
                    found[part] = found[part] + counted if part in found else counted
        return found

    def _closed_segments(
        self,
        con: duckdb.DuckDBPyConnection,
        monitor: str,
        config: MonitorConfig,
        buckets: Sequence[FrozenBucket | Snapshot],
        key: str,
        reference: Reference,
    ) -> dict[Key, Profile]:
        """Return the profile of each segment of closed buckets, at least one.

        A bucket's rows are read once, and once more after a restart.
        """
        sums = self._held(monitor, key, reference).parts
        placed, blank = _placed(buckets, config), Profile.empty(reference.edges)

        @cache
        def counted(number: int) -> Mapping[Key, Profile]:
            parts: dict[Key, Profile] = {}
            for one in placed.get(number, ()):
                if not one.rows:
                    continue
                # Out of retention, or damaged: the checks of the snapshots name it.
                with suppress(SnapshotUnreadableError):
                    rows = rows_of(read_snapshot(con, one.bucket, one.path), reference)
                    for part, profiled in segments.profiles(rows, reference).items():
                        parts[part] = parts[part] + profiled if part in parts else profiled
            return parts

        listed = [(column, value) for column, one in reference.segments.items() for value in one]
        others = [(column, segments.OTHERS) for column in reference.segments]
        found = {
            part: sums.setdefault(part, Sums(reference.edges)).total(
                min(placed),
                max(placed) + 1,
                lambda number, part=part: counted(number).get(part, blank),  # type: ignore[misc]
            )
            for part in dict.fromkeys((*listed, *others))
        }
        # Values that the reference does not have, where it had room for all of its own.
        return {part: one for part, one in found.items() if part in listed or one.rows}

    def _held(self, monitor: str, key: str, reference: Reference) -> _Sums:
        """Return the sums over the edges of `reference`; those over another's are let go."""
        held = self._sums.get(monitor)
        if held is None or held.key != key:
            held = self._sums[monitor] = _Sums(key, Sums(reference.edges), {})
        return held


def recounted(con: duckdb.DuckDBPyConnection, kept: FrozenBucket, reference: Reference) -> Profile:
    """Count the rows of a frozen bucket over another reference."""
    frozen: Snapshot = read_snapshot(con, kept.bucket, kept.path)
    return profile(rows_of(frozen, reference), reference.edges)


def rows_of(snapshot: Snapshot, reference: Reference) -> Iterator[pa.RecordBatch]:
    """Give the columns that are counted or split by; predictions only of the live model."""
    edges = reference.edges
    columns = {*edges.sources, *reference.segments}
    if reference.model_version and PREDICTION in columns:
        columns.add("model_version")
    given = snapshot.batches(columns, categories=edges.categorical)
    return own(given, reference.model_version)


def _placed(buckets: Iterable[_Bucket], config: MonitorConfig) -> dict[int, list[_Bucket]]:
    """Return buckets by their numbers.

    Their length may have changed since: several may begin in one of today's.
    """
    found: defaultdict[int, list[_Bucket]] = defaultdict(list)
    for one in buckets:
        found[_number(one.bucket.start, config)].append(one)
    return found


def _number(at: datetime, config: MonitorConfig) -> int:
    return (at - EPOCH) // config.bucket


def _gone(kept: FrozenBucket, key: str) -> bool:
    """Whether a bucket is counted over another reference, and its rows are not there any more."""
    return kept.reference_key != key and not kept.path.exists()


def lost(before: Sequence[FrozenBucket], key: str) -> int:
    """Return how many rows of the window cannot be counted over the reference of `key`."""
    return sum(one.rows for one in before if _gone(one, key))
