"""How far each feature is from the reference, and whether that is far.

Above `monitor.calibrate`: distances from `monitor.statistics`, limits from the reference. Pure.
What cannot be compared is `insufficient_data` with a reason; no data is never zero drift, and
one broken feature does not stop the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from monitor.calibrate import compare
from monitor.statistics import statistic

if TYPE_CHECKING:
    from monitor.calibrate import Reference
    from monitor.config import MonitorConfig
    from monitor.profile import Profile, Window

SOURCE = "served"


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
        source: What was watched: "served".
        feature: Name of the feature.
        statistic: Name of the statistic that was used.
        value: In the statistic's unit; None where nothing could be measured.
        threshold: In the same unit, above 0; None where nothing could be calibrated.
        level: The outcome.
        reason: One line for a person: why there is no value, or what moved most.
        window: The current window.
    """

    source: str
    feature: str
    statistic: str
    value: float | None
    threshold: float | None
    level: Level
    reason: str
    window: Window

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
    raise NotImplementedError
