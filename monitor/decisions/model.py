"""The words that decisions are made of: episodes, triggers, alerts, and what a monitor remembers.

Above the measuring modules; `policy` decides with them. Frozen values, no behaviour beyond what
follows from their own fields. Every time is event time: the end of a window.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.drift.data_quality import INFORMATIVE
from steadfeast.monitor.drift.detector import Level

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from steadfeast.monitor.drift.data_quality import Figures, Freshness, Incident
    from steadfeast.monitor.drift.detector import Verdict
    from steadfeast.monitor.drift.segments import Segment
    from steadfeast.monitor.performance.realized import Performance
    from steadfeast.monitor.profiles.profile import Window
    from steadfeast.monitor.sources.quarantine import Quarantined


class Kind(StrEnum):
    """What an episode is of; the names of the protocol's `CauseKind`, lower case."""

    DRIFT = "drift"
    PERFORMANCE = "performance"
    SCHEDULE = "schedule"
    ALERT = "alert"


OUTSIDE = frozenset({Kind.SCHEDULE, Kind.ALERT})
"""Kinds that are not seen in the data: somebody or something else has asked."""


class Outcome(StrEnum):
    """What was decided about an episode's one trigger."""

    FIRED = "fired"
    WAITING = "waiting"
    BLOCKED = "blocked"
    RUNNING = "running"
    COOLDOWN = "cooldown"
    BUDGET = "budget"
    REJECTED = "rejected"
    EXPIRED = "expired"


FINAL = frozenset({Outcome.FIRED, Outcome.REJECTED, Outcome.EXPIRED})
"""Outcomes after which an episode decides nothing any more."""


class TriggerState(StrEnum):
    """Where a trigger stands; the names of the protocol's `TriggerState`, lower case."""

    WAITING = "waiting"
    PENDING = "pending"
    DELIVERED = "delivered"
    SUPPRESSED = "suppressed"
    DEAD = "dead"


class AlertKind(StrEnum):
    """What an alert is about; the names of the protocol's `AlertKind`, lower case."""

    EPISODE = "episode"
    TRIGGER = "trigger"
    RUN = "run"
    DATA_INCIDENT = "data_incident"


class Severity(StrEnum):
    """How urgent an alert is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class NotDecidableError(UserError):
    """A person decided a trigger that does not wait, or that may not fire now.

    Attributes:
        request_id: The trigger.
        reason: Why not.
    """

    def __init__(self, request_id: str, reason: str) -> None:
        self.request_id, self.reason = request_id, reason
        super().__init__(f"trigger {request_id}: {reason}")


@dataclass(frozen=True, slots=True)
class ModelHistory:
    """What concerns a model beyond the one monitor that is evaluated.

    Attributes:
        fired: Event times at which triggers for the model fired, from all of its monitors.
        running: Request id of a trigger for the model that is not yet answered, or whose run is
            under way; empty if there is none.
        blocked: Why another monitor of the model blocks its retraining; empty if none does.
    """

    fired: tuple[datetime, ...] = ()
    running: str = ""
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured about one window of one monitor.

    Attributes:
        incidents: Found in the window's last bucket.
        performance: Of the live model in the window; none without enough labels.
        expected: Metrics that the live model had on its hold-out, by name.
        estimated: Metrics that the live model is thought to have in the window, by name.
        segments: The window in parts.
        quarantined: What could not be read of the window's last bucket.
    """

    monitor: str
    window: Window
    reference_window: Window
    verdicts: tuple[Verdict, ...]
    incidents: tuple[Incident, ...] = ()
    figures: tuple[Figures, ...] = ()
    freshness: tuple[Freshness, ...] = ()
    performance: Performance | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    estimated: Mapping[str, float] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    contract: str = ""
    model_version: str = ""
    quarantined: tuple[Quarantined, ...] = ()
    history: ModelHistory = ModelHistory()

    @property
    def judged(self) -> int:
        """How many features could be judged, drifted or not."""
        return sum(one.level in {Level.OK, Level.DRIFT} for one in self.verdicts)

    @property
    def withheld(self) -> str:
        """Why no feature could be judged; empty where one was."""
        if self.judged:
            return ""
        reasons = Counter(one.reason for one in self.verdicts)
        return reasons.most_common(1)[0][0] if reasons else "no column can be compared"


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause that is not seen in the data.

    Attributes:
        kind: One of `OUTSIDE`.
        identity: What makes it one and the same whenever it is told: the cron line and the
            scheduled time, or an alert's fingerprint and its start.
        summary: One line for a person.
    """

    kind: Kind
    identity: tuple[str, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class Episode:
    """One open episode.

    Attributes:
        window: The window that it opened on; for what comes from outside, the last one judged.
        reference_window: What that was compared with.
        features: What opened it, worst ratio first; empty for what comes from outside.
        quiet: Windows in a row below 0.8 of every threshold.
        outcome: What was last decided about its trigger; none until something was.
        request_id: Id of its trigger, once there is one.
        told: What an outside cause said.
    """

    episode_id: str
    kind: Kind
    window: Window
    reference_window: Window
    features: tuple[Verdict, ...]
    contract: str
    quiet: int = 0
    outcome: Outcome | None = None
    request_id: str = ""
    told: str = ""

    @property
    def key(self) -> str:
        """What of a monitor's open episodes it is; of what is measured, one of a kind is open."""
        return self.episode_id if self.kind is Kind.ALERT else self.kind.value

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.kind in OUTSIDE:
            return f"{self.kind}: {self.told}"
        worst = self.features[0]
        others = f" and {len(self.features) - 1} more" if len(self.features) > 1 else ""
        figure = f"{worst.statistic} {worst.value:.3g} over {worst.threshold:.3g}"
        heaviest = max(self.features, key=lambda one: one.impact or 0.0)
        most = ""
        if heaviest.impact and heaviest is not worst:
            most = f"; {heaviest.feature} weighs most in the model"
        return f"{self.kind}: {worst.feature}{others}: {figure}{most}"


