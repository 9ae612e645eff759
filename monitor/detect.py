"""How far each feature is from the reference, and whether that is far.

Above `monitor.calibrate`: distances from `monitor.statistics`, limits from the reference. Pure.
What cannot be compared is `insufficient_data` with a reason; no data is never zero drift, and
one broken feature does not stop the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from monitor.bins import ORDERED, Kind
from monitor.calibrate import PREDICTION
from monitor.limits import compare, suited
from monitor.statistics import EmptyWindowError, statistic

if TYPE_CHECKING:
    from monitor.bins import ColumnEdges
    from monitor.calibrate import Reference
    from monitor.config import MonitorConfig
    from monitor.profile import ColumnProfile, Profile, Window

SOURCE = "served"
PREDICTIONS = "predictions"


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
        source: What was watched: "served", or "predictions" for what the model said.
        feature: Name of the feature.
        statistic: Name of the statistic that was used.
        value: In the statistic's unit; None where nothing could be measured.
        threshold: In the same unit, above 0; None where nothing could be calibrated.
        level: The outcome.
        reason: One line for a person: why there is no value, or what moved most.
        window: The current window.
        impact: See `Reference.impact`; None when the model's importances are not known.
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

    @property
    def ratio(self) -> float:
        """Value over threshold; 0 where either is missing."""
        return 0.0 if self.value is None or self.threshold is None else self.value / self.threshold


def detect(
    reference: Reference | None, current: Profile, window: Window, config: MonitorConfig
) -> list[Verdict]:
    """Compare `current` with the reference, feature by feature; worst ratio first.

    `current` is over the reference's edges. Without a reference every feature that is
    configured by name is `insufficient_data`.
    """
    if reference is None:
        blank = (
            Verdict(
                SOURCE, name, config.statistic, None, None, Level.INSUFFICIENT_DATA, why, window
            )
            for why in ["there is no reference yet"]
            for name in config.features
        )
        return list(blank)
    verdicts = [_verdict(reference, current, name, window, config) for name in reference.features]
    # Ties, such as everything that has no value, in the order of names.
    return sorted(verdicts, key=lambda one: (-one.ratio, one.feature))


def _verdict(
    reference: Reference, current: Profile, name: str, window: Window, config: MonitorConfig
) -> Verdict:
    edges, old = reference.edges.columns[name], reference.profile.columns[name]
    new = current.columns.get(name)
    source = PREDICTIONS if name == PREDICTION else SOURCE
    chosen = suited(statistic(config.statistic), edges)
    limit = None if new is None else reference.limit(name, new.usable)
    why = _incomparable(edges.kind, old, new, current.rows, config.min_rows)
    if why is None and limit is None:
        why = "the reference is too short to calibrate: it needs three windows or buckets"
    if why is None and new is not None and limit is not None:
        try:
            value = compare(chosen, edges, old, new)
        except EmptyWindowError as error:
            why = str(error)
        else:
            level = Level.DRIFT if value > limit else Level.OK
            reason = _explained(edges, old, new)
            impact = reference.impact(name, value)
            return Verdict(source, name, chosen.name, value, limit, level, reason, window, impact)
    return Verdict(
        source, name, chosen.name, None, limit, Level.INSUFFICIENT_DATA, why or "", window
    )


def _incomparable(  # noqa: PLR0911 - one return per reason
    kind: Kind, old: ColumnProfile, new: ColumnProfile | None, rows: int, min_rows: int
) -> str | None:
    """Say why nothing can be measured; None if it can."""
    if kind is Kind.OPAQUE:
        return "columns of this type are counted, not compared"
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
    if edges.kind in ORDERED and old.sd is not None and new.sd is not None:
        what = {Kind.TEXT: "mean length", Kind.TIMESTAMP: "mean time"}.get(edges.kind, "mean")
        return f"{what} {new.mean:.4g}, was {old.mean:.4g} (sd {new.sd:.3g}, was {old.sd:.3g})"
    shares = new.counts / new.usable, old.counts / old.usable
    most = int(np.argmax(np.abs(shares[0] - shares[1])))
    name = repr(edges.categories[most]) if most < len(edges.categories) else "other values"
    return f"share of {name} {shares[0][most]:.3f}, was {shares[1][most]:.3f}"
