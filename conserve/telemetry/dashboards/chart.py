"""What a panel of a dashboard shows, and how it becomes one of Grafana."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import common, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus as queries
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    VariableOption,
    VariableRefresh,
)

from conserve.telemetry.metric import Metric

DATASOURCE_VARIABLE: Final = "datasource"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid=f"${{{DATASOURCE_VARIABLE}}}")
WIDTH: Final = 8
HEIGHT: Final = 8
COLUMNS: Final = 3


class Query(NamedTuple):
    """A PromQL expression, and how its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Chart:
    """A panel with lines over time.

    Attributes:
        title: What it says above.
        unit: Of the values, as Grafana calls it: `s`, `percentunit`, `bytes`, `short` and so on.
        queries: What it shows.
        description: What to see in it.
        number: Of the panel in its dashboard, where others refer to it; None: the next one that is free.
        most: Upper end of the axis, where there is one.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""
    number: int | None = None
    most: float | None = None


@dataclass(frozen=True)
class Board:
    """A dashboard: rows of charts.

    Attributes:
        uid: By which Grafana and Ray's dashboard know it.
        title: What it is called.
        rows: Charts by the title of their row.
        variables: Labels by which its viewer can choose: name of the variable, label, metric whose values it has.
    """

    uid: str
    title: str
    rows: dict[str, tuple[Chart, ...]]
    variables: tuple[tuple[str, str, Metric], ...] = ()

    @property
    def charts(self) -> list[Chart]:
        """All of them, in order."""
        return [chart for charts in self.rows.values() for chart in charts]


def total_rate(metric: Metric, by: str = "", where: str = "") -> str:
    """How fast a counter goes up, over all replicas or by a label."""
    return f"{_sum(by)}(rate({metric.exported_name}{_braces(where)}[$__rate_interval]))"


def total(metric: Metric, by: str = "", where: str = "") -> str:
    """A gauge, added up over all replicas or by a label."""
    return f"{_sum(by)}({metric.exported_name}{_braces(where)})"


def quantile(share: float, metric: Metric, by: str = "", where: str = "") -> str:
    """A quantile of a histogram, over all replicas or by a label."""
    labels = f"{by}, le" if by else "le"
    rate = f"rate({metric.exported_name}_bucket{_braces(where)}[$__rate_interval])"
    return f"histogram_quantile({share:g}, sum by ({labels}) ({rate}))"


def share(part: str, whole: str) -> str:
    """One rate by another; nothing where nothing happens."""
    return f"{part} / ({whole} > 0)"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"


def _braces(where: str) -> str:
    return f"{{{where}}}" if where else ""


def build(board: Board) -> dashboards.Dashboard:
    """The dashboard of Grafana."""
    builder = (
        dashboards.Dashboard(board.title)
        .uid(board.uid)
        .tags(["conserve"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(
            dashboards.DatasourceVariable(DATASOURCE_VARIABLE).label("Prometheus").type("prometheus").multi(False)
        )
    )
    for name, label, metric in board.variables:
        builder.with_variable(_make_variable(name, label, metric))
    numbers = _number(board)
    top = 0
    for title, charts in board.rows.items():
        row_number = max(numbers.values()) + 1 + [*board.rows].index(title)
        builder.with_row(dashboards.Row(title).id(row_number).grid_pos(GridPos(h=1, w=24, x=0, y=top)))
        top += 1
        for index, chart in enumerate(charts):
            place = GridPos(h=HEIGHT, w=WIDTH, x=index % COLUMNS * WIDTH, y=top + index // COLUMNS * HEIGHT)
            builder.with_panel(_make_panel(chart, numbers[chart], place))
        top += -(-len(charts) // COLUMNS) * HEIGHT
    return builder


def _number(board: Board) -> dict[Chart, int]:
    """Numbers of the panels: those that are given, and the lowest others."""
    taken = {chart.number for chart in board.charts}
    free = (number for number in range(1, 1_000) if number not in taken)
    return {chart: next(free) if chart.number is None else chart.number for chart in board.charts}


def _make_panel(chart: Chart, number: int, place: GridPos) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .id(number)
        .title(chart.title)
        .description(chart.description)
        .datasource(SOURCE)
        .unit(chart.unit)
        .min(0)
        .line_width(1)
        .fill_opacity(8)
        .grid_pos(place)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if chart.most is not None:
        panel.max(chart.most)
    for index, query in enumerate(chart.queries):
        target = queries.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index)).range()
        panel.with_target(target)
    return panel


def _make_variable(name: str, label: str, metric: Metric) -> dashboards.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboards.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(f"label_values({metric.exported_name}, {label})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )
