"""How far each feature is from its like in the reference, and whether that is far.

Above `monitor.drift.reference`: distances from `monitor.drift.distances`, limits from the
reference. Pure. What cannot be compared is `insufficient_data` with a reason; no data is never zero
drift, and one broken feature does not stop the others.

Each bucket is compared with what the reference's buckets of its kind look like, by the distance
that is configured and by single shares (`monitor.drift.shares`). Its verdict is the distance,
unless a share is farther beyond its own limit. A bucket with too few rows is judged with those of
its window.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from steadfeast.monitor.drift.calibration import FEWEST_BUCKETS
from steadfeast.monitor.drift.distances import EmptyWindowError, statistic
from steadfeast.monitor.drift.persistence import DECISIVE, LADDER
from steadfeast.monitor.drift.reasons import reason, share_reason
from steadfeast.monitor.drift.reference import PREDICTION
from steadfeast.monitor.drift.shares import SHARES, extended
from steadfeast.monitor.drift.thresholds import SHIFT, SHIFTS, distance, suited
from steadfeast.monitor.profiles import ORDERED, ColumnKind, Window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy.typing as npt

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.drift.thresholds import Straying, Threshold
    from steadfeast.monitor.profiles import ColumnProfile, Profile

    Floats = npt.NDArray[np.float64]

PREDICTIONS = "predictions"
_LEADS = 0.5
"""Share of its limit from which a shift says to which side all of a feature has moved."""

_NEAR = 0.8
"""Of a limit: where a share may speak for the feature."""
_UNLIKE = 0.9
"""Limit in sd of a bucket of a kind that the reference has none of."""


class Level(StrEnum):
    """Outcome of one comparison."""

    OK = "ok"
    DRIFT = "drift"
    INSUFFICIENT_DATA = "insufficient_data"
    INCIDENT = "incident"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One feature in one window.

    Attributes:
        source: What was watched: "served", or "predictions" for what the model said; "view" or
            "table" for what is no served log.
        feature: Name of the feature.
        statistic: Name of the statistic that was used, or of a share in `monitor.drift.shares`.
        value: In the statistic's unit, or the change of a share; None where nothing could be
            measured.
        threshold: In the same unit, above 0; None where nothing could be calibrated.
        level: The outcome.
        reason: One line for a person: why there is no value, or what moved most.
        window: The bucket that was judged; the window, where a bucket has too few rows.
        impact: See `Reference.impact`; None when the model's importances are not known.
        side: 1 for more than usual, -1 for less.
        decisive: Value from which a single bucket is an alarm; None for the usual multiple of the
            threshold.
        times: Distance over limit in standard deviations, which add up where a statistic's unit
            does not; None where value over threshold says it.
    """

    source: str
    feature: str
    statistic: str
    value: float | None
    threshold: float | None
    level: Level
    reason: str
    window: Window
    impact: float | None = None
    side: int = 1
    decisive: float | None = None
    times: float | None = None

    @property
    def evidence(self) -> float | None:
        """Signed ratio, as `drift.persistence` takes it; None where nothing could be judged.

        It is beyond `persistence.DECISIVE` exactly where `value` is decisive.
        """
        if self.level is Level.INSUFFICIENT_DATA or self.value is None:
            return None
        if self.decisive is None:
            return self.side * self.ratio
        if self.value > self.decisive:
            return self.side * max(self.ratio, 1.001 * DECISIVE)
        return self.side * min(self.ratio, DECISIVE)

    @property
    def ratio(self) -> float:
        """How far over how far it may be; above 1 is drift, 0 where nothing could be judged."""
        if self.times is not None:
            return self.times
        return 0.0 if self.value is None or self.threshold is None else self.value / self.threshold


def detect(
    reference: Reference | None,
    current: Profile,
    window: Window,
    config: MonitorConfig,
    *,
    bucket: tuple[datetime, Profile] | None = None,
) -> list[Verdict]:
    """Compare what is newest with the reference, feature by feature; worst ratio first.

    Args:
        reference: Without one every feature that is configured by name is `insufficient_data`.
        current: The window, over the reference's edges.
        window: Its bounds.
        config: The monitor.
        bucket: Start and profile of the window's last bucket, which is judged by itself where it
            has `min_rows` rows with a value; without it the window is, by all of the reference.
    """
    if reference is None:
        return [
            _unknown(config.kind, name, config.statistic, "there is no reference yet", window)
            for name in config.features
        ]
    spans = [_Span(current, window, ())]
    if bucket is not None:
        start, last = bucket
        many = (window.end - window.start) // config.bucket
        starts = tuple(window.start + i * config.bucket for i in range(many))
        spans = [
            _Span(last, Window(start, window.end, last.rows), (start,)),
            _Span(current, window, starts),
        ]
    found = (_judged(reference, spans, name, config) for name in reference.features)
    # Ties, such as everything that has no value, in the order of names.
    return sorted(found, key=lambda one: (-one.ratio, one.feature))


