"""The few kinds of panel that the dashboards are made of.

Bottom of `grafana`: titles, queries and limits in, builders of grafana-foundation-sdk out. What
all panels of a kind share (data source, colours, legends) stands here once; what one panel
shows stands in `boards`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.builders import (
    barchart,
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    statushistory,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Steps = Sequence[tuple[float | None, str]]

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

RATIO_STEPS = ((None, "green"), (0.8, "yellow"), (1.0, "red"))
"""Colours of a ratio of value to threshold: 0.8 is where an episode may close, 1 is the limit."""

ANY_IS_BAD = ((None, "green"), (1.0, "red"))
"""Colours of a count that should be 0."""

PLAIN = ((None, "blue"),)
"""One colour: neither good nor bad."""


def query(expr: str, legend: str = "", *, instant: bool = False) -> prometheus.Dataquery:
    """Return one query; `instant` asks for the newest values only, as a table."""
    built = prometheus.Dataquery().datasource(SOURCE).expr(expr).legend_format(legend or "__auto")
    if instant:
        return built.instant().format(PromQueryFormat.TABLE)
    return built.range()


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _mappings(names: Mapping[float, tuple[str, str]]) -> list[Any]:
    """Return the mapping of values to (text, colour)."""
    results = {
        f"{value:g}": models.ValueMappingResult(text=text, color=color, index=i)
        for i, (value, (text, color)) in enumerate(names.items())
    }
    return [models.ValueMap(options=results)]


def _common(panel: Any, title: str, description: str, width: int, height: int) -> Any:
    return panel.title(title).description(description).datasource(SOURCE).span(width).height(height)


def figure(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "short",
    steps: Steps = PLAIN,
    names: Mapping[float, tuple[str, str]] | None = None,
    width: int = 4,
) -> Any:
    """Return one large number."""
    panel = _common(stat.Panel(), title, description, width, 4)
    return (
        panel.with_target(query(expr, title))
        .unit(unit)
        .thresholds(_thresholds(steps))
        .mappings(_mappings(names or {}) if names else [])
        .color_mode(
            common_models.BigValueColorMode.BACKGROUND
            if len(steps) > 1 or names
            else common_models.BigValueColorMode.VALUE
        )
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )


def lines(
    title: str,
    description: str,
    *queries: prometheus.Dataquery,
    unit: str = "short",
    steps: Steps | None = None,
    minimum: float | None = 0,
    width: int = 12,
    height: int = 8,
) -> Any:
    """Return lines over time; with `steps` the limits are drawn as dashed lines."""
    panel = _common(timeseries.Panel(), title, description, width, height)
    panel.targets(list(queries)).unit(unit).fill_opacity(0).line_width(2).span_nulls(False)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    panel.tooltip(
        common.VizTooltipOptions()
        .mode(common_models.TooltipDisplayMode.MULTI)
        .sort(common_models.SortOrder.DESCENDING)
    )
    if minimum is not None:
        panel.min(minimum)
    if steps is not None:
        panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphTresholdsStyleMode.DASHED)
        )
    return panel


def history(
    title: str, description: str, *queries: prometheus.Dataquery, steps: Steps, height: int = 12
) -> Any:
    """Return a grid of series by time, each cell coloured by `steps`."""
    panel = _common(statushistory.Panel(), title, description, 24, height)
    return (
        panel.targets(list(queries))
        .decimals(2)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .show_value(common_models.VisibilityMode.NEVER)
        .row_height(0.9)
        .max_data_points(100)
    )


def states(
    title: str,
    description: str,
    *queries: prometheus.Dataquery,
    names: Mapping[float, tuple[str, str]],
    width: int = 24,
    height: int = 8,
) -> Any:
    """Return bands over time, each coloured and named by its value."""
    panel = _common(statetimeline.Panel(), title, description, width, height)
    return (
        panel.targets(list(queries))
        .mappings(_mappings(names))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .show_value(common_models.VisibilityMode.AUTO)
        .merge_values(True)
    )


def bars(
    title: str,
    description: str,
    expr: str,
    legend: str,
    *,
    steps: Steps,
    unit: str = "short",
    width: int = 12,
    height: int = 10,
) -> Any:
    """Return one horizontal bar a series, at its newest value."""
    panel = _common(bargauge.Panel(), title, description, width, height)
    return (
        panel.with_target(query(expr, legend))
        .unit(unit)
        .min(0)
        .decimals(2)
        .thresholds(_thresholds(steps))
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )


def shares(title: str, description: str, expr: str, *, by: str, across: str) -> Any:
    """Return groups of bars, one group a value of label `across`, one bar a value of `by`."""
    panel = _common(barchart.Panel(), title, description, 24, 10)
    return (
        panel.with_target(query(expr, instant=True))
        .transformations(
            [
                models.DataTransformerConfig(
                    id_val="groupingToMatrix",
                    options={"columnField": by, "rowField": across, "valueField": "Value"},
                )
            ]
        )
        .unit("percentunit")
        .min(0)
        .group_width(0.8)
        .bar_width(0.95)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.NONE)
        )
    )


def rows(
    title: str,
    description: str,
    *queries: prometheus.Dataquery,
    units: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
    width: int = 12,
    height: int = 8,
) -> Any:
    """Return a table of instant queries joined on their labels.

    Args:
        title: Of the panel.
        description: Of the panel.
        queries: Instant queries; the value of the first is column `Value #A`, and so on.
        units: Column, as renamed, to Grafana's name of its unit.
        renamed: Column to what it is called.
        width: Of 24.
        height: In grid rows.
    """
    panel = _common(table.Panel(), title, description, width, height)
    hidden = ("Time", "__name__", "instance", "job", "alertstate", "datasource")
    panel.show_header(True).targets(list(queries)).transformations(
        [
            models.DataTransformerConfig(id_val="merge", options={}),
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": dict.fromkeys(hidden, True),
                    "renameByName": dict(renamed or {}),
                },
            ),
        ]
    )
    for column, unit in (units or {}).items():
        panel.override_by_name(column, [models.DynamicConfigValue(id_val="unit", value=unit)])
    return panel
