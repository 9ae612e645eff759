"""Every metric that the daemon exports: its name, type, unit, labels and meaning.

Above `state`; `collector` gives them their values. Names stand here and nowhere else:
dashboards, rules and `docs/metrics.md` are built from `METRICS`.

Label values come from the configuration or from a fixed list, so the number of series is
bounded: at most `SERIES_PER_FEATURE` for each watched feature, and of a monitor as a whole impacts
for `MOST_IMPACTS` features and `BARS_PER_FEATURE` for the distributions of `MOST_SPREADS`, whose
bins follow from the reference; `SERIES_PER_SEGMENT` for each of the at most `MOST` values of a
column that is split by. The exceptions are the contract and the version of the live model, on one
series a monitor. A job's label is `task`, because Prometheus gives every series a `job` of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
)

from steadfeast.measures import MEASURES, Task, measures_of
from steadfeast.monitor.drift import MOST, OTHERS, SHARES, SHIFT, STATISTICS, Level
from steadfeast.monitor.drift.multivariate.detector import NAMES
from steadfeast.monitor.performance import ESTIMATED
from steadfeast.monitor.profiles import MOST_BARS

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "steadfeast_"
SERIES_PER_FEATURE = 11
BARS_PER_FEATURE = 2 * MOST_BARS
SERIES_PER_SEGMENT = 3
MOST_FEATURES = 2000
"""Features of a monitor that are exported: those of open episodes, then the highest ratios."""
MOST_SPREADS = 50
"""Of them, those that are exported with their distributions."""
MOST_SKEWED = 50
"""Series of a monitor that say which features serving and training disagree about: the worst."""
MOST_IMPACTS = 100
"""Features of a monitor that are exported with their impact: where it is highest."""

BUILD_INFO = "steadfeast_build_info"
IDLE = "steadfeast_idle"
LATEST_EVENT = "steadfeast_latest_event_timestamp_seconds"
RELOADS = "steadfeast_config_reloads_total"
MONITOR_INFO = "steadfeast_monitor_info"
MONITOR_WATERMARK = "steadfeast_monitor_watermark_timestamp_seconds"
MONITOR_LATEST_EVENT = "steadfeast_monitor_latest_event_timestamp_seconds"
MONITOR_BLOCKED = "steadfeast_monitor_retrain_blocked"
MONITOR_INCIDENTS = "steadfeast_monitor_incidents"
MONITOR_JUDGED = "steadfeast_monitor_judged_features"
MONITOR_QUARANTINED = "steadfeast_monitor_quarantined_rows"
FEATURE_UNWATCHED = "steadfeast_feature_unwatched"
MONITOR_INCIDENT_OPENED = "steadfeast_monitor_incident_opened_timestamp_seconds"
MONITOR_SUPERSEDED = "steadfeast_monitor_window_superseded"
SERIES_SUPPRESSED = "steadfeast_series_suppressed"
WINDOW_START = "steadfeast_window_start_timestamp_seconds"
WINDOW_END = "steadfeast_window_end_timestamp_seconds"
WINDOW_ROWS = "steadfeast_window_rows"
REFERENCE_START = "steadfeast_reference_start_timestamp_seconds"
REFERENCE_END = "steadfeast_reference_end_timestamp_seconds"
REFERENCE_ROWS = "steadfeast_reference_rows"
DRIFT = "steadfeast_drift_"  # and the statistic's name
DRIFT_THRESHOLD = "steadfeast_drift_threshold"
DRIFT_RATIO = "steadfeast_drift_ratio"
DRIFT_LEVEL = "steadfeast_drift_level"
DRIFT_IMPACT = "steadfeast_drift_impact"
DRIFT_OPENED = "steadfeast_drift_opened_timestamp_seconds"
FEATURE_ROWS = "steadfeast_feature_rows"
FEATURE_NULLS = "steadfeast_feature_nulls_ratio"
FEATURE_NANS = "steadfeast_feature_nans_ratio"
FEATURE_INFINITIES = "steadfeast_feature_infinities_ratio"
FEATURE_MISTYPED = "steadfeast_feature_mistyped_ratio"
FEATURE_UNSEEN = "steadfeast_feature_unseen_ratio"
FEATURE_SHARE = "steadfeast_feature_share_ratio"
VIEW_LATEST = "steadfeast_view_latest_event_timestamp_seconds"
VIEW_AGE = "steadfeast_view_median_age_seconds"
VIEW_AGE_LIMIT = "steadfeast_view_age_limit_seconds"
VIEW_STALE = "steadfeast_view_stale"
AUDIT_AT = "steadfeast_audit_timestamp_seconds"
AUDIT_INTERVAL = "steadfeast_audit_interval_seconds"
AUDIT_HOLDS = "steadfeast_audit_holds"
AUDIT_VOID = "steadfeast_audit_void"
AUDIT_CELLS = "steadfeast_audit_cells"
AUDIT_MISMATCHES = "steadfeast_audit_mismatches"
AUDIT_SKEW = "steadfeast_audit_feature_mismatches"
PERFORMANCE = "steadfeast_performance_"  # and the figure's name
PERFORMANCE_REFERENCE = "steadfeast_performance_reference_"  # and the figure's name
PERFORMANCE_ESTIMATED = "steadfeast_performance_estimated_"  # and the figure's name
PERFORMANCE_BOUND = "steadfeast_performance_bound"
PERFORMANCE_ERROR = "steadfeast_performance_estimate_error"
PERFORMANCE_DROP = "steadfeast_performance_drop_ratio"
PERFORMANCE_ROWS = "steadfeast_performance_labelled_rows"
PERFORMANCE_END = "steadfeast_performance_window_end_timestamp_seconds"
SEGMENT_ROWS = "steadfeast_segment_rows"
SEGMENT_RATIO = "steadfeast_segment_drift_ratio"
SEGMENT_PERFORMANCE = "steadfeast_segment_performance"
EPISODES_OPEN = "steadfeast_episodes_open"
EPISODE_OPENED = "steadfeast_episode_opened_timestamp_seconds"
EPISODE_ACKNOWLEDGED = "steadfeast_episode_acknowledged"
DECISIONS = "steadfeast_decisions_total"
TRIGGERS = "steadfeast_triggers"
RUNS = "steadfeast_runs"
RUN_CHANGED = "steadfeast_run_changed_timestamp_seconds"
GATE_VALUE = "steadfeast_gate_value"
GATE_LIMIT = "steadfeast_gate_limit"
GATE_PASSED = "steadfeast_gate_passed"
GATE_CHAMPION = "steadfeast_gate_champion"
OUTBOX_MESSAGES = "steadfeast_outbox_messages"
OUTBOX_OLDEST = "steadfeast_outbox_oldest_timestamp_seconds"
OUTBOX_ATTEMPTS = "steadfeast_outbox_attempts_total"
OUTBOX_DEAD = "steadfeast_outbox_dead_messages"
JOB_SECONDS = "steadfeast_job_duration_seconds"
JOB_LAST_SECONDS = "steadfeast_job_last_duration_seconds"
JOB_FAILURES = "steadfeast_job_failures_total"
JOB_MISFIRES = "steadfeast_job_misfires_total"
JOB_STARTED = "steadfeast_job_last_start_timestamp_seconds"
JOB_SUCCEEDED = "steadfeast_job_last_success_timestamp_seconds"
ALERTS = "steadfeast_alerts_total"
SNAPSHOTS = "steadfeast_snapshots_total"
SNAPSHOTS_DAMAGED = "steadfeast_snapshots_damaged"
SNAPSHOT_ROWS = "steadfeast_snapshot_rows_total"
SNAPSHOT_LATE_ROWS = "steadfeast_snapshot_late_rows_total"

LEVELS = (Level.OK, Level.INSUFFICIENT_DATA, Level.DRIFT, Level.INCIDENT)
"""A level's place here is the value of `DRIFT_LEVEL`: 0, 1, 2, 3."""

PERFORMANCE_FIGURES = (*ESTIMATED, "r2")
"""Measures of `steadfeast.measures` that have a panel; every other is a metric all the same."""

ESTIMATED_FIGURES = ESTIMATED
"""Those that are estimated before labels are in."""


class Type(StrEnum):
    """Prometheus's types that are used here."""

    GAUGE = "gauge"
    COUNTER = "counter"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Described:
    """One exported metric.

    Attributes:
        name: As in the exposition, `_total` included.
        type: Prometheus's type.
        unit: Of the value; a timestamp is in seconds since 1970 UTC.
        labels: Label names, in the order of the samples.
        help: One sentence.
    """

    name: str
    type: Type
    unit: str
    labels: tuple[str, ...]
    help: str

    def family(self) -> GaugeMetricFamily | CounterMetricFamily | SummaryMetricFamily:
        """Return an empty family to add samples to."""
        match self.type:
            case Type.GAUGE:
                return GaugeMetricFamily(self.name, self.help, labels=self.labels)
            case Type.COUNTER:
                return CounterMetricFamily(self.name, self.help, labels=self.labels)
            case Type.SUMMARY:
                return SummaryMetricFamily(self.name, self.help, labels=self.labels)

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that its samples have."""
        if self.type is Type.SUMMARY:
            return (f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)


def _gauge(name: str, unit: str, labels: str, text: str) -> Described:
    return Described(name, Type.GAUGE, unit, tuple(labels.split()), text)


def _counter(name: str, unit: str, labels: str, text: str) -> Described:
    return Described(name, Type.COUNTER, unit, tuple(labels.split()), text)


AUDIT_KINDS = {
    "I1": ("missing online", "missing offline", "stale", "ahead", "value"),
    "I2": ("missing online", "missing offline", "stale", "leaked", "type", "value"),
    "I4": ("mixed",),
    "I9": ("went back",),
    "I11": ("lost", "unwritten", "repeated", "unknown request"),
}
"""Kinds of mismatch that `featurestore.audit.audit` tells apart, by invariant."""

_EVENT_TIME = "seconds, event time"
_CLOCK_TIME = "seconds, wall clock"


def distance(statistic: str, unit: str) -> Described:
    """Describe the metric of one statistic, ours or one that a user registered."""
    name = DRIFT + re.sub(r"[^a-zA-Z0-9_]", "_", statistic)
    if name in (
        DRIFT_THRESHOLD,
        DRIFT_RATIO,
        DRIFT_LEVEL,
        DRIFT_IMPACT,
        DRIFT_OPENED,
    ):  # somebody's statistic "ratio"
        name += "_distance"
    what = "Change of a share" if statistic in SHARES else "Distance"
    if statistic in NAMES:
        what = "Excess over what is usual between the reference's windows"
    return _gauge(
        name,
        unit or "ratio",
        "monitor source feature",
        f"{what} ({statistic}) of the current window from the reference.",
    )


_FIGURES = {
    PERFORMANCE: "on the last window with enough labels",
    PERFORMANCE_REFERENCE: "on the rows held out when it was trained",
    PERFORMANCE_ESTIMATED: "estimated for the current window, before its labels are in",
}


def figure(prefix: str, name: str, unit: str) -> Described:
    """Describe the metric of one figure, ours or a user's own; `prefix` says of what."""
    full = prefix + re.sub(r"[^a-zA-Z0-9_]", "_", name)
    if full in (PERFORMANCE_BOUND, PERFORMANCE_ERROR, PERFORMANCE_DROP, PERFORMANCE_ROWS):
        full += "_figure"  # somebody's measure "bound"
    return _gauge(full, unit, "monitor", f"Live model: {name} {_FIGURES[prefix]}.")


