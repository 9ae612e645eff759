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
from steadfeast.monitor.drift import INFORMATIVE, Level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from steadfeast.monitor.drift import Figures, Freshness, Incident, Segment, Verdict
    from steadfeast.monitor.performance import Performance
    from steadfeast.monitor.profiles import Window
    from steadfeast.monitor.sources import Quarantined


class EpisodeKind(StrEnum):
    """What an episode is of; the names of the protocol's `CauseKind`, lower case."""

    DRIFT = "drift"
    PERFORMANCE = "performance"
    SCHEDULE = "schedule"
    ALERT = "alert"


OUTSIDE = frozenset({EpisodeKind.SCHEDULE, EpisodeKind.ALERT})
"""Kinds that are not seen in the data: somebody or something else has asked."""


class Outcome(StrEnum):
    """What was decided about a request for a retraining."""

    FIRED = "fired"
    WAITING = "waiting"
    BLOCKED = "blocked"
    RUNNING = "running"
    COOLDOWN = "cooldown"
    BUDGET = "budget"
    REJECTED = "rejected"
    EXPIRED = "expired"


FINAL = frozenset({Outcome.FIRED, Outcome.REJECTED, Outcome.EXPIRED})
"""Outcomes after which nothing more is decided about a request."""


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
class PastRun:
    """A retraining that was fired.

    Attributes:
        at: Event time at which.
        cost: In runs: 1 with a model that serves, less for one that ended before the last fit.
        promoted: Whether its model serves, or may come to serve.
        gain: How much better its model was than the one that served, in the measure's unit.
        error: Standard error of the gain; both are None where nothing was compared.
    """

    at: datetime
    cost: float = 1.0
    promoted: bool = True
    gain: float | None = None
    error: float | None = None


@dataclass(frozen=True, slots=True)
class ModelHistory:
    """What concerns a model beyond the one monitor that is evaluated.

    Attributes:
        runs: Retrainings that were fired, from all of its monitors, by time.
        running: Request id of a trigger for the model that is not yet answered, or whose run is
            under way; empty if there is none.
        blocked: Why another monitor of the model blocks its retraining; empty if none does.
        without_promotion: Request ids of triggers whose run was refused, failed or was cancelled,
            or that no pipeline took.
    """

    runs: tuple[PastRun, ...] = ()
    running: str = ""
    blocked: str = ""
    without_promotion: frozenset[str] = frozenset()


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
        groups: Of each feature that moves with others in the reference, the name of the group.
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
    groups: Mapping[str, str] = field(default_factory=dict)

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

    kind: EpisodeKind
    identity: tuple[str, ...]
    summary: str


def subject(verdict: Verdict) -> str:
    """Return what a verdict is about: `served/trip_distance`, or `labels/auc` for a figure."""
    return f"{verdict.source}/{verdict.feature}"


@dataclass(frozen=True, slots=True)
class Member:
    """One feature of an episode, or the live figure that fell.

    Attributes:
        verdict: As it was when people were last notified of it.
        since: End of the first of the windows over the limit that opened it.
        notified_at: End of the window in which people were last notified of it; none if it joined
            a slow change of many features since.
        resolved_at: End of the window in which its own evidence ended; none while it stands.
        unjudged: Why its last windows could not be judged; empty if they could.
    """

    verdict: Verdict
    since: datetime
    notified_at: datetime | None = None
    resolved_at: datetime | None = None
    unjudged: str = ""

    @property
    def subject(self) -> str:
        """See `subject`."""
        return subject(self.verdict)

    @property
    def open(self) -> bool:
        """Whether its evidence stands."""
        return self.resolved_at is None


