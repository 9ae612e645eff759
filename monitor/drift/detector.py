"""How far each feature is from the reference, and whether that is far.

Above `monitor.drift.reference`: distances from `monitor.drift.distances`, limits from the
reference. Pure. What cannot be compared is `insufficient_data` with a reason; no data is never zero
drift, and one broken feature does not stop the others.

A feature is looked at several times: by the distance that is configured and by the looks of
`monitor.drift.shares`, over the whole window and over its last part. Its verdict is the distance
over the window, unless that is within its limit and another look is over its own, or near it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from steadfeast.monitor.drift.distances import EmptyWindowError, statistic
from steadfeast.monitor.drift.persistence import DECISIVE
from steadfeast.monitor.drift.reference import PREDICTION
from steadfeast.monitor.drift.shares import EMPTY, HIGH_TAIL, LOW_TAIL, extended
from steadfeast.monitor.drift.thresholds import compare, mixed, suited, weekday
from steadfeast.monitor.profiles.binning import ORDERED, Kind
from steadfeast.monitor.profiles.distribution import stretch
from steadfeast.monitor.profiles.profile import Window, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import numpy.typing as npt

    from steadfeast.monitor.config.schema import MonitorConfig
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.drift.shares import Look
    from steadfeast.monitor.drift.thresholds import Calibration
    from steadfeast.monitor.profiles.binning import ColumnEdges
    from steadfeast.monitor.profiles.profile import ColumnProfile, Profile

PREDICTIONS = "predictions"
_NEAR = 0.8
"""Of a limit: where an episode does not close yet, and another look may speak for the feature."""


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
        statistic: Name of the statistic that was used, or of the look of `monitor.drift.shares`.
        value: In the statistic's unit, or the change of a share; None where nothing could be
            measured.
        threshold: In the same unit, above 0; None where nothing could be calibrated.
        level: The outcome.
        reason: One line for a person: why there is no value, or what moved most.
        window: The current window, or its last part where that decided.
        impact: See `Reference.impact`; None when the model's importances are not known.
        side: 1 for more than usual, -1 for less.
        decisive: Value from which a single bucket is an alarm; None for the usual multiple of the
            threshold.
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
        """Value over threshold; 0 where either is missing."""
        return 0.0 if self.value is None or self.threshold is None else self.value / self.threshold


def detect(
    reference: Reference | None,
    current: Profile,
    window: Window,
    config: MonitorConfig,
    *,
    latest: Sequence[tuple[datetime, Profile]] = (),
) -> list[Verdict]:
    """Compare `current` with the reference, feature by feature; worst ratio first.

    Args:
        reference: Without one every feature that is configured by name is `insufficient_data`.
        current: The window, over the reference's edges.
        window: Its bounds.
        config: The monitor.
        latest: Start and profile of the window's last buckets, `limits.latest_length` long, by
            time; without them only the whole window is judged.
    """
    if reference is None:
        blank = (
            Verdict(
                config.kind,
                name,
                config.statistic,
                None,
                None,
                Level.INSUFFICIENT_DATA,
                why,
                window,
            )
            for why in ["there is no reference yet"]
            for name in config.features
        )
        return list(blank)
    whole = _Span(current, window, "", reference.calibration)
    spans = [whole, *_last(reference, window, latest)]
    found = [_judged(reference, spans, name, config) for name in reference.features]
    # Ties, such as everything that has no value, in the order of names.
    return sorted(_with_evidence(found), key=lambda one: (-one.ratio, one.feature))


@dataclass(frozen=True, slots=True)
class _Span:
    """What is compared with the reference: a window, or its last part.

    Attributes:
        profile: Of its rows.
        window: Its bounds.
        words: What it is, after what moved in it.
        limits: By feature.
        weekdays: Rows by day of the week, shape (7,); None to compare with all of the reference.
    """

    profile: Profile
    window: Window
    words: str
    limits: Mapping[str, Calibration]
    weekdays: npt.NDArray[np.int64] | None = None


def _last(
    reference: Reference, window: Window, latest: Sequence[tuple[datetime, Profile]]
) -> Iterator[_Span]:
    """Return the last part of a window, if there is one that can be judged."""
    if not latest or not reference.latest:
        return
    whole = total((one for _, one in latest), reference.edges)
    start = latest[0][0]
    length = window.end - start
    words = " in the last day" if length == timedelta(days=1) else f" in the last {length}"
    rows = None
    if reference.weekdays:
        rows = np.zeros(7, np.int64)
        for at, one in latest:
            rows[weekday(at)] += one.rows
    yield _Span(whole, Window(start, window.end, whole.rows), words, reference.latest, rows)


def _judged(
    reference: Reference, spans: Sequence[_Span], name: str, config: MonitorConfig
) -> tuple[Verdict, float]:
    """Return the verdict on one feature, and how surprising its distances are, 0 to 1."""
    edges, old = reference.edges.columns[name], reference.profile.columns[name]
    source = PREDICTIONS if name == PREDICTION and config.service else config.kind
    chosen = suited(statistic(config.statistic), edges)
    whole = spans[0]
    new = whole.profile.columns.get(name)
    limit = None if new is None else reference.limit(name, new.usable)
    why = _incomparable(edges.kind, old, new, whole.profile.rows, config.min_rows)
    if why is None and limit is None:
        why = "the reference is too short to calibrate: it needs three windows or buckets"
    verdicts: list[Verdict] = []
    surprise, impact = 1.0, None
    try:
        for span in spans if why is None else ():
            column = span.profile.columns[name]
            if span is not whole and (column.usable < config.min_rows or name not in span.limits):
                continue
            expected: npt.NDArray[Any] = extended(old)
            by_weekday = None if span.weekdays is None else reference.by_weekday(name)
            if by_weekday is not None and span.weekdays is not None:
                expected = mixed(by_weekday, span.weekdays)
            limits = span.limits[name]
            value = compare(chosen, edges, old, column, expected[:-1])
            if span is whole:
                impact = reference.impact(name, value)
            surprise = min(surprise, len(spans) * limits.surprise(value))
            reason = _explained(edges, old, column) + span.words
            figures = [(chosen.name, value, limits.limit(column.usable), reason)]
            look = limits.looks.worst(expected, extended(column))
            if look is not None:
                figures.append((look.name, look.change, look.allowed, _seen(edges, look, span)))
            verdicts += [
                Verdict(
                    source,
                    name,
                    what,
                    value,
                    limit,
                    Level.DRIFT if value > limit else Level.OK,
                    reason,
                    span.window,
                    impact,
                )
                for what, value, limit, reason in figures
            ]
    except EmptyWindowError as error:
        why = str(error)
    if why is not None:
        level, at = Level.INSUFFICIENT_DATA, whole.window
        return Verdict(source, name, chosen.name, None, limit, level, why, at), 1.0
    first, worst = verdicts[0], max(verdicts, key=lambda one: one.ratio)
    speaks = first.ratio <= 1 and worst.ratio >= max(_NEAR, first.ratio)
    return (worst if speaks else first), surprise


def _with_evidence(found: Sequence[tuple[Verdict, float]]) -> Iterator[Verdict]:
    """Add to each verdict of drift its q-value among the features.

    Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57:289. Evidence only: limits decide.
    """
    surprises = np.array([surprise for _, surprise in found])
    order = np.argsort(surprises)
    many = len(found)
    rising = surprises[order] * many / np.arange(1, many + 1)
    q = np.empty(many)
    q[order] = np.minimum.accumulate(rising[::-1])[::-1]
    for (verdict, _), one in zip(found, q, strict=True):
        shown = "below 1e-6" if one < 1e-6 else f"{min(one, 1.0):.2g}"  # noqa: PLR2004 - as said
        drifted = verdict.level is Level.DRIFT
        yield replace(verdict, reason=f"{verdict.reason}; q {shown}") if drifted else verdict


def _incomparable(  # noqa: PLR0911 - one return per reason
    kind: Kind, old: ColumnProfile, new: ColumnProfile | None, rows: int, min_rows: int
) -> str | None:
    """Say why nothing can be measured; None if it can."""
    if kind is Kind.OPAQUE:
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


def _explained(edges: ColumnEdges, old: ColumnProfile, new: ColumnProfile) -> str:
    """Say in one line what moved: the mean, or the category whose share moved most."""
    if edges.personal:
        return "its values are personal and not shown"
    if edges.kind in ORDERED and old.sd is not None and new.sd is not None:
        what = {Kind.TEXT: "mean length", Kind.TIMESTAMP: "mean time"}.get(edges.kind, "mean")
        return f"{what} {new.mean:.4g}, was {old.mean:.4g} (sd {new.sd:.3g}, was {old.sd:.3g})"
    shares = new.counts / new.usable, old.counts / old.usable
    most = int(np.argmax(np.abs(shares[0] - shares[1])))
    name = repr(edges.categories[most]) if most < len(edges.categories) else "other values"
    return f"share of {name} {shares[0][most]:.3f}, was {shares[1][most]:.3f}"


def _seen(edges: ColumnEdges, look: Look, span: _Span) -> str:
    """Say in one line which share changed, and how."""
    if look.name == EMPTY:
        return f"nulls {_percent(look.was)} -> {_percent(look.share)}{span.words}"
    if edges.kind in ORDERED:
        where = {LOW_TAIL: "low tail", HIGH_TAIL: "high tail"}.get(look.name, "one cell")
        if not edges.personal:
            where += f" ({stretch(edges, look.first, look.stop)})"
    elif look.first < len(edges.categories):
        where = "one category" if edges.personal else repr(edges.categories[look.first])
    else:
        where = "categories that the reference lacks"
    return f"{_percent(look.share)} of rows in {where}{span.words}, was {_percent(look.was)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"  # noqa: PLR2004
