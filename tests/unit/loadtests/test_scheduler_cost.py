from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadtests.scheduler_cost import STEPS_A_TURN, Case, Cost, Lane, describe, measure, render

TINY = Case("tiny", online=2, offline=2, waiting_online=0, waiting_offline=5, kv_blocks=600, output_tokens=8)


def test_both_schedulers_run_the_same_requests() -> None:
    lanes = [Lane(kind, TINY) for kind in ("vllm", "conserve")]
    for lane in lanes:
        steps = lane.take_turn()
        assert len(steps) == STEPS_A_TURN
        assert min(steps) > 0
        # The offline ones, 8 tokens each, have come to their end in the warm-up.
        assert sorted(request.request_id for request in lane.scheduler.running) == ["online-0", "online-1"]


def test_a_ratio_is_taken_of_each_repeat() -> None:
    cost = measure(TINY, repeats=2, turns=2)
    assert len(cost.ratios) == 2
    assert min(cost.vllm_ms, cost.conserve_ms, *cost.ratios) > 0


def test_the_two_take_turns_and_each_begins_as_often() -> None:
    order: list[str] = []

    class Recorded:
        def __init__(self, kind: str, case: Case) -> None:
            self.kind = kind

        def take_turn(self) -> list[float]:
            order.append(self.kind)
            return [0.002 if self.kind == "vllm" else 0.003]

    cost = measure(TINY, repeats=1, turns=2, make_lane=Recorded)  # type: ignore[arg-type]
    assert order == ["conserve", "vllm", "vllm", "conserve"]
    assert (cost.vllm_ms, cost.conserve_ms, cost.ratios) == (2.0, 3.0, (1.5,))


@pytest.mark.parametrize(("ratios", "verdict"), [((0.9, 1.0, 1.5), "goal met"), ((1.2,), "met"), ((1.31,), "missed")])
def test_a_ratio_has_a_verdict(ratios: tuple[float, ...], verdict: str) -> None:
    report = describe(TINY, Cost(2.0, 3.0, ratios))
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render([report]))
    row = next(line for line in console.export_text().splitlines() if "tiny" in line)
    assert row.split("│")[-2].strip() == verdict
