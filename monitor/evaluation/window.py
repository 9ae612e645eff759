"""What is measured about one closed bucket and the window that ends with it.

Above `references`, below `evaluation`, which decides on it and commits it. Reads what is watched,
the labels and earlier snapshots; writes nothing but the bucket's snapshot, which is the same
whoever writes it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import duckdb

from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.decisions import Evaluation
from steadfeast.monitor.drift import (
    PREDICTION,
    Level,
    detect,
    figures,
    freshness,
    incidents,
    segments,
    spared,
)
from steadfeast.monitor.drift.multivariate.detector import Relations
from steadfeast.monitor.evaluation.surroundings import Surroundings
from steadfeast.monitor.performance import judge, predictions
from steadfeast.monitor.profiles import ColumnKind, Profile, Sums, Window, profile, total
from steadfeast.monitor.references import own
from steadfeast.monitor.sources import Bucket, Snapshot, bucket_path, frozen, read_snapshot, swept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from steadfeast.featurestore.served_log import ServedLog
    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Key, Reference, Verdict
    from steadfeast.monitor.ledger import FrozenBucket
    from steadfeast.monitor.performance import Performance
    from steadfeast.monitor.sources import Source

GRAIN_SECONDS = 0.02
"""How far the kernel's times of files may lag behind the clock."""

BUCKETS_PER_CONNECTION = 100
"""A database in memory keeps some KiB of each bucket that is read with it, until it is closed."""

_Bucket = TypeVar("_Bucket", "FrozenBucket", "Snapshot", "FrozenBucket | Snapshot")


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything about one bucket, ready to be decided on.

    Attributes:
        evaluation: Of the window that ends with the bucket; its history is still to be added.
        snapshot: The frozen bucket.
        profile: Of the bucket alone, over the reference's edges.
        whole: Of the window.
        frozen_at: Just before it was frozen, wall clock.
        late: Earlier buckets of the window that got rows since, and how many by now.
    """

    evaluation: Evaluation
    snapshot: Snapshot
    profile: Profile
    whole: Profile
    frozen_at: datetime
    late: tuple[tuple[FrozenBucket, int], ...]


@dataclass(frozen=True, slots=True)
class _Sums:
    """What is summed of one monitor's buckets, over the reference of `key`: all, and by segment."""

    key: str
    whole: Sums
    parts: dict[Key, Sums]


