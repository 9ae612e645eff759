"""The Prometheus rules: when a person is called, and what they are told.

Beside `boards`; `build` writes them. Made of names from `monitor.exporter.metrics`, like every
query. The daemon decides what drift is; a rule only carries its decision to Prometheus, and watches
what the daemon cannot say of itself, above all that it is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from steadfeast.monitor.exporter import metrics as m

RUNBOOK = "docs/runbook.md"
OVERVIEW = "/d/steadfeast-overview"
OPERATIONS = "/d/steadfeast-operations"
MODEL = "/d/steadfeast-model"

STALE_SECONDS = 900
"""A job that has not ended well for this long is stale: thirty times the usual tick."""

UNDELIVERED_SECONDS = 600
"""A trigger that waits this long has outlived the restart of a pipeline."""

OBJECTIVE = 0.99
"""Share of the time in which the values of a view with a `max_age` are to be fresh."""

ALLOWED_STALE = round(1 - OBJECTIVE, 6)

STALE_SPANS = ("5m", "30m", "1h", "6h", "3d")
RECORDED = {
    f"steadfeast:view_stale:ratio_{span}": f"avg_over_time({m.VIEW_STALE}[{span}])"
    for span in STALE_SPANS
}
"""Recording rules: name to expression."""

BURN_RATES = (
    # name, times the allowed rate, long and short span, severity; the spans and rates are those
    # of Beyer et al. (2018), The Site Reliability Workbook, ch. 5: 2 %, 5 % and 10 % of a month.
    ("Fast", 14.4, "1h", "5m", "critical"),
    ("Medium", 6.0, "6h", "30m", "critical"),
    ("Slow", 1.0, "3d", "6h", "warning"),
)

SKEWED = (
    '{{ range $i, $one := printf "topk(3, sum by (feature) ('
    + m.AUDIT_SKEW
    + '{monitor=%q, invariant=%q, subject=%q}))" $labels.monitor $labels.invariant '
    "$labels.subject | query }}{{ if $i }},{{ else }}; most in{{ end }} {{ .Labels.feature }} "
    "({{ .Value }}){{ end }}"
)
"""Template that names the features that an invariant fails for, the three worst."""

HEAD = "# Built by grafana/build.py; edit grafana/alerts.py.\n"


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert; `lasting` is Prometheus's `for`."""

    name: str
    expr: str
    lasting: str
    severity: str
    summary: str
    description: str
    dashboard: str

    def as_rule(self) -> dict[str, object]:
        """Return the rule as Prometheus writes it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook": f"{RUNBOOK}#{self.name.lower()}",
                "dashboard": self.dashboard,
            },
        }


ALERTS = (
    Rule(
        name="SteadfeastAbsent",
        expr=f"absent({m.BUILD_INFO})",
        lasting="5m",
        severity="critical",
        summary="No Steadfeast daemon is scraped",
        description="Nothing watches the features: no drift, no incident and no trigger will be "
        "seen until the daemon is back.",
        dashboard=OPERATIONS,
    ),
    Rule(
        name="SteadfeastDataIncident",
        expr=f"sum by (monitor, kind) ({m.MONITOR_INCIDENTS}) > 0",
        lasting="0m",
        severity="critical",
        summary="Broken data in {{ $labels.monitor }}: {{ $labels.kind }}",
        description="{{ $value }} open of kind {{ $labels.kind }}. The model's retraining is "
        "blocked until a bucket comes in whole.",
        dashboard=OVERVIEW,
    ),
    Rule(
        name="SteadfeastInvariantViolated",
        expr=f'sum by (monitor, invariant, subject) ({m.AUDIT_MISMATCHES}{{invariant!="I11"}}) > 0',
        lasting="0m",
        severity="critical",
        summary="Serving and training disagree: {{ $labels.invariant }} of {{ $labels.subject }}",
        description="The last audit found {{ $value }} cells that differ"
        + SKEWED
        + ". Neither the drift "
        "figures nor a retraining can be trusted before it is explained.",
        dashboard=OVERVIEW,
    ),
    Rule(
        name="SteadfeastLogDrops",
        expr=f'sum by (monitor, subject) ({m.AUDIT_MISMATCHES}{{invariant="I11"}}) > 0',
        lasting="0m",
        severity="warning",
        summary="The served log of {{ $labels.subject }} is not whole",
        description="{{ $value }} vectors are lost or logged twice, or labels are of requests that "
        "are not there; the audit says which. What is measured on it is of the rows that are left.",
        dashboard=OPERATIONS,
    ),
    Rule(
        name="SteadfeastAuditStale",
        expr=f"time() - {m.AUDIT_AT} > 2 * {m.AUDIT_INTERVAL} or {m.AUDIT_INTERVAL} unless "
        f"on (monitor) {m.AUDIT_AT}",
        lasting="15m",
        severity="warning",
        summary="The invariants of {{ $labels.monitor }} are not being checked",
        description="No audit has come to its end for twice its interval; the daemon's log says "
        "why.",
        dashboard=OVERVIEW,
    ),
    Rule(
        name="SteadfeastSnapshotDamaged",
        expr=f"{m.SNAPSHOTS_DAMAGED} > 0",
        lasting="0m",
        severity="warning",
        summary="Snapshots of {{ $labels.monitor }} are damaged",
        description="{{ $value }} files are not as they were frozen; the daemon's log and "
        "`steadfeast monitor status` name them. A bucket that has to be counted anew from one "
        "stops the monitor.",
        dashboard=OPERATIONS,
    ),
    Rule(
        name="SteadfeastPerformanceDrop",
        expr=f'{m.EPISODES_OPEN}{{kind="performance"}} > 0',
        lasting="0m",
        severity="critical",
        summary="The live model of {{ $labels.monitor }} does worse than when it was trained",
        description="The drop has lasted for enough windows to open an episode.",
        dashboard=MODEL,
    ),
    Rule(
        name="SteadfeastEstimatedDrop",
        expr=f'{m.PERFORMANCE_DROP}{{basis="estimate"}} > 1',
        lasting="1h",
        severity="warning",
        summary="The live model of {{ $labels.monitor }} is thought to do worse than when trained",
        description="By its scores on the current rows the fall is {{ $value | humanize }} times "
        "`max_drop`. The labels are not in yet, and no retraining is asked for by an estimate.",
        dashboard=MODEL,
    ),
    Rule(
        name="SteadfeastDriftEpisode",
        expr=f"{m.DRIFT_OPENED} > 0",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.feature }} of {{ $labels.monitor }} has moved away from the reference",
        description="It was over its limit for enough windows to open an episode. Group by "
        "`monitor` to be notified once of what began together.",
        dashboard=OVERVIEW,
    ),
    Rule(
        name="SteadfeastNoVerdict",
        expr=f"count by (monitor) ({m.DRIFT_LEVEL} == 1) == count by (monitor) ({m.DRIFT_LEVEL}) "
        f"unless on (monitor) {m.MONITOR_SUPERSEDED} == 1",
        lasting="1h",
        severity="warning",
        summary="No feature of {{ $labels.monitor }} can be judged",
        description="All {{ $value }} features have too little data for a verdict. That is not "
        "the same as no drift: nothing is watched.",
        dashboard=OVERVIEW,
    ),
    Rule(
        name="SteadfeastRetrainBlocked",
        expr=f"{m.MONITOR_BLOCKED} == 1 and on (monitor) sum by (monitor) ({m.EPISODES_OPEN}) > 0",
        lasting="1h",
        severity="warning",
        summary="The model of {{ $labels.monitor }} should be retrained and must not be",
        description="An episode is open and broken data block the retraining.",
        dashboard=OVERVIEW,
    ),
    Rule(
        name="SteadfeastRetrainFailed",
        expr=f'max by (monitor) ({m.RUN_CHANGED}{{state="failed"}}) > '
        f'(max by (monitor) ({m.RUN_CHANGED}{{state=~"promoted|refused"}}) or '
        f'0 * max by (monitor) ({m.RUN_CHANGED}{{state="failed"}}))',
        lasting="0m",
        severity="warning",
        summary="The last retraining for {{ $labels.monitor }} failed",
        description="The run ended FAILED, which is neither a promotion nor a refusal. The old "
        "model stays live.",
        dashboard=MODEL,
    ),
    Rule(
        name="SteadfeastTriggerWaiting",
        expr=f'{m.TRIGGERS}{{state="waiting"}} > 0',
        lasting="1h",
        severity="warning",
        summary="A retraining for {{ $labels.monitor }} waits for a person",
        description="The monitor asks for approval; nobody has decided yet.",
        dashboard=MODEL,
    ),
    Rule(
        name="SteadfeastOutboxStuck",
        expr=f"time() - {m.OUTBOX_OLDEST} > {UNDELIVERED_SECONDS}",
        lasting="1m",
        severity="warning",
        summary="A retrain trigger is not delivered",
        description="The oldest has waited for {{ $value | humanizeDuration }}; the pipeline "
        "does not answer or is not reached.",
        dashboard=OPERATIONS,
    ),
    Rule(
        name="SteadfeastTriggerGivenUp",
        expr=f"{m.OUTBOX_DEAD} > 0",
        lasting="0m",
        severity="critical",
        summary="A retrain trigger was given up",
        description="The pipeline refused it for good. It is kept and shown until a person acts.",
        dashboard=OPERATIONS,
    ),
    Rule(
        name="SteadfeastJobStale",
        expr=f"time() - {m.JOB_SUCCEEDED} > {STALE_SECONDS}",
        lasting="1m",
        severity="critical",
        summary="Job {{ $labels.task }} has not ended well for {{ $value | humanizeDuration }}",
        description="What the daemon shows is as old as that.",
        dashboard=OPERATIONS,
    ),
    Rule(
        name="SteadfeastJobFailing",
        expr=f"increase({m.JOB_FAILURES}[15m]) > 3",
        lasting="0m",
        severity="warning",
        summary="Job {{ $labels.task }} fails again and again",
        description="{{ $value | humanize }} failures in a quarter of an hour; the daemon's log "
        "says why.",
        dashboard=OPERATIONS,
    ),
    Rule(
        name="SteadfeastConfigRejected",
        expr=f'increase({m.RELOADS}{{result="rejected"}}[15m]) > 0',
        lasting="0m",
        severity="warning",
        summary="A new configuration was refused",
        description="The daemon goes on with the old one; its log names file, field and problem.",
        dashboard=OPERATIONS,
    ),
)


def _burn(name: str, times: float, long: str, short: str, severity: str) -> Rule:
    """Alert when a view burns its budget of stale time, over a long and still over a short span."""
    over = f"{times * ALLOWED_STALE:g}"
    ratio = "steadfeast:view_stale:ratio_"
    return Rule(
        name=f"SteadfeastFreshnessBurn{name}",
        expr=f"{ratio}{long} > {over} and {ratio}{short} > {over}",
        lasting="0m",
        severity=severity,
        summary="View {{ $labels.view }} of {{ $labels.monitor }} is served stale",
        description=f"Over the last {long} it was older than its `max_age` for "
        "{{ $value | humanizePercentage }} of the time, which burns the budget of "
        f"{ALLOWED_STALE:.0%} {times:g} times too fast.",
        dashboard=OVERVIEW,
    )


def rules() -> str:
    """Return the text of the rule file."""
    recorded = [{"record": name, "expr": expr} for name, expr in RECORDED.items()]
    alerts = [*ALERTS, *(_burn(*rate) for rate in BURN_RATES)]
    # One group, because within a group the recorded come before what reads them.
    all_of_them = [*recorded, *(rule.as_rule() for rule in alerts)]
    groups = {"groups": [{"name": "steadfeast", "rules": all_of_them}]}
    return HEAD + yaml.safe_dump(groups, sort_keys=False, width=100)