def distances_alone(
    reference: Reference, current: Profile, window: Window, config: MonitorConfig
) -> list[Verdict]:
    """Return how far each feature is from the reference, without a limit; farthest first.

    For a reference that cannot be calibrated: every level is `insufficient_data`.
    """
    found = []
    for name in reference.features:
        edges, old = reference.edges.columns[name], reference.profile.columns[name]
        new, chosen = current.columns.get(name), suited(config.statistic, edges)
        why = _incomparable(edges.kind, old, new, current.rows, config.min_rows)
        one = _unknown(config.kind, name, chosen.name, why or "", window)
        if why is None and new is not None:
            shares, rows = reference.usual(name, (), config)
            bounds = [
                at for side in (old, new) for at in (side.minimum, side.maximum) if at is not None
            ]
            positions = edges.positions(min(bounds, default=None), max(bounds, default=None))
            value = distance(chosen, edges, shares[:-1] * rows, new.counts, positions)
            one = replace(one, value=value, reason=reason(edges, old, new, None, shares))
        found.append(one)
    return sorted(found, key=lambda one: (one.value is None, -(one.value or 0.0), one.feature))


@dataclass(frozen=True, slots=True)
class _Span:
    """What is compared with the reference.

    Attributes:
        profile: Of its rows.
        window: Its bounds.
        starts: Of its buckets, which say what is expected; without any, all of the reference is.
    """

    profile: Profile
    window: Window
    starts: tuple[datetime, ...]


def _judged(
    reference: Reference, spans: Sequence[_Span], name: str, config: MonitorConfig
) -> Verdict:
    """Return the verdict on one feature."""
    edges, old = reference.edges.columns[name], reference.profile.columns[name]
    source = PREDICTIONS if name == PREDICTION and config.service else config.kind
    span = next((one for one in spans if _usable(one, name) >= config.min_rows), spans[-1])
    threshold = reference.thresholds.get(name)
    if threshold is not None and threshold.whole_window:
        span = spans[-1]
    if spans[0].profile.rows and not _usable(spans[0], name):
        span = spans[0]  # nothing new is known of it
    new = span.profile.columns.get(name)
    chosen = suited(config.statistic, edges)
    why = _incomparable(edges.kind, old, new, span.profile.rows, config.min_rows)
    if why is None and threshold is None:
        why = f"the reference is too short to calibrate: it needs {FEWEST_BUCKETS} buckets"
    if why is None and new is not None and threshold is not None:
        try:
            return _compared(reference, span, name, threshold, config)
        except EmptyWindowError as error:
            why = str(error)
    return _unknown(source, name, chosen.name, why or "", span.window)


def _usable(span: _Span, name: str) -> int:
    column = span.profile.columns.get(name)
    return 0 if column is None else column.usable


def _unknown(source: str, name: str, what: str, why: str, window: Window) -> Verdict:
    return Verdict(source, name, what, None, None, Level.INSUFFICIENT_DATA, why, window)