@dataclass(frozen=True, slots=True)
class OpenIncident:
    """One data incident that has not passed.

    Attributes:
        opened_at: End of the bucket in which it was first seen.
        last_seen: End of the last bucket in which it was seen.
    """

    incident: Incident
    opened_at: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class PolicyState:
    """All that a monitor remembers from one decision to the next.

    Attributes:
        watermark: End of the last window decided on.
        recent: Per kind, for each of the last windows, what was over its threshold; newest
            last.
        episodes: Open ones by their `key`.
        incidents: Open ones, and ones passed whose bucket is still inside the window.
        scheduled: The cron line, and up to when its times are taken; none without a schedule.
    """

    watermark: datetime | None = None
    recent: dict[Kind, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    episodes: dict[str, Episode] = field(default_factory=dict)
    incidents: tuple[OpenIncident, ...] = ()
    scheduled: tuple[str, datetime] | None = None

    def blocked(self, since: datetime) -> str:
        """Why a window that starts at `since` may not decide; empty if it may.

        A window that holds a broken bucket is judged on broken rows, so the block outlasts the
        incident until the bucket has left the window.
        """
        inside = [
            open_.incident
            for open_ in self.incidents
            if open_.last_seen > since and open_.incident.kind not in INFORMATIVE
        ]
        return "; ".join(incident.summary for incident in inside[:3])


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert; `sequence` is 0 until it is committed."""

    kind: AlertKind
    severity: Severity
    monitor: str
    at: datetime
    summary: str
    episode_id: str = ""
    features: tuple[Verdict, ...] = ()
    resolved: bool = False
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Trigger:
    """A decision on an episode's trigger.

    Attributes:
        episode: The episode as it was when decided.
        at: End of the window of this decision; the new training set's knowledge time.
        reason: Why it is suppressed or waits; empty when it fires.
    """

    request_id: str
    episode: Episode
    outcome: Outcome
    at: datetime
    reason: str = ""

    @property
    def state(self) -> TriggerState:
        """Where it stands by this decision."""
        if self.outcome is Outcome.FIRED:
            return TriggerState.PENDING
        if self.outcome is Outcome.WAITING:
            return TriggerState.WAITING
        return TriggerState.SUPPRESSED


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of an episode."""

    episode_id: str
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from one evaluation; all of it is committed together, or none.

    Attributes:
        triggers: Decisions that changed; an unchanged one is not repeated.
    """

    state: PolicyState
    opened: tuple[Episode, ...] = ()
    closed: tuple[Closed, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    alerts: tuple[Alert, ...] = ()
