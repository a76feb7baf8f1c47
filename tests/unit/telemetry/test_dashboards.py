"""The dashboards in `cluster/grafana` are what the code says, and ask for metrics that there are."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

import pytest
import ray.dashboard
from ray.dashboard.modules.metrics import grafana_dashboard_factory as rays
from ray.dashboard.modules.metrics.dashboards.serve_dashboard_panels import serve_dashboard_config
from ray.dashboard.modules.metrics.dashboards.serve_deployment_dashboard_panels import serve_deployment_dashboard_config

from conserve.telemetry.catalogue import CATALOGUE
from conserve.telemetry.dashboards.__main__ import write_dashboard
from conserve.telemetry.dashboards.boards import BOARDS, DEPLOYMENT_PANELS, SERVE_PANELS
from conserve.telemetry.dashboards.chart import Board
from conserve.telemetry.dashboards.overview_board import OVERVIEW
from conserve.telemetry.dashboards.replica_board import REPLICAS
from conserve.telemetry.metric import Kind
from tests.unit.cluster.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "grafana"
each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
FEW = 0.5


@each_board
def test_the_file_matches_the_code(board: Board) -> None:
    written = (FOLDER / f"{board.uid}.json").read_text()
    assert written == write_dashboard(board), "python -m conserve.telemetry.dashboards"


def test_there_are_no_other_files() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {board.uid for board in BOARDS}


@each_board
def test_panels_have_numbers_of_their_own_and_do_not_overlap(board: Board) -> None:
    panels = json.loads(write_dashboard(board))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len({*cells}) == len(cells)
    assert max(x for x, _ in cells) == 23


@each_board
def test_queries_ask_for_metrics_and_labels_that_there_are(board: Board) -> None:
    for query in chain.from_iterable(chart.queries for chart in board.charts):
        names = {*re.findall(r"\bray_conserve_[a-z0-9_]+", query.expr)}
        assert names
        for name in names:
            metric = (
                CATALOGUE.get(name.removeprefix("ray_")) or CATALOGUE[name.removeprefix("ray_").removesuffix("_bucket")]
            )
            assert (metric.kind is Kind.HISTOGRAM) == name.endswith("_bucket")
            assert (metric.kind is Kind.GAUGE) == ("rate(" not in query.expr)
            labels = {label.name for label in metric.labels} | {"application", "deployment", "replica", "le"}
            used = {*re.findall(r"([a-z_]+)=~?\"", query.expr)} | {*re.findall(r"{{([a-z_]+)}}", query.legend)}
            used |= {label for by in re.findall(r"by \(([a-z_, ]+)\)", query.expr) for label in by.split(", ")}
            assert used <= labels


def test_most_metrics_are_on_a_dashboard() -> None:
    text = "".join(write_dashboard(board) for board in BOARDS)
    shown = [name for name, metric in CATALOGUE.items() if metric.exported_name in text]
    assert len(shown) > FEW * len(CATALOGUE)


def test_ray_s_pages_find_the_panels_that_they_show() -> None:
    numbers = {board.uid: {panel["id"] for panel in json.loads(write_dashboard(board))["panels"]} for board in BOARDS}
    assert {*SERVE_PANELS} <= numbers[OVERVIEW.uid]
    assert {*DEPLOYMENT_PANELS} <= numbers[REPLICAS.uid]
    # Its page says `var-Deployment` and `var-Replica`.
    assert [name for name, *_ in REPLICAS.variables] == ["Deployment", "Replica"]


def test_ray_takes_the_variables_that_the_docs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_GRAFANA_SERVE_DASHBOARD_UID", OVERVIEW.uid)
    monkeypatch.setenv("RAY_GRAFANA_SERVE_DEPLOYMENT_DASHBOARD_UID", REPLICAS.uid)
    assert rays._read_configs_for_dashboard(serve_dashboard_config)[0] == OVERVIEW.uid
    assert rays._read_configs_for_dashboard(serve_deployment_dashboard_config)[0] == REPLICAS.uid


def test_the_pages_of_ray_s_dashboard_show_these_panels() -> None:
    """By what its script of this version says."""
    scripts = (Path(ray.dashboard.__file__).parent / "client" / "build" / "static" / "js").glob("main*.js")
    text = next(text for text in (path.read_text() for path in scripts) if "QPS per application" in text)
    found = [int(number) for number in re.findall(r"pathParams:\"panelId=(\d+)\"", text)]
    assert {*found} == {*SERVE_PANELS, *DEPLOYMENT_PANELS}