def _compared(
    reference: Reference, span: _Span, name: str, threshold: Threshold, config: MonitorConfig
) -> Verdict:
    """Return the verdict of the measure that is farthest beyond its limit; else of the distance."""
    edges, old = reference.edges.columns[name], reference.profile.columns[name]
    new = span.profile.columns[name]
    expected, likes = reference.usual(name, span.starts, config)
    chosen = statistic(threshold.statistic)
    bounds = [one for side in (old, new) for one in (side.minimum, side.maximum) if one is not None]
    positions = edges.positions(min(bounds, default=None), max(bounds, default=None))
    value = distance(chosen, edges, expected[:-1] * likes, new.counts, positions)
    effect, limit = threshold.effect(value), threshold.limit(new.usable, likes)
    unlike = reference.unlike(span.starts[0], config) if len(span.starts) == 1 else ""
    coarse = bool(unlike) or threshold.whole_window
    change = None if coarse else threshold.shares.worst(expected, likes, extended(new))
    if unlike:
        limit = max(limit, _UNLIKE)
    single = threshold.decisive(limit, threshold.by_distance)
    moved = _moved(threshold, expected, new.counts)
    verdict = Verdict(
        source=PREDICTIONS if name == PREDICTION and config.service else config.kind,
        feature=name,
        statistic=chosen.name,
        value=value,
        threshold=threshold.value(limit),
        level=Level.DRIFT if effect > limit else Level.OK,
        reason=reason(edges, old, new, change, expected)
        + _history(threshold, threshold.by_distance, effect, limit, unlike, config),
        window=span.window,
        impact=reference.impact(name, value),
        side=1 if moved >= 0 else -1,
        decisive=threshold.value(single) if single < SHIFTS[-1] else sys.float_info.max,
        times=effect / limit,
    )
    candidates, least = [verdict], 0.0
    if threshold.by_shift is not None:
        least = threshold.shift_limit(threshold.by_shift, new.usable, likes)
        least = max(least, _UNLIKE) if unlike else least
        candidates.append(
            replace(
                verdict,
                statistic=SHIFT,
                value=abs(moved),
                threshold=least,
                level=Level.DRIFT if abs(moved) > least else Level.OK,
                reason=reason(edges, old, new, None, expected)
                + _history(threshold, threshold.by_shift, abs(moved), least, unlike, config),
                decisive=threshold.decisive(least, threshold.by_shift),
                times=abs(moved) / least,
            )
        )
    if change is not None and change.ratio > _NEAR:
        # More rows in the low tail of what moved down is the same news, not the other side.
        leads = threshold.by_shift is not None and abs(moved) > _LEADS * least
        unseen = change.first == edges.bins - 1 and edges.kind not in ORDERED
        candidates.append(
            replace(
                verdict,
                statistic=change.name,
                value=change.change,
                threshold=change.allowed,
                level=Level.DRIFT if change.ratio > 1 else Level.OK,
                reason=share_reason(edges, old, new, change, expected),
                side=verdict.side if leads else change.side,
                decisive=threshold.decisive_change(change, single, unseen=unseen),
                times=None,
            )
        )
    return max(candidates, key=_weight)


def _weight(verdict: Verdict) -> tuple[int, bool, float]:
    """Order the measures of a feature: by rung of the ladder, the configured distance first.

    Among those within their limits the nearest to it comes first, and a share only if it is near.
    """
    far = abs(verdict.evidence or 0.0)
    rung = sum(far > times for _, _, times in LADDER)
    first = verdict.statistic not in {SHIFT, *SHARES}
    return rung, first and (rung > 0 or far > _NEAR), far if rung or far > _NEAR else float(first)


def _moved(threshold: Threshold, expected: Floats, counts: npt.NDArray[Any]) -> float:
    """Return how far a bucket's rows lie from where they are expected, in sd; 0 without order."""
    if not threshold.scores:
        return 0.0
    return float((counts / counts.sum() - expected[:-1]) @ np.array(threshold.scores))


def _history(
    threshold: Threshold,
    straying: Straying,
    effect: float,
    limit: float,
    unlike: str,
    config: MonitorConfig,
) -> str:
    """Say how far that is, and how far the reference's own buckets went."""
    if unlike:
        return f"; {effect:.2g} sd off ordinary days: the reference has no {unlike}"
    what = "days" if config.bucket == timedelta(days=1) else "buckets"
    return (
        f"; {effect:.2g} sd off its like, in {threshold.buckets} {what} never more than "
        f"{straying.farthest:.2g}, limit {limit:.2g}"
    )


def _incomparable(  # noqa: PLR0911 - one return per reason
    kind: ColumnKind, old: ColumnProfile, new: ColumnProfile | None, rows: int, min_rows: int
) -> str | None:
    """Say why nothing can be measured; None if it can."""
    if kind is ColumnKind.OPAQUE:
        return "columns of this type are counted; what is computed of them is compared"
    if not old.usable:
        return "the reference holds no values"
    if not rows:
        return "the window has no rows"
    if new is None or not new.rows:
        return "the window has no such column"
    if new.mistyped:
        return f"{new.mistyped} of {new.rows} rows have a type that cannot be read as {kind}"
    if not new.usable:
        return f"all {new.rows} rows are null or NaN"
    if new.usable < min_rows:
        return f"{new.usable} rows with a value; min_rows is {min_rows}"
    return None