METRICS: Mapping[str, Described] = {
    one.name: one
    for one in (
        _gauge(BUILD_INFO, "1", "version", "The running version; always 1."),
        _gauge(
            IDLE,
            "0 or 1",
            "",
            "1 when all closed buckets are evaluated, nothing is to deliver and no run goes on.",
        ),
        _gauge(LATEST_EVENT, _EVENT_TIME, "", "Latest event that was seen in any source."),
        _counter(RELOADS, "reloads", "result", "Configurations taken over, or refused."),
        _gauge(
            MONITOR_INFO,
            "1",
            "project monitor service model model_version contract",
            "What a monitor watches, of which Feast project, and which model it believes to be "
            "live; always 1.",
        ),
        _gauge(MONITOR_WATERMARK, _EVENT_TIME, "monitor", "End of the last evaluated bucket."),
        _gauge(MONITOR_LATEST_EVENT, _EVENT_TIME, "monitor", "Latest request in the served log."),
        _gauge(
            MONITOR_BLOCKED,
            "0 or 1",
            "monitor",
            "1 while broken data block retraining.",
        ),
        _gauge(MONITOR_INCIDENTS, "incidents", "monitor kind", "Open data incidents, by kind."),
        _gauge(
            MONITOR_JUDGED,
            "features",
            "monitor",
            "Features that could be judged in the last window; 0 is no sign of quiet.",
        ),
        _gauge(
            MONITOR_QUARANTINED,
            "rows",
            "monitor fault",
            "Rows of the last bucket that could not be read; a file or a column counts as one.",
        ),
        _gauge(
            FEATURE_UNWATCHED,
            "1",
            "monitor feature",
            "Columns whose values are not compared, for what they are; always 1.",
        ),
        _gauge(
            MONITOR_INCIDENT_OPENED,
            _EVENT_TIME,
            "monitor kind",
            "End of the bucket in which the oldest open data incident of the kind was first seen.",
        ),
        _gauge(
            SERIES_SUPPRESSED,
            "series",
            "monitor",
            f"Left out: a monitor exports its {MOST_FEATURES:,} worst features, {MOST_SPREADS} "
            f"of them with their distributions, and the {MOST_IMPACTS} highest impacts.",
        ),
        _gauge(
            MONITOR_SUPERSEDED,
            "0 or 1",
            "monitor",
            "1 from a promotion to the next bucket: no verdict is about the live model yet.",
        ),
        _gauge(WINDOW_START, _EVENT_TIME, "monitor", "Start of the current window."),
        _gauge(WINDOW_END, _EVENT_TIME, "monitor", "End of the current window."),
        _gauge(WINDOW_ROWS, "rows", "monitor", "Rows in the current window."),
        _gauge(REFERENCE_START, _EVENT_TIME, "monitor", "Start of the reference."),
        _gauge(REFERENCE_END, _EVENT_TIME, "monitor", "End of the reference."),
        _gauge(REFERENCE_ROWS, "rows", "monitor", "Rows in the reference."),
        *(distance(one.name, one.unit) for one in STATISTICS.values()),
        distance(SHIFT, "sd"),
        *(distance(name, "") for name in (*SHARES, *NAMES)),
        _gauge(
            DRIFT_THRESHOLD,
            "the statistic's",
            "monitor source feature statistic",
            "Calibrated limit of the statistic that decides.",
        ),
        _gauge(
            DRIFT_RATIO,
            "ratio",
            "monitor source feature",
            "Value of the statistic that decides over its threshold; above 1 is drift.",
        ),
        _gauge(
            DRIFT_LEVEL,
            "code",
            "monitor source feature",
            "Verdict: " + ", ".join(f"{i} {level.value}" for i, level in enumerate(LEVELS)) + ".",
        ),
        _gauge(
            DRIFT_OPENED,
            _EVENT_TIME,
            "monitor source feature",
            "End of the first window over the limit of the open drift; absent when none is open.",
        ),
        _gauge(
            DRIFT_IMPACT,
            "standard deviations",
            "monitor source feature",
            "Effect x importance: the shift that the distance stands for, times the share of the "
            "live model's skill that hangs on the feature.",
        ),
        _gauge(FEATURE_ROWS, "rows", "monitor feature", "Rows of the current window."),
        *(
            _gauge(name, "ratio", "monitor feature", f"Share of the current window's rows {text}.")
            for name, text in (
                (FEATURE_NULLS, "that are null"),
                (FEATURE_NANS, "that are NaN"),
                (FEATURE_INFINITIES, "that are infinite"),
                (FEATURE_MISTYPED, "whose type cannot be compared with the reference"),
                (FEATURE_UNSEEN, "with a category or a range that the reference lacks"),
            )
        ),
        _gauge(
            FEATURE_SHARE,
            "ratio",
            "monitor feature side bin",
            "Share of the rows with values in the bin, in the reference and in the current window.",
        ),
        _gauge(
            VIEW_LATEST,
            _EVENT_TIME,
            "monitor view",
            "Event time of the newest value that was served from the view.",
        ),
        _gauge(
            VIEW_AGE,
            "seconds",
            "monitor view",
            "Median age of the view's values when they were served, in the last bucket.",
        ),
        _gauge(
            VIEW_AGE_LIMIT, "seconds", "monitor view", "The view's `max_age`, where it has one."
        ),
        _gauge(
            VIEW_STALE,
            "0 or 1",
            "monitor view",
            "1 when the view's median age is over its `max_age`, or most requests found no value.",
        ),
        _gauge(
            AUDIT_AT, _CLOCK_TIME, "monitor", "End of the last audit of the store's invariants."
        ),
        _gauge(
            AUDIT_INTERVAL, "seconds", "monitor", "Time between audits, where they are asked for."
        ),
        _gauge(
            AUDIT_HOLDS,
            "0 or 1",
            "monitor invariant subject",
            "Whether the invariant held: something was compared and all of it was the same.",
        ),
        _gauge(
            AUDIT_VOID,
            "0 or 1",
            "monitor invariant subject",
            "Whether the check showed nothing: there was nothing, or not all, to compare.",
        ),
        _gauge(AUDIT_CELLS, "cells", "monitor invariant subject", "Cells that were compared."),
        _gauge(
            AUDIT_MISMATCHES,
            "cells",
            "monitor invariant subject kind",
            "Cells that differed between serving and training, by the kind of skew.",
        ),
        _gauge(
            AUDIT_SKEW,
            "cells",
            "monitor invariant subject feature kind",
            f"Which features these cells are of; only features with any, and the {MOST_SKEWED} "
            "largest counts.",
        ),
        *(figure(PERFORMANCE, name, one.unit) for name, one in MEASURES.items()),
        *(figure(PERFORMANCE_REFERENCE, name, one.unit) for name, one in MEASURES.items()),
        *(figure(PERFORMANCE_ESTIMATED, name, MEASURES[name].unit) for name in ESTIMATED_FIGURES),
        _gauge(
            PERFORMANCE_BOUND,
            "the figure's",
            "monitor figure side",
            "Ends of the 95 % interval of a live figure, for rows that are drawn independently.",
        ),
        _gauge(
            PERFORMANCE_ERROR,
            "the figure's",
            "monitor figure",
            "The last estimate that could be compared, less what the labels then said.",
        ),
        _gauge(
            PERFORMANCE_DROP,
            "ratio",
            "monitor basis",
            "How much worse than on the hold-out the deciding figure is, over `max_drop`: by the "
            "labels, or by the estimate.",
        ),
        _gauge(PERFORMANCE_ROWS, "rows", "monitor", "Labelled rows behind the live figures."),
        _gauge(PERFORMANCE_END, _EVENT_TIME, "monitor", "End of the window of the live figures."),
        _gauge(SEGMENT_ROWS, "rows", "monitor column value", "Rows of a segment in the window."),
        _gauge(
            SEGMENT_RATIO,
            "ratio",
            "monitor column value",
            "Furthest feature of a segment from the reference's rows of it, over its threshold.",
        ),
        _gauge(
            SEGMENT_PERFORMANCE,
            "the figure's",
            "monitor column value figure",
            "The deciding figure on a segment's rows whose labels are in.",
        ),
        _gauge(EPISODES_OPEN, "episodes", "monitor kind", "Episodes that are open."),
        _gauge(
            EPISODE_OPENED,
            _EVENT_TIME,
            "monitor kind",
            "End of the window on which the oldest open episode opened; absent when none is open.",
        ),
        _gauge(
            EPISODE_ACKNOWLEDGED,
            "0 or 1",
            "monitor kind",
            "Whether a person has acknowledged every open episode; absent when none is open.",
        ),
        _counter(
            DECISIONS, "decisions", "monitor outcome", "Decisions about retraining, by outcome."
        ),
        _gauge(TRIGGERS, "triggers", "monitor state", "The last 100 triggers, by state."),
        _gauge(RUNS, "runs", "monitor state", "Runs of the last 100 triggers, by state."),
        _gauge(
            RUN_CHANGED,
            _CLOCK_TIME,
            "monitor state",
            "When a run last came into the state that it is in now; absent when none is.",
        ),
        _gauge(
            GATE_VALUE,
            "the gate's",
            "monitor gate",
            "What the challenger of the last run measured, by the gate that looked at it.",
        ),
        _gauge(
            GATE_LIMIT,
            "the gate's",
            "monitor gate",
            "What it had to be: a limit of its own, or what the champion measured less a margin.",
        ),
        _gauge(GATE_PASSED, "0 or 1", "monitor gate", "Whether the last run passed the gate."),
        _gauge(
            GATE_CHAMPION,
            "the gate's",
            "monitor gate",
            "What the champion of then measured on the same rows; of gates that compare with it.",
        ),
        _gauge(OUTBOX_MESSAGES, "messages", "", "Triggers committed and not yet delivered."),
        _gauge(
            OUTBOX_OLDEST,
            _CLOCK_TIME,
            "",
            "When the oldest undelivered trigger was committed; absent when there is none.",
        ),
        _counter(OUTBOX_ATTEMPTS, "attempts", "", "Deliveries that were tried."),
        _gauge(OUTBOX_DEAD, "messages", "", "Triggers that were given up."),
        Described(
            JOB_SECONDS,
            Type.SUMMARY,
            "seconds",
            ("task",),
            "Runs of a job, and time spent in them.",
        ),
        _gauge(JOB_LAST_SECONDS, "seconds", "task", "Time that the last run of a job took."),
        _counter(JOB_FAILURES, "runs", "task", "Runs of a job that failed."),
        _counter(JOB_MISFIRES, "runs", "task", "Runs of a job that were left out."),
        _gauge(JOB_STARTED, _CLOCK_TIME, "task", "Start of the last run of a job."),
        _gauge(JOB_SUCCEEDED, _CLOCK_TIME, "task", "End of the last run of a job that succeeded."),
        _counter(ALERTS, "alerts", "", "Alerts sent, over the life of the ledger."),
        _counter(SNAPSHOTS, "snapshots", "monitor", "Buckets frozen."),
        _gauge(
            SNAPSHOTS_DAMAGED,
            "snapshots",
            "monitor",
            "Snapshots that are not as they were frozen, by the hash that the ledger keeps.",
        ),
        _counter(SNAPSHOT_ROWS, "rows", "monitor", "Rows in the frozen buckets."),
        _counter(
            SNAPSHOT_LATE_ROWS, "rows", "monitor", "Rows that came after their bucket was frozen."
        ),
    )
}
"""Every metric by its name, in the order of the exposition."""

