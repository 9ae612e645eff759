"""The four dashboards: Overview, Feature, Model, Operations.

Above `panels`; `build` writes them. Every query is made of names from `monitor.metrics`, and from
`featurestore.edge` for what `steadfeast store serve` exports. The order on each is that of a
person called at three in the morning: what is wrong, since when, how bad, what has already
happened.

Event time is the data's clock: ages of data are taken against the latest event that the daemon
has seen, so that a replay of last year does not look a year late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alerts import ALLOWED_STALE
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from panels import (
    ANY_IS_BAD,
    RATIO_STEPS,
    SOURCE,
    bars,
    figure,
    history,
    lines,
    query,
    rows,
    shares,
    states,
)

from featurestore import edge
from monitor import metrics as m
from monitor.statistics import STATISTICS

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG = "steadfeast"
MONITOR = '{monitor=~"$monitor"}'
FEATURE = '{monitor=~"$monitor", feature=~"$feature"}'
VIEW = '{monitor=~"$monitor", view=~"$view"}'
ISO_TIME = "dateTimeAsIso"

LEVELS = {
    0.0: ("within limit", "green"),
    1.0: ("too little data", "text"),
    2.0: ("over limit", "red"),
    3.0: ("broken", "dark-purple"),
}
"""Value of `DRIFT_LEVEL` to its name and colour."""

STALE_RATIO = "steadfeast:view_stale:ratio_"
"""Recorded by `alerts`; the span follows."""

YES_IS_BAD = {0.0: ("no", "green"), 1.0: ("yes", "red")}

NOT_SHOWN = {
    m.REFERENCE_START: "the page shows the reference's stretch; the dashboards its end and rows",
    m.WINDOW_START: "follows from the window's end and its configured length",
    m.MONITOR_LATEST_EVENT: "the lag on Operations is against the latest event of all monitors",
    m.AUDIT_INTERVAL: "the alert on stale audits reads it; the time since the last is shown",
    m.VIEW_STALE: "its shares over time are shown, recorded by grafana/rules",
    m.JOB_STARTED: "the last success says more; kept for alerts of one's own",
}
"""Metrics that no dashboard shows, and why."""


def overview() -> Any:
    """Return the first dashboard to look at."""
    board = _board("overview", "Overview", "What is wrong, since when, how bad.", features=False)
    worst = f"max by (monitor, feature) ({m.DRIFT_RATIO}{MONITOR})"
    incidents = f"sum({m.MONITOR_INCIDENTS}{MONITOR})"
    return _filled(
        board,
        [
            figure(
                "Open episodes",
                "Drift and performance episodes that are open.",
                f"sum({m.EPISODES_OPEN}{MONITOR})",
                steps=ANY_IS_BAD,
            ),
            figure(
                "Data incidents",
                "Null bursts, stale views, schema breaks, missing data. While one is open, "
                "retraining is blocked.",
                incidents,
                steps=ANY_IS_BAD,
            ),
            figure(
                "Features over limit",
                "Features whose last window is over its threshold. An episode opens when enough "
                "windows are.",
                f"count({m.DRIFT_RATIO}{MONITOR} > 1) or vector(0)",
                steps=((None, "green"), (1.0, "orange")),
            ),
            figure(
                "Features without a verdict",
                "Too little data to judge: that is not the same as no drift.",
                f"count({m.DRIFT_LEVEL}{MONITOR} == 1) or vector(0)",
                steps=((None, "green"), (1.0, "yellow")),
            ),
            figure(
                "Retraining blocked",
                "Whether broken data block the retraining of a model.",
                f"max({m.MONITOR_BLOCKED}{MONITOR})",
                names=YES_IS_BAD,
            ),
            figure(
                "Triggers given up",
                "Triggers that the pipeline would not take; a person must re-send them.",
                m.OUTBOX_DEAD,
                steps=ANY_IS_BAD,
            ),
            figure(
                "Invariants violated",
                "Checks of the last audit that do not hold: serving and training disagree, or "
                "nothing could be compared. No data means that no audit is configured.",
                f"count({m.AUDIT_HOLDS}{MONITOR} == 0) or 0 * count({m.AUDIT_HOLDS}{MONITOR})",
                steps=ANY_IS_BAD,
                width=6,
            ),
            figure(
                "Since the last audit",
                "How long ago the invariants were last checked; the alert comes at twice the "
                "configured interval.",
                f"max(time() - {m.AUDIT_AT}{MONITOR})",
                unit="s",
                width=6,
            ),
            figure(
                "Freshness budget burnt, last hour",
                "How many times faster than allowed values were served stale, over the last hour; "
                "1 uses up the budget exactly, the alerts come at 14.4, 6 and 1.",
                f"max({STALE_RATIO}1h{MONITOR}) / {ALLOWED_STALE}",
                steps=((None, "green"), (1.0, "yellow"), (6.0, "orange"), (14.4, "red")),
                width=6,
            ),
            figure(
                "Judged against a former model",
                "Yes from a promotion to the next bucket: no verdict is about the live model yet.",
                f"max({m.MONITOR_SUPERSEDED}{MONITOR})",
                names={0.0: ("no", "green"), 1.0: ("yes", "blue")},
                width=6,
            ),
            history(
                "Distance from the reference, in multiples of the limit",
                "Ratio of the deciding statistic to its calibrated threshold, by feature; red is "
                "over the limit.",
                query(worst, "{{monitor}} {{feature}}"),
                steps=RATIO_STEPS,
            ),
            bars(
                "Furthest features",
                "The ten features furthest from the reference, in multiples of their limit.",
                f"topk(10, {worst})",
                "{{monitor}} {{feature}}",
                steps=RATIO_STEPS,
            ),
            rows(
                "Open episodes",
                "Since when (event time), and whether a person has acknowledged it.",
                query(f"{m.EPISODE_OPENED}{MONITOR} * 1000", instant=True),
                query(f"{m.EPISODE_ACKNOWLEDGED}{MONITOR}", instant=True),
                renamed={"Value #A": "opened", "Value #B": "acknowledged"},
                units={"opened": ISO_TIME, "acknowledged": "bool_yes_no"},
                height=5,
            ),
            rows(
                "Open data incidents",
                "Since when data are broken (event time), by kind.",
                query(f"{m.MONITOR_INCIDENT_OPENED}{MONITOR} * 1000", instant=True),
                renamed={"Value": "first seen"},
                units={"first seen": ISO_TIME},
                height=5,
            ),
            rows(
                "Invariants",
                "What the last audit compared, and what differed.",
                query(f"{m.AUDIT_CELLS}{MONITOR}", instant=True),
                query(f"{m.AUDIT_HOLDS}{MONITOR}", instant=True),
                renamed={"Value #A": "cells", "Value #B": "holds"},
                units={"holds": "bool_yes_no"},
                height=5,
            ),
            rows(
                "Firing alerts",
                "Prometheus's own, from the rules in grafana/rules; each links its runbook.",
                query('ALERTS{alertname=~"Steadfeast.*", alertstate="firing"}', instant=True),
                renamed={"Value": "firing"},
                height=5,
            ),
            lines(
                "Age of served values",
                "Median age of a feature view's values when they were served, in the last bucket, "
                "and its `max_age` where it has one.",
                query(f"{m.VIEW_AGE}{VIEW}", "{{monitor}} {{view}}"),
                query(f"{m.VIEW_AGE_LIMIT}{VIEW}", "limit of {{monitor}} {{view}}"),
                unit="s",
            ),
            lines(
                "Stale views",
                "Share of the time in which a view was over its `max_age`, over an hour, six hours "
                "and three days.",
                *(
                    query(f"{STALE_RATIO}{span}{VIEW}", f"{{{{view}}}} {span}")
                    for span in ("1h", "6h", "3d")
                ),
                unit="percentunit",
            ),
            lines(
                "Newest value behind the latest event",
                "How far the newest value served from a view is behind the latest event.",
                query(f"scalar({m.LATEST_EVENT}) - {m.VIEW_LATEST}{VIEW}", "{{monitor}} {{view}}"),
                unit="s",
                minimum=None,
            ),
        ],
    )


def feature() -> Any:
    """Return the dashboard of one feature, or of a few beside each other."""
    board = _board("feature", "Feature", "How one feature moved.", features=True)
    statistics = "|".join(m.DRIFT + name for name in STATISTICS)
    return _filled(
        board,
        [
            lines(
                "Ratio to the limit",
                "Deciding statistic over its threshold. Above 1 is over the limit; below 0.8 for "
                "enough windows closes an episode.",
                query(f"{m.DRIFT_RATIO}{FEATURE}", "{{monitor}} {{feature}}"),
                steps=RATIO_STEPS,
            ),
            lines(
                "Statistic and its limit",
                "The distance in the statistic's own unit, and the calibrated threshold.",
                query(
                    f'{{__name__=~"{statistics}", monitor=~"$monitor", feature=~"$feature"}}',
                    "{{__name__}} {{feature}}",
                ),
                query(f"{m.DRIFT_THRESHOLD}{FEATURE}", "limit of {{statistic}} {{feature}}"),
            ),
            shares(
                "Reference against current",
                "Share of the rows by value: the groups that the deciding statistic sums over, "
                "with null and NaN as groups of their own.",
                f"{m.FEATURE_SHARE}{FEATURE}",
                by="side",
                across="bin",
            ),
            states(
                "Verdict",
                "What each window was judged to be.",
                query(f"{m.DRIFT_LEVEL}{FEATURE}", "{{monitor}} {{feature}}"),
                names=LEVELS,
                height=6,
            ),
            lines(
                "Unusable values",
                "Shares of the current window's rows that are null, NaN, infinite, of another "
                "type, or outside what the reference has.",
                *(
                    query(f"{name}{FEATURE}", f"{{{{feature}}}} {word}")
                    for name, word in (
                        (m.FEATURE_NULLS, "null"),
                        (m.FEATURE_NANS, "NaN"),
                        (m.FEATURE_INFINITIES, "infinite"),
                        (m.FEATURE_MISTYPED, "other type"),
                        (m.FEATURE_UNSEEN, "not in the reference"),
                    )
                ),
                unit="percentunit",
            ),
            lines(
                "Rows",
                "Rows of the current window in which the feature was there, of the window, and of "
                "the reference.",
                query(f"{m.FEATURE_ROWS}{FEATURE}", "{{feature}}"),
                query(f"{m.WINDOW_ROWS}{MONITOR}", "window of {{monitor}}"),
                query(f"{m.REFERENCE_ROWS}{MONITOR}", "reference of {{monitor}}"),
            ),
            lines(
                "Skew by kind",
                "Cells in which serving and training differed in the last audit, by kind of skew; "
                "of the monitor's service, not of one feature.",
                query(
                    f"{m.AUDIT_MISMATCHES}{MONITOR}",
                    "{{invariant}} {{subject}} {{kind}}",
                ),
                width=24,
            ),
            rows(
                "Windows",
                "End of the current window and of the reference (event time).",
                query(f"{m.WINDOW_END}{MONITOR} * 1000", instant=True),
                query(f"{m.REFERENCE_END}{MONITOR} * 1000", instant=True),
                renamed={"Value #A": "current window until", "Value #B": "reference until"},
                units={"current window until": ISO_TIME, "reference until": ISO_TIME},
                width=24,
                height=4,
            ),
        ],
    )


def model() -> Any:
    """Return the dashboard of the live models and their retraining."""
    board = _board("model", "Model", "How the live model does, and its retraining.", features=False)
    figures = [
        lines(
            name.replace("_", " "),
            f"Live model's {name} on the labels that are in, and what it had when it was trained.",
            query(f"{m.PERFORMANCE}{name}{MONITOR}", "{{monitor}} live"),
            query(f"{m.PERFORMANCE_REFERENCE}{name}{MONITOR}", "{{monitor}} when trained"),
            minimum=None,
            width=8,
        )
        for name in m.PERFORMANCE_FIGURES
    ]
    return _filled(
        board,
        [
            rows(
                "Live models",
                "Version and contract of the model that each monitor believes to be live.",
                query(f"{m.MONITOR_INFO}{MONITOR}", instant=True),
                renamed={"Value": "watched"},
                width=24,
                height=5,
            ),
            *figures,
            lines(
                "Labelled rows",
                "Rows behind the live figures; below the configured least there is no figure.",
                query(f"{m.PERFORMANCE_ROWS}{MONITOR}", "{{monitor}}"),
            ),
            rows(
                "Challenger against champion",
                "Gates of the last run that came to them: what the challenger measured, and what "
                "the champion or a limit asked for.",
                query(f"{m.GATE_VALUE}{MONITOR}", instant=True),
                query(f"{m.GATE_LIMIT}{MONITOR}", instant=True),
                query(f"{m.GATE_PASSED}{MONITOR}", instant=True),
                renamed={"Value #A": "challenger", "Value #B": "asked for", "Value #C": "passed"},
                units={"passed": "bool_yes_no"},
            ),
            rows(
                "Retrain history",
                "When a run last came into each state (wall clock), and how many runs are in it.",
                query(f"{m.RUN_CHANGED}{MONITOR} * 1000", instant=True),
                query(f"{m.RUNS}{MONITOR} > 0", instant=True),
                renamed={"Value #A": "last", "Value #B": "runs"},
                units={"last": ISO_TIME},
            ),
            lines(
                "Runs by state",
                "Runs of the last 100 triggers. Refused is a normal end: a gate kept the champion.",
                query(f"{m.RUNS}{MONITOR}", "{{monitor}} {{state}}"),
            ),
            lines(
                "Live figures behind the latest event",
                "How far the end of the window of the live figures is behind the latest event.",
                query(
                    f"scalar({m.LATEST_EVENT}) - {m.PERFORMANCE_END}{MONITOR}",
                    "{{monitor}}",
                ),
                unit="s",
                minimum=None,
            ),
        ],
    )


def operations() -> Any:
    """Return the dashboard of the daemon itself."""
    board = _board("operations", "Operations", "How the daemon does its work.", features=False)
    every = "[$__rate_interval]"
    return _filled(
        board,
        [
            rows(
                "Daemons",
                "Version of each daemon that is scraped.",
                query(m.BUILD_INFO, instant=True),
                renamed={"Value": "up"},
                width=8,
                height=4,
            ),
            figure(
                "At rest",
                "Yes when all closed buckets are evaluated, nothing is to deliver and no run "
                "goes on.",
                f"min({m.IDLE})",
                names={0.0: ("at work", "blue"), 1.0: ("yes", "green")},
            ),
            figure("To deliver", "Triggers committed and not yet delivered.", m.OUTBOX_MESSAGES),
            figure(
                "Oldest undelivered",
                "Age of the oldest trigger that is not yet delivered; no data means none.",
                f"time() - {m.OUTBOX_OLDEST}",
                unit="s",
                steps=((None, "green"), (600.0, "red")),
            ),
            figure("Alerts", "Alerts sent over the life of the ledger.", f"max({m.ALERTS})"),
            lines(
                "Since the last success",
                "Time since a job last ended well.",
                query(f"time() - {m.JOB_SUCCEEDED}", "{{task}}"),
                unit="s",
            ),
            lines(
                "Time in jobs",
                "Mean time of a job's runs, and that of the last one.",
                query(
                    f"rate({m.JOB_SECONDS}_sum{every}) / rate({m.JOB_SECONDS}_count{every})",
                    "{{task}} mean",
                ),
                query(m.JOB_LAST_SECONDS, "{{task}} last"),
                unit="s",
            ),
            lines(
                "Failed and left out",
                "Runs of jobs that failed, or that were left out because the last one still ran.",
                query(f"increase({m.JOB_FAILURES}{every})", "{{task}} failed"),
                query(f"increase({m.JOB_MISFIRES}{every})", "{{task}} left out"),
            ),
            lines(
                "Behind the latest event",
                "How far the last evaluated bucket is behind the latest event that was seen.",
                query(f"scalar({m.LATEST_EVENT}) - {m.MONITOR_WATERMARK}{MONITOR}", "{{monitor}}"),
                unit="s",
                minimum=None,
            ),
            lines(
                "Decisions",
                "Decisions about retraining, by outcome.",
                query(f"{m.DECISIONS}{MONITOR}", "{{monitor}} {{outcome}}"),
            ),
            lines(
                "Triggers",
                "The last 100 triggers, by state.",
                query(f"{m.TRIGGERS}{MONITOR}", "{{monitor}} {{state}}"),
            ),
            lines(
                "Deliveries tried",
                "Attempts to deliver a trigger; more than one a trigger means a pipeline that "
                "does not answer.",
                query(f"increase({m.OUTBOX_ATTEMPTS}{every})", "attempts"),
            ),
            lines(
                "Rows frozen",
                "Rows in snapshots, those that came too late for theirs, and snapshots.",
                query(f"increase({m.SNAPSHOT_ROWS}{MONITOR}{every})", "{{monitor}} rows"),
                query(f"increase({m.SNAPSHOT_LATE_ROWS}{MONITOR}{every})", "{{monitor}} late rows"),
                query(f"increase({m.SNAPSHOTS}{MONITOR}{every})", "{{monitor}} snapshots"),
            ),
            lines(
                "Configurations",
                "Configurations taken over on SIGHUP, and refused.",
                query(m.RELOADS, "{{result}}"),
            ),
            lines(
                "Requests for features",
                "Requests that the serving edges answered, by feature service and outcome.",
                query(
                    f"sum by (service, code) (rate({edge.REQUESTS}{every}))", "{{service}} {{code}}"
                ),
                unit="reqps",
            ),
            lines(
                "Time to answer",
                "Time in which 99 of 100 requests for features were answered, by feature service.",
                query(
                    "histogram_quantile(0.99, sum by (le, service) "
                    f"(rate({edge.DURATION}_bucket{every})))",
                    "{{service}} 99 %",
                ),
                unit="s",
            ),
            lines(
                "Rows served",
                "Entity rows that the serving edges answered, by feature service.",
                query(f"sum by (service) (rate({edge.ROWS}{every}))", "{{service}}"),
                unit="rowsps",
            ),
            lines(
                "Values served, by status",
                "Feature values by what was found: present, null, not found, or outside the TTL.",
                query(
                    f"sum by (service, status) (rate({edge.VALUES}{every}))",
                    "{{service}} {{status}}",
                ),
            ),
            lines(
                "Memory",
                "Resident memory of the daemon.",
                query(
                    "process_resident_memory_bytes and on (instance) " + m.BUILD_INFO, "resident"
                ),
                unit="bytes",
            ),
        ],
    )


def all_boards() -> dict[str, Any]:
    """Return every dashboard by its file's name."""
    return {
        "overview": overview(),
        "feature": feature(),
        "model": model(),
        "operations": operations(),
    }