def ordered(members: Sequence[Member]) -> tuple[Verdict, ...]:
    """Return the verdicts of `members`, those that are open first, worst ratio first."""
    by_worst = sorted(members, key=lambda one: (not one.open, -one.verdict.ratio))
    return tuple(member.verdict for member in by_worst)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the last request for a retraining that an episode was evidence for.

    Attributes:
        request_id: The request.
        outcome: FIRED or REJECTED.
        at: End of the window of that decision.
    """

    request_id: str
    outcome: Outcome
    at: datetime


@dataclass(frozen=True, slots=True)
class Episode:
    """One open episode: what broke.

    A feature, or features of one group that moved together with the same onset. Each member opens
    and resolves by its own evidence; the episode closes with its last member.

    Attributes:
        window: The window that it opened on; for what comes from outside, the last one judged.
        reference_window: What that was compared with.
        members: In the order in which they came; empty for what comes from outside.
        group: Name of the group that its members belong to; empty for a feature that moves alone.
        slow: Whether its members crossed their limits by degrees; every one that does joins it.
        standing: Whether the last window alone would open it, or the cause from outside stands.
        requests: Requests for a retraining that it was the first evidence of.
        answer: What became of the last request that it was evidence for; none before one fired
            or was rejected, and again once it got decisively worse.
        cause: What an outside cause says.
    """

    episode_id: str
    kind: EpisodeKind
    window: Window
    reference_window: Window
    members: tuple[Member, ...]
    contract: str
    group: str = ""
    slow: bool = False
    standing: bool = True
    requests: int = 0
    answer: Answer | None = None
    cause: str = ""

    @property
    def features(self) -> tuple[Verdict, ...]:
        """The verdicts of its members, those that are open first, worst ratio first."""
        return ordered(self.members)

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.kind in OUTSIDE:
            return f"{self.kind}: {self.cause}"
        what = "slow drift" if self.slow else str(self.kind)
        return f"{what}: {described(self.features)}"


NAMED = 5
"""Features that one line names."""


def described(verdicts: Sequence[Verdict]) -> str:
    """Return in one line which features moved, worst first, and how far the worst is."""
    worst = verdicts[0]
    names = [one.feature for one in verdicts]
    named = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        named += f" and {len(names) - NAMED} more"
    text = f"{named}: {worst.statistic} {worst.value or 0:.3g} over {worst.threshold or 0:.3g}"
    if worst.reason:
        text += f" ({worst.reason})"
    heaviest = max(verdicts, key=lambda one: one.impact or 0.0)
    if heaviest.impact and heaviest is not worst:
        text += f"; {heaviest.feature} weighs most in the model"
    return text


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
class Request:
    """A retraining that is asked for and has neither fired nor been rejected.

    Attributes:
        request_id: Of its trigger.
        episode_ids: Its evidence when it was last decided, the first cause first.
        outcome: What keeps it.
    """

    request_id: str
    episode_ids: tuple[str, ...]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PolicyState:
    """All that a monitor remembers from one decision to the next.

    Attributes:
        watermark: End of the last window decided on.
        recent: By `subject`, the ratios of the last windows with their direction, newest last;
            None for a window that could not be judged.
        episodes: Open ones by their id.
        incidents: Open ones, and ones passed whose bucket is still inside the window.
        request: The retraining that is asked for and keeps waiting.
        scheduled: The cron line, and up to when its times are taken; none without a schedule.
    """

    watermark: datetime | None = None
    recent: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    episodes: dict[str, Episode] = field(default_factory=dict)
    incidents: tuple[OpenIncident, ...] = ()
    request: Request | None = None
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
    """One alert; `sequence` is 0 until it is committed.

    Attributes:
        episodes: The summary of each episode that it is about, by episode id.
        features: What moved, worst first; empty where no feature is concerned.
        resolved: Whether it tells of an end.
    """

    kind: AlertKind
    severity: Severity
    monitor: str
    at: datetime
    summary: str
    episodes: Mapping[str, str] = field(default_factory=dict)
    features: tuple[Verdict, ...] = ()
    resolved: bool = False
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Trigger:
    """A decision on a request for a retraining.

    Attributes:
        episodes: The evidence as it was when decided, the first cause first.
        at: End of the window of this decision; the new training set's knowledge time.
        reason: Why it is suppressed or waits; empty when it fires.
        decided: Whether the outcome is new; else only the evidence is.
    """

    request_id: str
    episodes: tuple[Episode, ...]
    outcome: Outcome
    at: datetime
    reason: str = ""
    decided: bool = True

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
    """The end of an episode, as it was then."""

    episode: Episode
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from one evaluation; all of it is committed together, or none.

    Attributes:
        changed: Episodes that stay open, and of which a member joined, resolved, got worse or
            cannot be judged any more.
        triggers: Decisions that changed; an unchanged one is not repeated.
    """

    state: PolicyState
    opened: tuple[Episode, ...] = ()
    changed: tuple[Episode, ...] = ()
    closed: tuple[Closed, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    alerts: tuple[Alert, ...] = ()
