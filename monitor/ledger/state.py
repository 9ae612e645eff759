"""The last committed state of the daemon, as one immutable value.

Above `episodes`, below `ledger`, which makes it; the metrics, the page and GetStatus render it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steadfeast.monitor.decisions import ordered

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from steadfeast.monitor.decisions import Alert, EpisodeKind, Member, OpenIncident, TriggerState
    from steadfeast.monitor.drift import Figures, Freshness, Segment, Verdict
    from steadfeast.monitor.performance import Performance
    from steadfeast.monitor.profiles import Distribution, WatchedColumn, Window
    from steadfeast.monitor.sources import Quarantined
    from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run


@dataclass(frozen=True, slots=True)
class ReferenceInfo:
    """What the current window is compared with.

    Attributes:
        uri: The manifest of the training set.
        contract: Contract of the live model, 64 hexadecimal digits.
        model_version: Version of the live model in the registry.
        window: Stretch of event time of the training set, with its rows.
        performance: Metrics of the model on its hold-out, by name.
        importance: Per feature, how much worse the model gets without it; empty if unknown.
        columns: How each column is watched.
    """

    uri: str
    contract: str
    model_version: str
    window: Window
    performance: Mapping[str, float]
    importance: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[WatchedColumn, ...] = ()


@dataclass(frozen=True, slots=True)
class PastWindow:
    """One evaluated window, as the page and its charts need it.

    Attributes:
        window: The window.
        ratios: Per feature, value over threshold of the deciding statistic; 1 is the limit.
            A feature without a verdict in this window is left out.
        performance: Live metrics by name; empty without enough labels.
        estimated: What the metrics were thought to be before the labels were in.
        measured_until: End of the window that `performance` is of; earlier than this window's
            where labels take their time.
        judged: Features that could be judged, drifted or not.
        withheld: Why nothing could be, if nothing could; empty otherwise.
        quarantined: What could not be read of the window's last bucket.
    """

    window: Window
    ratios: Mapping[str, float]
    performance: Mapping[str, float]
    estimated: Mapping[str, float] = field(default_factory=dict)
    measured_until: datetime | None = None
    judged: int = 0
    withheld: str = ""
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditCheck:
    """One invariant of the store on one subject; see `featurestore.audit.audit`.

    Attributes:
        invariant: `I1`, `I2`, `I4`, `I9` or `I11`.
        subject: The feature view, or the service.
        cells: Cells that were compared.
        mismatches: Kind to cells that differed.
        holds: Whether something was compared and all of it was the same.
        note: What was left out, or why there was nothing to compare.
        features: Of I1 and I2, each feature with mismatches: kind to cells.
    """

    invariant: str
    subject: str
    cells: int
    mismatches: Mapping[str, int]
    holds: bool
    note: str = ""
    features: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        """Whether nothing was shown: nothing to compare, or not all that was to be compared."""
        return not self.holds and not any(self.mismatches.values())


@dataclass(frozen=True, slots=True)
class AuditState:
    """The last audit that came to its end; `at` is the wall clock."""

    at: datetime
    checks: tuple[AuditCheck, ...]


@dataclass(frozen=True, slots=True)
class MonitorState:
    """One monitor after its last evaluation; before the first, the lists are empty.

    Attributes:
        service: Feature service whose served log is watched; empty where it is something else.
        source: What is watched instead: `view` or `table`, and its name.
        watermark: End of the last evaluated bucket, event time.
        latest_event: Latest row of what is watched when last looked.
        waits_for: What is missing: why there is no reference, or why what is watched cannot be
            read; empty when nothing is.
        window: The last evaluated window.
        verdicts: Of that window, worst ratio first.
        figures: Of that window, one per feature.
        freshness: Of the last bucket, one per feature view.
        incidents: Open data incidents.
        blocked: Why retraining is blocked; empty when it is not.
        performance: Of the last window that had enough labels and was measured for the live
            model; none yet after a promotion.
        estimated: Of the last window, for the live model, before its labels are in.
        estimate_errors: The last estimate that could be compared, less what the labels said.
        segments: The last window in parts.
        metric: Name of the figure that decides; empty where none is asked for.
        max_drop: How much worse than on the hold-out it may be.
        lower_is_better: Whether a fall of it is good.
        history: The last 60 evaluated windows, oldest first.
        distributions: The reference against the window, one per feature; empty without a
            reference. After a promotion the current side grows anew, bucket by bucket.
        max_age: Oldest that a feature view's values may be when served, where it has a limit.
        audit: The last audit; none before the first.
        audit_interval: How often there should be one; none means never.
        superseded: The reference moved after the window was judged, so that its verdicts are
            not about the live model. The next bucket ends this.
        open_until: When the last bucket of `window` is frozen for good, event time: until then late
            rows may change what is shown of the window, and nothing is decided on it. None where
            it is frozen.
        late_rows: Rows that came after their bucket was frozen, since the first one.
        damaged: Snapshots that are not as they were frozen, one line each.
    """

    name: str
    service: str
    model: str
    source: tuple[str, str] | None = None
    watermark: datetime | None = None
    latest_event: datetime | None = None
    reference: ReferenceInfo | None = None
    waits_for: str = ""
    window: Window | None = None
    verdicts: tuple[Verdict, ...] = ()
    figures: tuple[Figures, ...] = ()
    freshness: tuple[Freshness, ...] = ()
    incidents: tuple[OpenIncident, ...] = ()
    blocked: str = ""
    performance: Performance | None = None
    estimated: Mapping[str, float] = field(default_factory=dict)
    estimate_errors: Mapping[str, float] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    metric: str = ""
    max_drop: float = 0.0
    lower_is_better: bool = False
    history: tuple[PastWindow, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    superseded: bool = False
    open_until: datetime | None = None
    late_rows: int = 0
    max_age: Mapping[str, timedelta] = field(default_factory=dict)
    audit: AuditState | None = None
    audit_interval: timedelta | None = None
    damaged: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[WatchedColumn, ...]:
        """How each column is watched; empty without a reference."""
        return self.reference.columns if self.reference else ()

    @property
    def last(self) -> PastWindow | None:
        """The last evaluated window, with what was not judged of it."""
        return self.history[-1] if self.history else None

    @property
    def drops(self) -> dict[str, float]:
        """How much worse than on the hold-out the deciding figure is, in multiples of `max_drop`.

        By what that is known: `labels`, `estimate`; not without both figures, nor below 0.
        """
        expected = self.reference.performance.get(self.metric) if self.reference else None
        if expected is None or not self.max_drop:
            return {}
        live = self.performance.metrics if self.performance else {}
        found = {"labels": live.get(self.metric), "estimate": self.estimated.get(self.metric)}
        sign = -1.0 if self.lower_is_better else 1.0
        return {
            basis: max(0.0, sign * (expected - value) / self.max_drop)
            for basis, value in found.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode of a monitor: a feature, or features that moved together.

    Attributes:
        opened_at: End of the window that it opened on.
        closed_at: End of the window that it closed on; none while open.
        members: Its features in the order in which they came.
        reason: Why it closed; empty while open.
        acknowledged_by: Empty until somebody did.
    """

    episode_id: str
    monitor: str
    kind: EpisodeKind
    opened_at: datetime
    closed_at: datetime | None
    members: tuple[Member, ...]
    summary: str
    reason: str = ""
    acknowledged_by: str = ""

    @property
    def features(self) -> tuple[Verdict, ...]:
        """The verdicts of its members, those that are open first, worst ratio first."""
        return ordered(self.members)

    @property
    def open(self) -> bool:
        """Whether it is still open."""
        return self.closed_at is None


