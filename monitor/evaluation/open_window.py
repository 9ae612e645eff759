"""A window whose last buckets have ended and still take late rows: how it stands so far.

Above `measuring`, whose one measurement of each frozen bucket is what decisions are made on. Here
the newest window is measured early and again whenever rows come, and shown; nothing of it is
kept, so that there is nothing to take back. docs/adr/0013-late-rows.md says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from steadfeast.monitor.decisions import Evaluation
from steadfeast.monitor.drift import detect, figures, freshness, segments
from steadfeast.monitor.drift.multivariate.detector import SOURCE
from steadfeast.monitor.evaluation.window import Measurer, lost, rows_of, types_of, withheld
from steadfeast.monitor.profiles import Profile, Window, distributions, profile, total
from steadfeast.monitor.sources import OPEN, bucket_path, frozen, open_path, read_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Key, Reference
    from steadfeast.monitor.evaluation.window import Measured
    from steadfeast.monitor.ledger import FrozenBucket, MonitorState, Position
    from steadfeast.monitor.sources import Bucket, Snapshot, Source


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """A window whose last buckets still take late rows, as it stands; nothing is decided on it.

    Attributes:
        evaluation: Of the window; without incidents.
        whole: Profile of the window.
        until: When its last bucket is frozen for good, event time.
    """

    evaluation: Evaluation
    whole: Profile
    until: datetime


@dataclass(frozen=True, slots=True)
class SoFar:
    """The rows so far of a bucket that still takes late ones; `stamp` tells when they change."""

    stamp: object
    snapshot: Snapshot
    profile: Profile


class OpenMeasurer(Measurer):
    """A measurer that also looks at buckets that are not frozen for good. See `Measurer`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._open: dict[tuple[str, datetime], SoFar] = {}

    def measure(
        self, monitor: str, config: MonitorConfig, bucket: Bucket, reference: Reference, key: str
    ) -> Measured:
        """See `Measurer`; what was known of the bucket while it was open is let go."""
        if self._open.pop((monitor, bucket.start), None) is not None:
            open_path(bucket_path(self._state, monitor, bucket)).unlink(missing_ok=True)
        return super().measure(monitor, config, bucket, reference, key)

    def look(
        self,
        monitor: str,
        config: MonitorConfig,
        open_: Sequence[Bucket],
        reference: Reference,
        key: str,
    ) -> OpenWindow:
        """Measure the window that ends with the last of `open_`, with the rows there are so far.

        A bucket whose rows have not changed since the last look is not read again.

        Args:
            monitor: Which.
            config: Of the monitor.
            open_: Buckets that have ended and still take late rows, in order, at least one.
            reference: What is compared with.
            key: Of the reference.

        Raises:
            SourceError: What is watched cannot be read.
        """
        self._renew()
        source, end = self._source_of(monitor, config), open_[-1].end
        start = end - config.window
        found = [self._so_far(monitor, source, bucket, reference, key) for bucket in open_]
        snapshots = [one.snapshot for one in found]
        before = self._kept(monitor, start, open_[0].start)
        whole = total((one.profile for one in found), reference.edges)
        if before:
            last = before[-1]
            counted = self._counted(monitor, last, key, reference)
            whole += self._window(
                monitor, config, before[:-1], counted, last.bucket, key, reference
            )
        window = Window(start, end, whole.rows)
        first = before[0].bucket.start if before else open_[0].start
        live, estimated, split = self._model(
            monitor, config, window, [*before, *snapshots], reference, key, whole
        )
        verdicts = detect(
            reference, whole, window, config, bucket=(open_[-1].start, found[-1].profile)
        )
        evaluation = Evaluation(
            monitor=monitor,
            window=window,
            reference_window=reference.window,
            verdicts=withheld(verdicts, window, first, lost(before, key)),
            figures=tuple(figures(whole)),
            freshness=tuple(freshness(self._con, snapshots[-1])),
            performance=live,
            expected=reference.performance,
            estimated=estimated,
            segments=split,
            contract=reference.contract,
            model_version=reference.model_version,
        )
        return OpenWindow(evaluation, whole, end + config.lateness)

    def _so_far(
        self, monitor: str, source: Source, bucket: Bucket, reference: Reference, key: str
    ) -> SoFar:
        """Return the rows so far of an open bucket, frozen again only when they have changed."""
        stamp = (key, source.parts(bucket.start, bucket.end))
        known = self._open.get((monitor, bucket.start))
        if known is None or known.stamp != stamp:
            path = open_path(bucket_path(self._state, monitor, bucket))
            types = types_of(reference)
            snapshot = frozen(self._con, source, bucket, path, types=types, again=True)
            counted = profile(rows_of(snapshot, reference), reference.edges)
            known = SoFar(stamp, snapshot, counted)
            self._open[monitor, bucket.start] = known
        return known

    def _segments(
        self,
        monitor: str,
        config: MonitorConfig,
        buckets: Sequence[FrozenBucket | Snapshot],
        key: str,
        reference: Reference,
    ) -> dict[Key, Profile]:
        """See `Measurer`; what is open is counted each time, for it changes."""
        frozen = [one for one in buckets if one.path.suffix != OPEN]
        found = super()._segments(monitor, config, frozen, key, reference) if frozen else {}
        for one in buckets:
            if one.path.suffix == OPEN and one.rows:
                rows = rows_of(read_snapshot(self._con, one.bucket, one.path), reference)
                for part, counted in segments.profiles(rows, reference).items():
                    found[part] = found[part] + counted if part in found else counted
        return found


