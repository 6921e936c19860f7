# SPDX-License-Identifier: Apache-2.0
"""Panels in our style. Each has a title, a description that says how to read it, a unit, and queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (
    AxisPlacement,
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Panel,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

FULL, HALF, THIRD, QUARTER = 24, 12, 8, 6
#: Heights in rows of Grafana's grid (30 pixels each).
LOW, NORMAL, HIGH = 4, 8, 12


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel. `legend` is Grafana's legend format (or a column's name in a table)."""

    expr: str
    legend: str = "__auto"
    #: Ask for exemplars: dots that carry a container's id.
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: a label (no expression) or a value."""

    name: str
    expr: str = ""
    label: str = ""
    unit: str = units.Short
    #: Where a click on a cell leads; may use ${__value.raw}.
    link: str = ""


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int = HALF,
    height: int = NORMAL,
    stacked: bool = False,
    log: bool = False,
) -> timeseries.Panel:
    """Lines over time; `stacked`: areas on top of each other; `log`: a logarithmic axis."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(height)
        .min(0)
        .draw_style(GraphDrawStyle.LINE)
        .line_width(0 if stacked else 1)
        .fill_opacity(70 if stacked else 8)
        .show_points(VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE if stacked else LegendDisplayMode.LIST)
            .placement(LegendPlacement.RIGHT if stacked else LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean"] if stacked else [])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
        panel.axis_placement(AxisPlacement.AUTO)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(letter, query).range())
    return panel


def number(
    title: str, description: str, unit: str, query: Query, *, warn_above: float | None = None, width: int = 3
) -> stat.Panel:
    """One number, the last one, over its course; red above `warn_above`."""
    steps = [Threshold(value=None, color="green")]
    if warn_above is not None:
        steps.append(Threshold(value=warn_above, color="red"))
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(LOW)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .thresholds(builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_target("A", query).range())
    )


def buckets(title: str, description: str, expr: str, *, width: int = HALF, height: int = NORMAL) -> heatmap.Panel:
    """A heat map of a histogram's buckets (`expr` by le), on a logarithmic axis in seconds."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(height)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5))
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(units.Seconds).axis_placement(AxisPlacement.LEFT))
        .show_legend()
        .with_target(_target("A", Query(expr, "{{le}}", exemplars=True)).range().format(PromQueryFormat.HEATMAP))
    )


def rows(
    title: str,
    description: str,
    columns: Sequence[Column],
    *,
    width: int = FULL,
    height: int = NORMAL,
    sort: str = "",
) -> table.Panel:
    """A table: one row for each combination of the labels, one column an expression."""
    labels = [column for column in columns if not column.expr]
    values = [column for column in columns if column.expr]
    letters = dict(zip((column.name for column in values), "ABCDEFGHIJ", strict=False))
    # Grafana names the value of query A "Value #A" as soon as there are several, and "Value" when it is alone.
    headings = {f"Value #{letters[column.name]}" if len(values) > 1 else "Value": column.name for column in values}
    headings |= {column.label: column.name for column in labels}
    order = {
        column.label or next(key for key in headings if headings[key] == column.name): column for column in columns
    }
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(height)
        .unit(units.Short)
        .show_header(True)
        .filterable(True)
    )
    for column in values:
        query = Query(column.expr, column.name)
        panel.with_target(_target(letters[column.name], query).instant().format(PromQueryFormat.TABLE))
    if len(values) > 1:
        panel.with_transformation(_transformation("merge", {}))
    panel.with_transformation(
        _transformation(
            "organize",
            {
                "excludeByName": {"Time": True},
                "indexByName": {key: index for index, key in enumerate(order)},
                "renameByName": headings,
            },
        )
    )
    for column in columns:
        properties = [DynamicConfigValue(id_val="unit", value=column.unit)] if column.expr else []
        if column.link:
            link = {"title": "Open the host", "url": column.link}
            properties.append(DynamicConfigValue(id_val="links", value=[link]))
        if properties:
            panel.override_by_name(column.name, properties)
    if sort:
        panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
    return panel


def repeated(panel: heatmap.Panel, variable: str, *, a_row: int) -> heatmap.Panel:
    """The panel once for each value of a variable."""
    return panel.repeat(variable).repeat_direction("h").max_per_row(a_row)


def folded(title: str, *panels: Builder[Panel]) -> builders.Row:
    """A row that is folded until it is clicked: its panels ask nothing before."""
    row = builders.Row(title).collapsed(True)
    for panel in panels:
        row.with_panel(panel)
    return row


def _target(letter: str, query: Query) -> Dataquery:
    target = Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend).datasource(SOURCE)
    return target.exemplar(True) if query.exemplars else target


def _transformation(name: str, options: Mapping[str, Any]) -> DataTransformerConfig:
    return DataTransformerConfig(id_val=name, options=dict(options))