@dataclass(frozen=True, slots=True)
class TriggerRecord:
    """One trigger, with what became of it.

    Attributes:
        episode_ids: Its evidence, the first cause first.
        decided_at: End of the window of the last decision on it, event time.
        attempts: Deliveries tried so far.
        run: As last heard from the pipeline; none until delivered.
    """

    request_id: str
    monitor: str
    model: str
    state: TriggerState
    reason: str
    episode_ids: tuple[str, ...]
    decided_at: datetime
    attempts: int = 0
    run: Run | None = None


@dataclass(frozen=True, slots=True)
class PromotionRecord:
    """A promotion that no trigger asked for: by hand, by a rollback, or of the first model.

    Attributes:
        noticed_at: Event time that the monitor had come to; before its first bucket, the run's
            knowledge time.
    """

    monitor: str
    noticed_at: datetime
    run: Run


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act of the audit log, as what people and outside causes did is kept; wall clock.

    Attributes:
        sequence: 1, 2, 3, ...
        actor: Who, and whose token it was.
        act: `acknowledge`, `approve`, `reject`, `resend`, `configure`, `cause` or `resolve`.
        subject: What it was done to.
    """

    sequence: int
    at: datetime
    actor: str
    act: str
    subject: str
    remark: str


@dataclass(frozen=True, slots=True)
class JobState:
    """One scheduled job since the process started; durations in seconds, times wall clock."""

    name: str
    last_start: datetime | None = None
    last_success: datetime | None = None
    last_seconds: float = 0.0
    seconds: float = 0.0
    runs: int = 0
    failures: int = 0
    misfires: int = 0


@dataclass(frozen=True, slots=True)
class OutboxState:
    """What is still to deliver, and what was given up.

    Attributes:
        depth: Triggers committed and not yet answered.
        oldest: When the oldest of them was committed, wall clock.
        attempts: Deliveries tried, over the life of the ledger.
        dead: Triggers given up.
    """

    depth: int = 0
    oldest: datetime | None = None
    attempts: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts over the life of the ledger; `misfires` and `reloads` since the process started.

    Attributes:
        snapshots: Buckets frozen, by monitor.
        rows: Rows in them, by monitor.
        late_rows: Rows that came after their bucket was frozen, by monitor.
        decisions: By (monitor, outcome); outcomes are `fired`, `waiting`, `blocked`,
            `cooldown`, `budget`, `running`, `rejected`, `no_pipeline`.
        misfires: Ticks that APScheduler had to leave out.
        reloads: Configurations taken over.
        reloads_rejected: Configurations refused; the old one stayed.
    """

    snapshots: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    late_rows: Mapping[str, int] = field(default_factory=dict)
    decisions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    misfires: int = 0
    reloads: int = 0
    reloads_rejected: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """The last committed state, whole; what the collector, the page and GetStatus render.

    Attributes:
        project: Name of the Feast project; empty where it is not known.
        monitors: By name, in the order of the configuration.
        episodes: All that are open and the last 100 that closed, newest first.
        triggers: The last 100, newest first.
        promotions: The last 100 that no trigger asked for, newest first.
        alerts: The last 100, newest first.
        jobs: By name.
        idle: Every closed bucket is evaluated, the outbox is empty, no run is under way. Buckets
            that wait for a reference that nobody has are not counted: see `waits_for`.
    """

    project: str = ""
    monitors: Mapping[str, MonitorState] = field(default_factory=dict)
    episodes: tuple[EpisodeRecord, ...] = ()
    triggers: tuple[TriggerRecord, ...] = ()
    promotions: tuple[PromotionRecord, ...] = ()
    alerts: tuple[Alert, ...] = ()
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    outbox: OutboxState = OutboxState()
    counters: Counters = Counters()
    latest_event: datetime | None = None
    idle: bool = False
