"""What is measured about a bucket and the window that ends with it.

The evaluator has closed buckets measured, decides on them and commits them. `open_window` has
buckets measured that still take late rows, and shows them. Reads what is watched, the labels and
earlier snapshots; writes nothing but snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb

from steadfeast.monitor.decisions import Evaluation
from steadfeast.monitor.drift import (
    Level,
    detect,
    figures,
    freshness,
    incidents,
    segments,
    spared,
)
from steadfeast.monitor.drift.multivariate.detector import Relations
from steadfeast.monitor.evaluation.late_rows import late_rows
from steadfeast.monitor.evaluation.surroundings import Surroundings
from steadfeast.monitor.evaluation.window_profiles import (
    WindowProfiles,
    lost,
    recounted,
    rows_of,
)
from steadfeast.monitor.performance import judge, predictions
from steadfeast.monitor.profiles import ColumnKind, Profile, Window, profile, total
from steadfeast.monitor.sources import (
    Bucket,
    Snapshot,
    bucket_path,
    frozen,
    open_path,
    swept,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from steadfeast.featurestore.served_log import ServedLog
    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Reference, Verdict
    from steadfeast.monitor.ledger import FrozenBucket
    from steadfeast.monitor.performance import Performance
    from steadfeast.monitor.sources import Source

BUCKETS_PER_CONNECTION = 100
"""A database in memory keeps some KiB of each bucket that is read with it, until it is closed."""


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
class Counted:
    """The rows of one bucket.

    Attributes:
        snapshot: The bucket's file.
        profile: Of its rows, over the reference's edges.
    """

    snapshot: Snapshot
    profile: Profile


class Measurer:
    """Measures buckets; remembers the profiles of those that are still in a window.

    Args:
        source_of: Gives what a monitor watches.
        log: Where labels are.
        data: The store's folder.
        state: The daemon's folder, for snapshots.
        kept: Gives a monitor's frozen buckets in a stretch of time.
        stored: Gives the profile of one of them, as JSON.
    """

    def __init__(
        self,
        source_of: Callable[[str, MonitorConfig], Source],
        log: ServedLog,
        data: Path,
        state: Path,
        kept: Callable[[str, datetime, datetime], list[FrozenBucket]],
        stored: Callable[[str, FrozenBucket], str],
    ) -> None:
        self._source_of, self._log = source_of, log
        self._state, self._kept = state, kept
        swept(state)
        self._con, self._measured = _connection(), 0
        self._profiles = WindowProfiles(stored)
        self._relations = Relations(kept, data)
        self._surroundings = Surroundings(kept)

    def close(self) -> None:
        """Let go of the connection."""
        self._con.close()

    def count(
        self,
        monitor: str,
        config: MonitorConfig,
        bucket: Bucket,
        reference: Reference,
        *,
        still_open: bool = False,
    ) -> Counted:
        """Freeze a bucket and count its rows over `reference`.

        Args:
            monitor: Which.
            config: Of the monitor.
            bucket: Which.
            reference: Whose edges the rows are counted over.
            still_open: The bucket takes late rows: read it again, into a file of its own.

        Raises:
            SourceError: What is watched cannot be read.
        """
        source, path = self._source_of(monitor, config), bucket_path(self._state, monitor, bucket)
        snapshot = frozen(
            self._con,
            source,
            bucket,
            open_path(path) if still_open else path,
            types=types_of(reference),
            again=still_open,
        )
        return Counted(snapshot, profile(rows_of(snapshot, reference), reference.edges))

    def measure(
        self, monitor: str, config: MonitorConfig, bucket: Bucket, reference: Reference, key: str
    ) -> Measured:
        """Freeze a bucket and measure its window against `reference`, whose key is `key`.

        Raises:
            SourceError: What is watched cannot be read.
        """
        self._renew()
        frozen_at = datetime.now(UTC)
        source, path = self._source_of(monitor, config), bucket_path(self._state, monitor, bucket)
        if path.exists():  # a crash came before it was committed
            frozen_at = min(frozen_at, datetime.fromtimestamp(path.stat().st_mtime, UTC))
        counted = self.count(monitor, config, bucket, reference)
        snapshot, current = counted.snapshot, counted.profile
        before = self._kept(monitor, bucket.end - config.window, bucket.start)
        whole = self._profiles.window(
            self._con, monitor, config, before, current, bucket, key, reference
        )
        window = self._evaluation(monitor, config, before, [counted], whole, reference, key)
        broken = incidents(
            reference,
            current,
            window.freshness,
            config,
            Window(bucket.start, bucket.end, snapshot.rows),
            self._surroundings.facts(self._con, config, source, snapshot, reference, before),
        )
        verdicts = spared(window.verdicts, broken, reference.edges)
        together = self._relations.judge(self._con, monitor, config, snapshot, reference, key)
        evaluation = replace(
            window,
            verdicts=tuple(sorted((*verdicts, *together), key=lambda one: -one.ratio)),
            incidents=tuple(broken),
            # Both judge all features together: what moves one of them moves the other.
            groups={**reference.groups, **{one.feature: together[0].feature for one in together}},
            quarantined=snapshot.quarantined,
        )
        late = tuple(late_rows(self._con, source, before))
        return Measured(evaluation, snapshot, current, whole, frozen_at, late)

    def measure_open(
        self,
        monitor: str,
        config: MonitorConfig,
        open_: Sequence[Counted],
        reference: Reference,
        key: str,
    ) -> tuple[Evaluation, Profile]:
        """Measure the window that ends with the last of `open_`; return its profile as well.

        Nothing of the open buckets is remembered, for they change. Incidents are not looked for.

        Args:
            monitor: Which.
            config: Of the monitor.
            open_: Buckets that still take late rows, in order, at least one.
            reference: What is compared with.
            key: Of the reference.
        """
        self._renew()
        start = open_[-1].snapshot.bucket.end - config.window
        before = self._kept(monitor, start, open_[0].snapshot.bucket.start)
        whole = total((one.profile for one in open_), reference.edges)
        if before:
            last = before[-1]
            counted = self._profiles.counted(self._con, monitor, last, key, reference)
            whole += self._profiles.window(
                self._con, monitor, config, before[:-1], counted, last.bucket, key, reference
            )
        return self._evaluation(monitor, config, before, open_, whole, reference, key), whole

    def _evaluation(
        self,
        monitor: str,
        config: MonitorConfig,
        before: Sequence[FrozenBucket],
        newest: Sequence[Counted],
        whole: Profile,
        reference: Reference,
        key: str,
    ) -> Evaluation:
        """Compare the window of the buckets `before` and `newest`, counted in `whole`."""
        last = newest[-1]
        bucket, snapshots = last.snapshot.bucket, [one.snapshot for one in newest]
        window = Window(bucket.end - config.window, bucket.end, whole.rows)
        first = (before[0] if before else snapshots[0]).bucket.start
        live, estimated, split = self._model(
            monitor, config, window, [*before, *snapshots], reference, key, whole
        )
        verdicts = detect(reference, whole, window, config, bucket=(bucket.start, last.profile))
        return Evaluation(
            monitor=monitor,
            window=window,
            reference_window=reference.window,
            verdicts=withheld(verdicts, window, first, lost(before, key)),
            figures=tuple(figures(whole)),
            freshness=tuple(freshness(self._con, last.snapshot)),
            performance=live,
            expected=reference.performance,
            estimated=estimated,
            segments=split,
            contract=reference.contract,
            model_version=reference.model_version,
        )

    def _renew(self) -> None:
        """Take another connection from time to time."""
        self._measured += 1
        if self._measured % BUCKETS_PER_CONNECTION == 0:
            self._con.close()
            self._con = _connection()

    def forget(self, monitor: str, config: MonitorConfig, before: datetime) -> None:
        """Let go of the profiles of buckets that start before `before`."""
        self._profiles.forget(monitor, config, before)
        self._relations.forget(monitor, before - config.window)

    def recounted(self, kept: FrozenBucket, reference: Reference) -> Profile:
        """Count the rows of a frozen bucket over another reference."""
        return recounted(self._con, kept, reference)

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
            current = self._profiles.segments(self._con, monitor, config, buckets, key, reference)
            split = segments.judge_segments(reference, current, rows, known, config)
        return live, estimated, split


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


def _with_rows(buckets: Sequence[FrozenBucket | Snapshot]) -> list[Path]:
    """Return the files that can be read: a snapshot without rows has no columns."""
    return [one.path for one in buckets if one.rows and one.path.exists()]


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
