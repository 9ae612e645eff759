"""What all dashboards share: variables, links, annotations, and how panels are numbered.

Above `panels`; the four dashboards stand on it. Variables are chained: the Feast project names its
models, a model its monitors, a monitor its features and views. Only the info metric of a monitor
carries project and model; every panel asks by `monitor`, which follows from the choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from panels import SOURCE, query

from steadfeast.monitor.exporter import metrics as m

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG = "steadfeast"
MONITOR = '{monitor=~"$monitor"}'
FEATURE = '{monitor=~"$monitor", feature=~"$feature"}'
VIEW = '{monitor=~"$monitor", view=~"$view"}'
ISO_TIME = "dateTimeAsIso"


def board(name: str, title: str, description: str, *, features: bool) -> dashboard.Dashboard:
    """Return an empty dashboard with what all share: variables, links, annotations."""
    made = (
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
        .with_variable(_variable("project", f"label_values({m.MONITOR_INFO}, project)"))
        .with_variable(
            _variable("model", f'label_values({m.MONITOR_INFO}{{project=~"$project"}}, model)')
        )
        .with_variable(
            _variable(
                "monitor",
                f'label_values({m.MONITOR_INFO}{{project=~"$project", model=~"$model"}}, monitor)',
            )
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
        made.with_variable(_variable("view", f"label_values({m.VIEW_AGE}{MONITOR}, view)"))
    if features:
        labels = f"label_values({m.DRIFT_LEVEL}{MONITOR}, feature)"
        made.with_variable(_variable("feature", labels, many=False))
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
        made.annotation(
            dashboard.AnnotationQuery()
            .name(label)
            .datasource(SOURCE)
            .enable(True)
            .icon_color(color)
            .target(query(expr).ref_id("A"))
        )
    return made


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


def filled(made: dashboard.Dashboard, panels: Sequence[Any]) -> Any:
    """Add the panels in order, numbered, their queries lettered."""
    for number, panel in enumerate(panels, start=1):
        built = panel.id(number).build()
        for letter, target in zip("ABCDEFGH", built.targets or [], strict=False):
            target.ref_id = letter
        made.with_panel(panel)
    return made.build()