class Measurer:
    """Measures buckets; remembers the profiles of those that are still in a window.

    Args:
        source_of: Gives what a monitor watches.
        log: Where labels are.
        state: The daemon's folder, for snapshots.
        kept: Gives a monitor's frozen buckets in a stretch of time.
        stored: Gives the profile of one of them, as JSON.
    """

    def __init__(
        self,
        source_of: Callable[[str, MonitorConfig], Source],
        log: ServedLog,
        state: Path,
        kept: Callable[[str, datetime, datetime], list[FrozenBucket]],
        stored: Callable[[str, FrozenBucket], str],
    ) -> None:
        self._source_of, self._log = source_of, log
        self._state, self._kept, self._stored = state, kept, stored
        swept(state)
        self._con, self._measured = _connection(), 0
        self._sums: dict[str, _Sums] = {}
        self._relations = Relations(kept)
        self._surroundings = Surroundings(kept)

    def close(self) -> None:
        """Let go of the connection."""
        self._con.close()

    def count(
        self, monitor: str, config: MonitorConfig, bucket: Bucket, reference: Reference
    ) -> tuple[Snapshot, Profile]:
        """Freeze a bucket and count its rows over `reference`.

        Raises:
            SourceError: What is watched cannot be read.
        """
        source, path = self._source_of(monitor, config), bucket_path(self._state, monitor, bucket)
        snapshot = frozen(self._con, source, bucket, path, types=types_of(reference))
        return snapshot, profile(rows_of(snapshot, reference), reference.edges)

    def measure(
        self, monitor: str, config: MonitorConfig, bucket: Bucket, reference: Reference, key: str
    ) -> Measured:
        """Freeze a bucket and measure its window against `reference`, whose key is `key`.

        Raises:
            SourceError: What is watched cannot be read.
        """
        self._renew()
        frozen_at = datetime.now(UTC)
        start = bucket.end - config.window
        source, path = self._source_of(monitor, config), bucket_path(self._state, monitor, bucket)
        if path.exists():  # a crash came before it was committed
            frozen_at = min(frozen_at, datetime.fromtimestamp(path.stat().st_mtime, UTC))
        snapshot = frozen(self._con, source, bucket, path, types=types_of(reference))
        current = profile(rows_of(snapshot, reference), reference.edges)
        before = self._kept(monitor, start, bucket.start)
        whole = self._window(monitor, config, before, current, bucket, key, reference)
        first = before[0].bucket.start if before else bucket.start
        window = Window(start, bucket.end, whole.rows)
        ages = freshness(self._con, snapshot)
        broken = incidents(
            reference,
            current,
            ages,
            config,
            Window(bucket.start, bucket.end, snapshot.rows),
            self._surroundings.facts(self._con, config, source, snapshot, reference, before),
        )
        live, estimated, split = self._model(
            monitor, config, window, [*before, snapshot], reference, key, whole
        )
        verdicts = withheld(
            detect(reference, whole, window, config, bucket=(bucket.start, current)),
            window,
            first,
            lost(before, key),
        )
        verdicts = spared(verdicts, broken, reference.edges)
        together = self._relations.judge(self._con, monitor, config, snapshot, reference, key)
        evaluation = Evaluation(
            monitor=monitor,
            window=window,
            reference_window=reference.window,
            verdicts=tuple(sorted((*verdicts, *together), key=lambda one: -one.ratio)),
            incidents=tuple(broken),
            figures=tuple(figures(whole)),
            freshness=tuple(ages),
            performance=live,
            expected=reference.performance,
            estimated=estimated,
            segments=split,
            contract=reference.contract,
            model_version=reference.model_version,
            groups=reference.groups,
            quarantined=snapshot.quarantined,
        )
        late = tuple(self._late(source, before))
        return Measured(evaluation, snapshot, current, whole, frozen_at, late)

    def _renew(self) -> None:
        """Take another connection from time to time."""
        self._measured += 1
        if self._measured % BUCKETS_PER_CONNECTION == 0:
            self._con.close()
            self._con = _connection()

    def forget(self, monitor: str, config: MonitorConfig, before: datetime) -> None:
        """Let go of the profiles of buckets that start before `before`."""
        if monitor in self._sums:
            held = self._sums[monitor]
            for one in (held.whole, *held.parts.values()):
                one.forget(_number(before, config))
        self._relations.forget(monitor, before - config.window)

    def recounted(self, kept: FrozenBucket, reference: Reference) -> Profile:
        """Count the rows of a frozen bucket over another reference."""
        frozen: Snapshot = read_snapshot(self._con, kept.bucket, kept.path)
        return profile(rows_of(frozen, reference), reference.edges)

    # The model

    def _model(
        self,
        monitor: str,
        config: MonitorConfig,
        window: Window,
        buckets: Sequence[FrozenBucket | Snapshot],
        reference: Reference,
        key: str,
        whole: Profile,
    ) -> tuple[Performance | None, dict[str, float], tuple[segments.Segment, ...]]:
        """Return how the live model did, how it is thought to do, and both by segment."""
        columns = tuple(reference.segments)
        served = config.source is None
        if config.performance is None and not columns and not (served and reference.estimator):
            return None, {}, ()
        as_of = window.end + config.lateness
        delay = timedelta(0) if config.performance is None else config.performance.label_delay
        known = Window(window.start - delay, window.end - delay)
        measured_on = self._kept(monitor, known.start, known.end) if delay else buckets
        rows = predictions(
            self._con,
            _with_rows(measured_on) if served else [],
            self._log.label_files(config.service, known.start, as_of),
            known,
            as_of,
            model_version=reference.model_version or None,
            columns=columns,
        )
        live = judge(rows, known, config)
        estimated: dict[str, float] = {}
        if reference.estimator is not None and served:
            now = rows
            if delay:
                version = reference.model_version or None
                files = _with_rows(buckets)
                now = predictions(self._con, files, [], window, as_of, model_version=version)
            estimated = reference.estimator.estimate(now["prediction"].to_numpy(), whole)
        split: tuple[segments.Segment, ...] = ()
        if columns:
            current = self._segments(monitor, config, buckets, key, reference)
            split = segments.judge_segments(reference, current, rows, known, config)
        return live, estimated, split

    # Profiles of earlier buckets

    def _window(
        self,
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
                self._counted(monitor, kept, key, reference) for kept in earlier.get(number, ())
            ]
            return total([*parts, current] if number == last else parts, reference.edges)

        return sums.total(min(earlier, default=last), last + 1, one)

    def _counted(self, monitor: str, kept: FrozenBucket, key: str, reference: Reference) -> Profile:
        """Return a frozen bucket's profile over `reference`; empty if nobody can count it."""
        if kept.reference_key == key:
            return Profile.from_json(self._stored(monitor, kept), reference.edges)
        if _gone(kept, key):
            return Profile.empty(reference.edges)
        return self.recounted(kept, reference)

    def _segments(
        self,
        monitor: str,
        config: MonitorConfig,
        buckets: Sequence[FrozenBucket | Snapshot],
        key: str,
        reference: Reference,
    ) -> dict[Key, Profile]:
        """Return the profile of each segment of the window that `buckets` make up.

        A bucket's rows are read once, and once more after a restart.
        """
        sums = self._held(monitor, key, reference).parts
        placed, blank = _placed(buckets, config), Profile.empty(reference.edges)

        @cache
        def counted(number: int) -> Mapping[Key, Profile]:
            there = [one for one in placed.get(number, ()) if one.rows and one.path.exists()]
            frozen = (read_snapshot(self._con, one.bucket, one.path) for one in there)
            rows = chain.from_iterable(rows_of(one, reference) for one in frozen)
            return segments.profiles(rows, reference)

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

    def _late(self, source: Source, before: list[FrozenBucket]) -> list[tuple[FrozenBucket, int]]:
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
                late = self._many(source, kept.bucket) - kept.rows
                if late != kept.late_rows:
                    found.append((kept, late))
        return found

    def _many(self, source: Source, bucket: Bucket) -> int:
        """Count the rows that a source now has of a bucket."""
        with source.reading(self._con, bucket.start, bucket.end) as reading:
            rows = reading.rows
            if rows is None:
                return 0
            ((many,),) = self._con.execute(
                f"SELECT count(*) FROM ({rows.query}) "
                "WHERE request_time >= $start AND request_time < $end",
                {**rows.values, "start": bucket.start, "end": bucket.end},
            ).fetchall()
        return int(many)