SAMPLES: Mapping[str, Described] = {
    sample: one for one in METRICS.values() for sample in one.samples
}
"""Every name that a query may use, to its metric."""


_OF_NUMBERS = {one.name for one in measures_of(Task.REGRESSION)}


def _missing(name: str) -> str:
    """Say for which monitors a measure has a sample; empty if for all that have labels."""
    if name in _OF_NUMBERS:
        return "for a model that predicts numbers"
    return "" if name in PERFORMANCE_FIGURES else "where the labels, or the run, give it"


SPARSE: Mapping[str, str] = {
    FEATURE_UNWATCHED: "for columns that are left out for what they are",
    MONITOR_INCIDENT_OPENED: "while an incident of the kind is open",
    DRIFT_OPENED: "while drift of the feature is open",
    EPISODE_OPENED: "while an episode of the kind is open",
    EPISODE_ACKNOWLEDGED: "while an episode of the kind is open",
    OUTBOX_OLDEST: "while a trigger waits to be delivered",
    RUN_CHANGED: "for the states that a run is in",
    VIEW_AGE_LIMIT: "for views with a `max_age`",
    VIEW_STALE: "for views with a `max_age`",
    AUDIT_SKEW: "for features that serving and training disagree about",
    PERFORMANCE_BOUND: "for the figures of the model's task",
    **{
        prefix + name: _missing(name)
        for name in MEASURES
        if _missing(name)
        for prefix in (PERFORMANCE, PERFORMANCE_REFERENCE, PERFORMANCE_ESTIMATED)
        if prefix + name in METRICS
    },
    **{
        distance(name, "").name: "for features whose verdict it decided"
        for name in (*STATISTICS, SHIFT, *SHARES)
    },
    **{distance(name, "").name: "for monitors with `multivariate: true`" for name in NAMES},
}
"""Metrics that a healthy daemon may have no sample of, and when there is one.

A panel or a rule may be without data for these and for no others: the tests ask every query of
the demo's Prometheus.
"""


