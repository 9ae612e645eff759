"""The five dashboards: Overview, Feature, Model, Serving, Operations.

Above the module of each; `build` writes them. Every query is made of names from
`monitor.exporter.metrics`, and from `featurestore.server.metrics` and `pipeline.inference.metrics`
for what the edges export. The order on each is that of a person called at three in the morning:
what is wrong, since when, how bad, what has already happened.

Event time is the data's clock: ages of data are taken against the latest event that the daemon
has seen, so that a replay of last year does not look a year late.
"""

from __future__ import annotations

from typing import Any

from feature import feature
from model import model
from operations import operations
from overview import overview
from serving import serving

from steadfeast.measures import MEASURES
from steadfeast.monitor.exporter import metrics as m

NOT_SHOWN = {
    m.MONITOR_JUDGED: "features without a verdict are shown; kept for alerts of one's own",
    m.MONITOR_QUARANTINED: "many are a data incident, which is shown; the page has examples",
    m.FEATURE_UNWATCHED: "the page and `status` list the columns with their reasons",
    m.REFERENCE_START: "the page shows the reference's stretch; the dashboards its end and rows",
    m.WINDOW_START: "follows from the window's end and its configured length",
    m.MONITOR_LATEST_EVENT: "the lag on Operations is against the latest event of all monitors",
    m.AUDIT_INTERVAL: "the alert on stale audits reads it; the time since the last is shown",
    m.VIEW_STALE: "its shares over time are shown, recorded by grafana/rules",
    m.SERIES_SUPPRESSED: f"0 up to {m.MOST_SPREADS} features; says what `/metrics` leaves out",
    m.JOB_STARTED: "the last success says more; kept for alerts of one's own",
    **{
        prefix + name: "the page shows every measure; the dashboards those that are estimated too"
        for name in MEASURES
        if name not in m.PERFORMANCE_FIGURES
        for prefix in (m.PERFORMANCE, m.PERFORMANCE_REFERENCE)
    },
}
"""Metrics that no dashboard shows, and why."""


def all_boards() -> dict[str, Any]:
    """Return every dashboard by its file's name."""
    return {
        "overview": overview(),
        "feature": feature(),
        "model": model(),
        "serving": serving(),
        "operations": operations(),
    }