def _connection() -> duckdb.DuckDBPyConnection:
    """Open a database in memory for reading Parquet: the ledger's stays free meanwhile."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET enable_external_file_cache = false")  # it never forgets a file's name
    con.execute("SET enable_progress_bar = false")  # it draws into the log
    return con


def types_of(reference: Reference) -> dict[str, str]:
    """Return the DuckDB type to read each column of text files as, after the reference's own."""
    wanted = {
        ColumnKind.NUMERIC: "DOUBLE",
        ColumnKind.BOOLEAN: "BOOLEAN",
        ColumnKind.TIMESTAMP: "TIMESTAMP WITH TIME ZONE",
        ColumnKind.CATEGORICAL: "VARCHAR",
        ColumnKind.TEXT: "VARCHAR",
    }
    return {
        name: wanted[one.kind]
        for name, one in reference.edges.columns.items()
        if one.kind in wanted and not one.source
    }


def rows_of(snapshot: Snapshot, reference: Reference) -> Iterator[pa.RecordBatch]:
    """Give the columns that are counted or split by; predictions only of the live model."""
    edges = reference.edges
    columns = {*edges.sources, *reference.segments}
    if reference.model_version and PREDICTION in columns:
        columns.add("model_version")
    given = snapshot.batches(columns, categories=edges.categorical)
    return own(given, reference.model_version)


def _with_rows(buckets: Sequence[FrozenBucket | Snapshot]) -> list[Path]:
    """Return the files that can be read: a snapshot without rows has no columns."""
    return [one.path for one in buckets if one.rows and one.path.exists()]


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


def withheld(
    verdicts: list[Verdict], window: Window, first: datetime, dropped: int
) -> tuple[Verdict, ...]:
    """Withhold judgement on a window that lacks buckets or rows; a bucket is judged by itself."""
    if first > window.start:
        reason = f"the window is not full: rows are there from {first:%Y-%m-%dT%H:%MZ} on"
    elif dropped:
        reason = f"{dropped} rows of the window were dropped before the reference moved"
    else:
        return tuple(verdicts)
    level = Level.INSUFFICIENT_DATA
    return tuple(
        replace(one, level=level, value=None, reason=reason)
        if one.window.start <= window.start
        else one
        for one in verdicts
    )