class OpenWindows:
    """The last look at each monitor's newest window, where late rows still count.

    Args:
        measurer: Measures them.
        source_of: Gives what a monitor watches.
    """

    def __init__(
        self, measurer: OpenMeasurer, source_of: Callable[[str, MonitorConfig], Source]
    ) -> None:
        self._measurer, self._source_of = measurer, source_of
        self._held: dict[str, tuple[object, OpenWindow]] = {}

    def look(
        self, monitor: str, config: MonitorConfig, held: Position, ended: Sequence[Bucket]
    ) -> None:
        """Measure the newest window that has ended, unless it is as it was.

        Args:
            monitor: Which.
            config: Of the monitor.
            held: What it goes on from.
            ended: Buckets that have ended and are not frozen for good, in order.

        Raises:
            SourceError: What is watched cannot be read.
        """
        if not ended or held.reference is None:
            self._held.pop(monitor, None)
            return
        open_ = [one for one in ended if one.start >= ended[-1].end - config.window]
        parts = self._source_of(monitor, config).parts(open_[0].start, open_[-1].end)
        seen = (held.watermark, held.reference_key, config, open_, parts)
        known = self._held.get(monitor)
        if known is None or known[0] != seen:
            key = held.reference_key
            found = self._measurer.look(monitor, config, open_, held.reference, key)
            self._held[monitor] = (seen, found)

    def shown(self, state: MonitorState, held: Position) -> MonitorState:
        """Return `state` with what is known of a later window than it has, if anything is."""
        known, reference = self._held.get(state.name), held.reference
        if known is None or reference is None:
            return state
        look = known[1]
        found = look.evaluation
        newer = state.window is None or found.window.end > state.window.end
        if not newer or found.reference_window != reference.window:
            return state
        # All features together are looked at when a bucket is frozen.
        together = [one for one in state.verdicts if one.source == SOURCE]
        return replace(
            state,
            window=found.window,
            verdicts=tuple(sorted((*found.verdicts, *together), key=lambda one: -one.ratio)),
            figures=found.figures,
            freshness=found.freshness,
            performance=found.performance or state.performance,
            estimated=found.estimated,
            segments=found.segments,
            distributions=tuple(distributions(reference.profile, look.whole)),
            superseded=False,
            open_until=look.until,
        )