def _board(name: str, title: str, description: str, *, features: bool) -> dashboard.Dashboard:
    """Return an empty dashboard with what all share: variables, links, annotations."""
    board = (
        dashboard.Dashboard(f"Steadfeast / {title}")
        .uid(f"{TAG}-{name}")
        .description(description)
        .tags([TAG])
        .timezone("utc")
        .time("now-24h", "now")
        .refresh("1m")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("model", f"label_values({m.MONITOR_INFO}, model)"))
        .with_variable(
            _variable("monitor", f'label_values({m.MONITOR_INFO}{{model=~"$model"}}, monitor)')
        )
        .link(
            dashboard.DashboardLink("Steadfeast")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    if name == "overview":
        board.with_variable(_variable("view", f"label_values({m.VIEW_AGE}{MONITOR}, view)"))
    if features:
        labels = f"label_values({m.DRIFT_LEVEL}{MONITOR}, feature)"
        board.with_variable(_variable("feature", labels, many=False))
    annotations = [
        (
            "Retraining asked for",
            "blue",
            f'changes({m.DECISIONS}{{monitor=~"$monitor", outcome="fired"}}[2m]) > 0',
        ),
        (
            "Daemon deployed",
            "purple",
            f"time() - process_start_time_seconds < 60 and on (instance) {m.BUILD_INFO}",
        ),
    ]
    for states_, color, label in (
        ("promoted", "green", "Promoted"),
        ("refused|failed|cancelled", "orange", "Retrained without promotion"),
    ):
        expr = f'time() - {m.RUN_CHANGED}{{monitor=~"$monitor", state=~"{states_}"}} < 60'
        annotations.append((label, color, expr))
    for label, color, expr in annotations:
        board.annotation(
            dashboard.AnnotationQuery()
            .name(label)
            .datasource(SOURCE)
            .enable(True)
            .icon_color(color)
            .target(query(expr).ref_id("A"))
        )
    return board


def _variable(name: str, labels: str, *, many: bool = True) -> dashboard.QueryVariable:
    """Return a variable of label values; with `many`, all of them are chosen at first."""
    variable = (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query({"query": labels, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(many)
        .include_all(many)
    )
    if many:
        everything = models.VariableOption(selected=True, text="All", value="$__all")
        variable.all_value(".*").current(everything)
    return variable


def _filled(board: dashboard.Dashboard, panels: Sequence[Any]) -> Any:
    """Add the panels in order, numbered, their queries lettered."""
    for number, panel in enumerate(panels, start=1):
        built = panel.id(number).build()
        for letter, target in zip("ABCDEFGH", built.targets or [], strict=False):
            target.ref_id = letter
        board.with_panel(panel)
    return board.build()
