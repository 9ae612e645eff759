"""A window whose last buckets have ended and still take late rows: how it stands so far.

Above `window`, whose one measurement of each frozen bucket is what decisions are made on. Here
the newest window is measured early and again whenever rows come, and shown; nothing of it is
kept, so that there is nothing to take back. docs/adr/0013-late-rows.md says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from steadfeast.monitor.drift.multivariate.detector import SOURCE
from steadfeast.monitor.profiles import distributions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.decisions import Evaluation
    from steadfeast.monitor.drift import Reference
    from steadfeast.monitor.evaluation.window import Counted, Measurer
    from steadfeast.monitor.ledger import MonitorState, Position
    from steadfeast.monitor.profiles import Profile
    from steadfeast.monitor.sources import Bucket, Source


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
    counted: Counted


class OpenWindows:
    """The last look at each monitor's newest window, where late rows still count.

    Args:
        measurer: Measures them; shared with whoever has the closed buckets measured.
        source_of: Gives what a monitor watches.
    """

    def __init__(
        self, measurer: Measurer, source_of: Callable[[str, MonitorConfig], Source]
    ) -> None:
        self._measurer, self._source_of = measurer, source_of
        self._held: dict[str, tuple[object, OpenWindow]] = {}
        self._open: dict[tuple[str, datetime], SoFar] = {}

    def close_bucket(self, monitor: str, bucket: Bucket) -> None:
        """Let go of what was known of a bucket while it was open: it is frozen for good now."""
        known = self._open.pop((monitor, bucket.start), None)
        if known is not None:
            known.counted.snapshot.path.unlink(missing_ok=True)

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
            reference, key = held.reference, held.reference_key
            counted = [self._so_far(monitor, config, one, reference, key) for one in open_]
            evaluation, whole = self._measurer.measure_open(
                monitor, config, counted, reference, key
            )
            until = open_[-1].end + config.lateness
            self._held[monitor] = (seen, OpenWindow(evaluation, whole, until))

    def _so_far(
        self, monitor: str, config: MonitorConfig, bucket: Bucket, reference: Reference, key: str
    ) -> Counted:
        """Return the rows so far of an open bucket, frozen again only when they have changed."""
        parts = self._source_of(monitor, config).parts(bucket.start, bucket.end)
        stamp, known = (key, parts), self._open.get((monitor, bucket.start))
        if known is None or known.stamp != stamp:
            counted = self._measurer.count(monitor, config, bucket, reference, still_open=True)
            known = self._open[monitor, bucket.start] = SoFar(stamp, counted)
        return known.counted

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
