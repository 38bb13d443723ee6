"""The few kinds of panel that the dashboards are made of, so that all of them look and behave alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import bargauge, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig, VizLegendOptions
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${source}")
SELECT = 'isthmus_cluster=~"$cluster"'
"""Every expression is limited to the chosen clusters; the label is put on every series by the scrape rules."""


Panel = timeseries.Panel | stat.Panel | bargauge.Panel | table.Panel


class Query(NamedTuple):
    """One expression and what its series are called."""

    expression: str
    legend: str = ""


def _target(query: Query, number: int, *, instant: bool = False) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(chr(65 + number))
    return target.instant() if instant else target


def graph(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    span: int = 12,
    stacked: bool = False,
) -> timeseries.Panel:
    """Lines over time. ``span`` is in 24ths of the width."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(8)
        .min(0)
        .line_width(1.5)
        .fill_opacity(35 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if stacked:
        panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL))
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number))
    return panel


def number(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = "short",
    span: int = 4,
    warn: float | None = None,
    alarm: float | None = None,
    below: bool = False,
) -> stat.Panel:
    """One figure, coloured by thresholds; ``below`` means that less is worse."""
    steps = [model.Threshold(value=None, color="red" if below and alarm is not None else "green")]
    if below:
        if alarm is not None:
            steps.append(model.Threshold(value=alarm, color="orange" if warn is not None else "green"))
        if warn is not None:
            steps.append(model.Threshold(value=warn, color="green"))
    else:
        if warn is not None:
            steps.append(model.Threshold(value=warn, color="orange"))
        if alarm is not None:
            steps.append(model.Threshold(value=alarm, color="red"))
    thresholds = dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(4)
        .thresholds(thresholds)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query, 0))
    )


def bars(title: str, description: str, query: Query, *, unit: str = "short", span: int = 12) -> bargauge.Panel:
    """One bar for each series, now."""
    return (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .span(span)
        .height(8)
        .min(0)
        .orientation(common.VizOrientation.HORIZONTAL)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query, 0, instant=True))
    )


def listing(title: str, description: str, query: Query, *, span: int = 24) -> table.Panel:
    """A table of the series, now."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(span)
        .height(9)
        .with_target(_target(query, 0, instant=True).format(PromQueryFormat.TABLE))
    )


def row(title: str, *panels: Panel) -> tuple[dashboard.Row, Sequence[Panel]]:
    """A row of a dashboard: its title, and what stands below it."""
    return dashboard.Row(title), panels


def board(
    uid: str, title: str, description: str, *rows: tuple[dashboard.Row, Sequence[Panel]]
) -> dashboard.Dashboard:
    """A dashboard with the variables that all share: data source and cluster."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["isthmus"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Isthmus")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["isthmus"])
            .as_dropdown(True)
        )
        .with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("cluster")
            .label("Cluster")
            .datasource(SOURCE)
            .query("label_values(isthmus_log_sequence, isthmus_cluster)")
            .multi(True)
            .include_all(True)
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    )
    for heading, panels in rows:
        made.with_row(heading)
        for panel in panels:
            made.with_panel(panel)
    return made


def quantile(share: float, name: str, *, by: str = "", window: str = "5m") -> str:
    """A quantile of a histogram over a window."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({name}_bucket{{{SELECT}}}[{window}])))"


def quantiles(name: str, **shares: float) -> list[Query]:
    """Quantiles of a histogram, by what each line is called."""
    return [Query(quantile(share, name), legend) for legend, share in shares.items()]


def largest_and_median(name: str, largest: str) -> list[Query]:
    """Of a gauge over all nodes: the largest value, called so, and the median."""
    return [
        Query(f"max({name}{{{SELECT}}})", largest),
        Query(f"quantile(0.5, {name}{{{SELECT}}})", "median"),
    ]


def per_second(name: str, *, by: str = "", only: str = "", window: str = "5m") -> str:
    """The summed rate of a counter. ``only`` narrows the series (``type="node.left.v1"``)."""
    selector = f"{SELECT}, {only}" if only else SELECT
    return f"sum{f' by ({by})' if by else ''} (rate({name}{{{selector}}}[{window}]))"
