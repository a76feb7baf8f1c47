from __future__ import annotations

import pytest

from conserve.engine.iteration_log import Iteration
from conserve.engine.page import Counters
from loadtests.coserving.results import OnlineRecord, OutputEvent, RunResult
from loadtests.coserving.slow_gaps import explain_gaps, find_iteration_wait_ms


def make_run(events_s: list[float], iterations: list[Iteration]) -> RunResult:
    record = OnlineRecord(0.5, 0.5, tuple(OutputEvent(at_s, 1) for at_s in events_s), 10, len(events_s), 9.0)
    run = RunResult("conserve", 1, "chat", 1, "conserve", 0.0, 10.0, (record,), (), Counters(), Counters(), 1)
    return RunResult(**{**run.__dict__, "iterations": tuple(iterations)})


def iteration(start_s: float, end_s: float, prompt: int = 0, offline: int = 0) -> Iteration:
    return Iteration(start_s, end_s, prompt, 1, offline, 100.0, 100.0)


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        ([iteration(1.0, 1.995, offline=40)], "offline_work"),
        ([iteration(1.0, 1.995, prompt=40)], "online_prompts"),
        ([iteration(1.0, 1.1), iteration(1.1, 1.995)], "several_iterations"),
        ([iteration(1.9, 1.995)], "outside"),
        ([iteration(2.5, 2.6)], "outside"),
    ],
)
def test_a_gap_is_laid_to_what_the_engine_did(iterations: list[Iteration], expected: str) -> None:
    run = make_run([1.0, 2.0, 2.05], [iteration(0.5, 0.99), *iterations, iteration(2.65, 2.7)])
    explained = explain_gaps([run], 300.0)
    assert explained is not None
    assert {name: count for name, count in explained.model_dump().items() if count} == {expected: 1}


def test_without_a_log_nothing_is_known() -> None:
    run = make_run([1.0, 2.0], [])
    assert explain_gaps([run], 300.0) is None
    assert find_iteration_wait_ms(run, 1.0) == 0.0


def test_the_iteration_that_runs_when_a_request_comes_is_waited_for() -> None:
    run = make_run([1.0], [iteration(0.0, 0.2), iteration(0.2, 0.9), iteration(2.0, 3.0)])
    assert find_iteration_wait_ms(run, 0.5) == pytest.approx(400)
    assert find_iteration_wait_ms(run, 1.5) == 0.0
    assert find_iteration_wait_ms(run, 5.0) == 0.0
