"""The first dashboard to look at: what is wrong, since when, how bad.

On `frame` and `panels`.
"""

from __future__ import annotations

from typing import Any

from alerts import ALLOWED_STALE
from frame import ISO_TIME, MONITOR, VIEW, board, filled
from panels import ANY_IS_BAD, RATIO_STEPS, bars, figure, history, lines, query, rows

from steadfeast.monitor.exporter import metrics as m

STALE_RATIO = "steadfeast:view_stale:ratio_"
"""Recorded by `alerts`; the span follows."""

YES_IS_BAD = {0.0: ("no", "green"), 1.0: ("yes", "red")}


def overview() -> Any:
    """Return the first dashboard to look at."""
    made = board("overview", "Overview", "What is wrong, since when, how bad.", features=False)
    worst = f"max by (monitor, feature) ({m.DRIFT_RATIO}{MONITOR})"
    incidents = f"sum({m.MONITOR_INCIDENTS}{MONITOR})"
    return filled(
        made,
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
                "Features whose last window is over its threshold. An episode opens when it lasts.",
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
                "Checks of the last audit that fail: serving and training disagree. No data means "
                "that no audit is configured.",
                f"count({m.AUDIT_HOLDS}{MONITOR} == 0 unless {m.AUDIT_VOID}{MONITOR} == 1) "
                f"or 0 * count({m.AUDIT_HOLDS}{MONITOR})",
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
                "Features with open drift",
                "Since when (event time) each of them is away from the reference.",
                query(f"{m.DRIFT_OPENED}{MONITOR} * 1000", instant=True),
                renamed={"Value": "since"},
                units={"since": ISO_TIME},
                height=5,
            ),
            rows(
                "Open episodes",
                "By kind: since when the oldest is open (event time), and whether a person has "
                "acknowledged all of them.",
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
                "What the last audit compared, and whether it holds; void is a check that had "
                "nothing, or not all, to compare.",
                query(f"{m.AUDIT_CELLS}{MONITOR}", instant=True),
                query(f"{m.AUDIT_HOLDS}{MONITOR}", instant=True),
                query(f"{m.AUDIT_VOID}{MONITOR}", instant=True),
                renamed={"Value #A": "cells", "Value #B": "holds", "Value #C": "void"},
                units={"holds": "bool_yes_no", "void": "bool_yes_no"},
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
