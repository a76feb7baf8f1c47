"""What `conserve grafana install` sends is what Grafana's HTTP API allows, as its documentation has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conserve.cli.main import app
from conserve.launch.grafana import DASHBOARDS, DATASOURCE_NAME, FOLDER_UID, GrafanaError, read_dashboards
from conserve.launch.ports import find_free_ports
from conserve.telemetry.dashboards.boards import BOARDS
from tests.unit.launch.grafana_standin import StandIn, serving

PROMETHEUS = "http://prometheus:9090"


@pytest.fixture
def grafana() -> Iterator[StandIn]:
    standin = StandIn()
    with serving(standin) as standin.url:
        yield standin
    assert standin.refused == []


def install(url: str, *arguments: str, token: str = "glsa_secret") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["grafana", "install", "--url", url, "--token", token, *arguments])
    return done.exit_code, " ".join(done.output.split())


def test_everything_is_there_after_the_first_time(grafana: StandIn) -> None:
    code, said = install(grafana.url, "--prometheus", PROMETHEUS)
    assert (code, said.count("created")) == (0, 2 + len(BOARDS))
    assert grafana.folders[FOLDER_UID]["title"] == "ConServe"
    (source,) = grafana.datasources.values()
    assert (source["name"], source["type"], source["url"]) == (DATASOURCE_NAME, "prometheus", PROMETHEUS)
    assert {*grafana.dashboards} == {board.uid for board in BOARDS}
    for uid, found in grafana.dashboards.items():
        assert found["meta"]["folderUid"] == FOLDER_UID
        assert found["dashboard"]["panels"] == json.loads((DASHBOARDS / f"{uid}.json").read_text())["panels"]


def test_what_was_done_as_json(grafana: StandIn) -> None:
    def install_again() -> list[tuple[str, ...]]:
        options = ("--url", grafana.url, "--token", "glsa_secret", "--prometheus", PROMETHEUS, "--json")
        done = CliRunner().invoke(app, ["grafana", "install", *options])
        assert done.exit_code == 0, done.output
        return [(part["kind"], part["name"], part["outcome"]) for part in json.loads(done.stdout)]

    names = [
        ("folder", "ConServe"),
        ("data source", DATASOURCE_NAME),
        *(("dashboard", board.title) for board in BOARDS),
    ]
    assert sorted(install_again()) == sorted((*name, "created") for name in names)
    grafana.dashboards[BOARDS[0].uid]["dashboard"]["panels"] = []
    second = install_again()
    assert ("dashboard", BOARDS[0].title, "changed") in second
    assert [outcome for *_, outcome in second].count("unchanged") == len(names) - 1


def test_the_second_time_changes_nothing(grafana: StandIn) -> None:
    install(grafana.url, "--prometheus", PROMETHEUS)
    grafana.changes.clear()
    code, said = install(grafana.url, "--prometheus", PROMETHEUS)
    assert (code, said.count("there already"), grafana.changes) == (0, 2 + len(BOARDS), [])


def test_what_was_changed_is_brought_up_to_date(grafana: StandIn) -> None:
    install(grafana.url, "--prometheus", PROMETHEUS)
    uid = BOARDS[0].uid
    grafana.dashboards[uid]["dashboard"]["panels"] = []
    grafana.dashboards[BOARDS[1].uid]["meta"]["folderUid"] = ""
    grafana.folders[FOLDER_UID]["title"] = "Harvest"
    grafana.datasources[1]["jsonData"] = {"timeInterval": "10s"}
    code, said = install(grafana.url, "--prometheus", "http://other:9090")
    assert (code, said.count("changed")) == (0, 3)
    assert grafana.dashboards[uid]["dashboard"]["panels"]
    assert grafana.folders[FOLDER_UID]["title"] == "Harvest"
    # What else its owner has set stays.
    assert grafana.datasources[1]["jsonData"] == {"timeInterval": "10s"}
    assert grafana.datasources[1]["url"] == "http://other:9090"


def test_without_a_prometheus_no_data_source_is_touched(grafana: StandIn) -> None:
    assert install(grafana.url)[0] == 0
    assert grafana.datasources == {}
    assert {*grafana.dashboards} == {board.uid for board in BOARDS}


def test_a_grafana_below_a_path_is_found() -> None:
    standin = StandIn(prefix="/grafana")
    with serving(standin) as url:
        assert install(f"{url}/")[0] == 0
    assert standin.refused == []
    assert standin.dashboards


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, "needs the role Admin"), (412, "somebody else has"), (500, "HTTP 500"), (400, "HTTP 400")],
)
def test_refusals_say_what_to_do(grafana: StandIn, status: int, expected: str) -> None:
    grafana.fails_with = status
    code, said = install(grafana.url)
    assert code == 1
    assert said.startswith("error: ")
    assert expected in said


def test_a_wrong_token_is_named(grafana: StandIn) -> None:
    code, said = install(grafana.url, token="nonsense")
    assert (code, "does not know this token" in said) == (1, True)
    assert "nonsense" not in said


def test_nobody_there() -> None:
    code, said = install(f"http://127.0.0.1:{find_free_ports(1)[0]}")
    assert (code, "Is Grafana up?" in said) == (1, True)


def test_no_url() -> None:
    code, said = install("grafana:3000")
    assert (code, "is no URL of a Grafana" in said) == (1, True)


def test_an_empty_folder_has_no_dashboards(tmp_path: Path) -> None:
    with pytest.raises(GrafanaError, match="no dashboards"):
        read_dashboards(tmp_path)


def test_the_stand_in_refuses_what_is_not_documented() -> None:
    standin = StandIn()
    headers = {"Authorization": "Bearer glsa_secret", "Content-Type": "application/json"}
    assert standin.answer("POST", "/api/folders", headers, b'{"name": "x"}')[0] == 400
    assert standin.answer("PATCH", "/api/folders/x", headers, b"{}")[0] == 405
    assert (
        standin.answer("POST", "/api/dashboards/db", headers, b'{"dashboard": {"title": "x", "uid": "x", "id": 4}}')[0]
        == 404
    )
    assert len(standin.refused) == 3
