"""The latency of flex requests is measured on real routes, with an engine that answers at once."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from loadtests import flex_latency
from loadtests.flex_latency import Latency, Timing, render


def test_medians_and_longest_of_each_tier() -> None:
    latency = Latency.of([Timing(10.0, 20.0), Timing(30.0, 70.0), Timing(11.0, 22.0)])
    assert (latency.first_token_ms, latency.longest_first_token_ms) == (11.0, 30.0)
    assert (latency.end_ms, latency.longest_end_ms) == (22.0, 70.0)
    slower = Latency.of([Timing(311.0, 422.0)])
    cells = [list(column.cells) for column in render({"default": latency, "flex": slower}).columns]
    assert cells[0][-1] == "difference of the medians"
    assert (cells[1][-1], cells[2][-1]) == ("300", "400")


def test_a_deployment_that_is_not_there_is_named() -> None:
    app = typer.Typer()
    app.command()(flex_latency.main)
    done = CliRunner().invoke(app, ["--base-url", "http://127.0.0.1:1", "--turns", "1"])
    assert done.exit_code == 1
    assert done.output.startswith("Not measured: ")