def document() -> str:
    """Return `docs/metrics.md`: every metric in a table, and which may have no sample."""
    rows = (
        f"| `{one.name}` | {one.type} | {one.unit} | "
        f"{', '.join(f'`{label}`' for label in one.labels)} | {one.help} |"
        for one in METRICS.values()
    )
    sparse = (f"| `{name}` | {when} |" for name, when in SPARSE.items())
    return "\n".join((_DOCUMENT.strip(), *rows, _SPARSE.rstrip(), *sparse, ""))


_DOCUMENT = f"""
# Metrics

<!-- Built from monitor/exporter/metrics.py by grafana/build.py; edit there. -->

What the daemon exports on `/metrics`, beside the `process_` metrics of its own process. Every
figure is read off the last committed state at the time of the scrape.

- What has no value has no sample: no data is never a zero. What is no longer configured is no
  longer exported.
- Event time is the data's clock: in a replay it is not the time of the scrape. Wall clock is
  the daemon's.
- `source` is a feature view, `served`, `predictions` or `labels`, or `joint` for the looks
  at all features together. A watched feature has at most {SERIES_PER_FEATURE} series, and one more
  if its impact is among the {MOST_IMPACTS} highest.
- The {MOST_SPREADS} features of a monitor that matter most have their distributions: two sides of
  at most {MOST_BARS} bins each. Those of open episodes come first, then the highest ratios. It is
  a fixed number, because it would be most of all series otherwise: of 2,000 features, all series
  together are fewer than 12 a feature. A bin is named by its values, so a new reference brings new
  names.
- Of a monitor with more, the {MOST_FEATURES:,} features that matter most are exported; the ledger
  and `status --json` have all. What is left out is counted as `{SERIES_SUPPRESSED}`.
- A column that a monitor splits by has at most {MOST} values, the last of them `{OTHERS}`, and
  {SERIES_PER_SEGMENT} series for each. What else is known of a segment is on the page and in
  `status --json`: a series for each feature of each segment would be a thousand a monitor.
- A measure of one's own is exported as `{PERFORMANCE}` and its name, like ours.
- A statistic that an installed package registers is exported as `{DRIFT}` and its name.

| name | type | unit | labels | meaning |
| --- | --- | --- | --- | --- |
"""

_SPARSE = """
## When there is a sample

A panel without data can be good news. A healthy daemon has a sample of every metric above, but of
these only at times; the panels that ask for them are the ones that may be empty.

| name | there is a sample |
| --- | --- |
"""
