"""Published figures beside simulated ones."""

from __future__ import annotations

import pytest

from conserve.simulator.metrics import Metrics
from loadtests.paper_sensitivity import Line
from loadtests.paper_sensitivity import to_markdown as sensitivity_table
from loadtests.paper_table import Row, list_ablation, to_markdown


def test_each_mechanism_of_the_ablation_does_what_was_published() -> None:
    rows = {row.what.removeprefix("8B: "): row for row in list_ablation()}

    assert rows["TBT, scheduler over Sarathi-P"].simulated == pytest.approx(73 / 375, rel=0.2)
    assert rows["TTFT, scheduler over Sarathi-P"].simulated == pytest.approx(686 / 1_399, rel=0.2)
    assert rows["TTFT, stops over scheduler"].simulated < 1
    assert rows["offline, checkpoints over none"].simulated > 1
    assert rows["P99 TBT, Sarathi-P"].simulated == pytest.approx(375, rel=0.2)
    assert rows["P99 TBT, with the scheduler"].simulated == pytest.approx(73, rel=0.2)


def test_larger_differences_are_marked_and_ranges_are_none() -> None:
    table = to_markdown([Row("a", "ms", 100, 119), Row("b", "ms", 100, 121), Row("c", "x", 84, 2, 266)])

    assert "| a, ms | 100 | 119 | +19% |" in table
    assert "| b, ms | 100 | 121 | **+21%** |" in table
    assert "| c, x | 84 | 2 to 266 | in the range |" in table


def test_a_line_of_the_sensitivity_says_what_checkpoints_bring_and_why() -> None:
    without, with_ = Metrics(0.0, 60.0), Metrics(0.0, 60.0)
    without.offline_prompt_tokens, with_.offline_prompt_tokens = 60_000, 75_000
    without.offline_preemptions, without.recomputed_tokens = 12, 6_000

    table = sensitivity_table([Line("load 50 %", Metrics(), Metrics(), without, with_)])

    assert "| load 50 % | 0 -> 0 | 0 -> 0 -> 0 | 1,000 -> 1,250 | 1.25 | 12 | 10.0 |" in table
