"""The simulator against a benchmark that was run on a 2-core CPU: requests, latencies and iterations are kept.

Costs are fitted to three runs of the first repeat. Runs whose P99 hangs on one or two requests are not asserted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from conserve.policy.latency import IterationShape
from loadtests.simulator_validation import LATENCY_LIMIT, RATE_LIMIT, Row, to_markdown, validate
from loadtests.validation.recording import Recording, read_recording
from loadtests.validation.replay import Figures, fit_costs, measure_speeds, pool_measured

FOLDER = Path(__file__).parent / "recordings"
SHAPE = IterationShape().add_prefill(700, 100).add_decodes(8, 4_000)
RUNS = ("conserve", "offline-only", "online-only", "stock-tuned")


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return [read_recording(path) for path in sorted(FOLDER.glob("*.json"))]


def slow_down(recording: Recording, factor: float) -> Recording:
    iterations = tuple((begin, begin + factor * (end - begin), *rest) for begin, end, *rest in recording.iterations)
    return recording.model_copy(update={"iterations": iterations})


@pytest.fixture(scope="module")
def rows(recordings: list[Recording]) -> dict[str, Row]:
    return {row.run: row for row in validate(recordings)}


def test_fitted_costs_are_those_of_the_iterations_that_were_measured(recordings: list[Recording]) -> None:
    logged = [recording for recording in recordings if recording.iterations]
    costs = fit_costs(logged)

    errors = sorted(
        abs(costs.time_ms(shape) / took_ms - 1) for recording in logged for shape, took_ms in recording.list_shapes()
    )

    assert len(errors) > 500
    assert errors[len(errors) // 2] < 0.08


@pytest.mark.parametrize("run", RUNS)
def test_offline_rate_and_latencies_are_near_those_that_were_measured(rows: dict[str, Row], run: str) -> None:
    row = rows[run]

    errors = {name: error for name, _, _, error in row.list_errors()}

    assert abs(errors.pop("offline_tokens_per_s", 0.0)) <= RATE_LIMIT, to_markdown([row])
    for name, error in errors.items():
        # The P99 of a stock engine is that of one or two requests that wait for a slot.
        is_near = abs(error) <= LATENCY_LIMIT or (run.startswith("stock") and row.is_within_spread(name))
        assert is_near, to_markdown([row])


def test_iterations_vary_as_they_were_measured_to(recordings: list[Recording]) -> None:
    costs = fit_costs([recording for recording in recordings if recording.iterations and recording.repeat == 1])

    assert 0.01 < costs.noise < 0.1
    assert 0.1 < costs.noise_memory < 0.9


def test_what_is_too_far_off_but_within_the_spread_is_in_italics() -> None:
    simulated = Figures(ttft_p99_ms=140.0, spread={"ttft_p99_ms": (130.0, 150.0)})
    near = Row("chat", "stock", Figures(ttft_p99_ms=100.0, spread={"ttft_p99_ms": (80.0, 135.0)}), simulated)
    far = Row("chat", "stock", Figures(ttft_p99_ms=100.0, spread={"ttft_p99_ms": (80.0, 125.0)}), simulated)

    assert near.outside == far.outside == ["ttft_p99_ms"]
    assert "| *100 / 140 (+40%)* | 80 to 135 |" in to_markdown([near])
    assert "| **100 / 140 (+40%)** | 80 to 125 |" in to_markdown([far])


def test_the_spread_covers_what_was_measured_in_every_repeat(recordings: list[Recording]) -> None:
    for run in RUNS:
        own = [recording for recording in recordings if recording.run == run]
        pooled = pool_measured(own)
        for recording in own:
            alone = pool_measured([recording])
            for name, (low, high) in pooled.spread.items():
                assert low <= getattr(alone, name) <= high
                assert low <= getattr(pooled, name) <= high


def test_what_is_too_far_off_is_outside() -> None:
    measured = Figures(offline_tokens_per_s=100.0, ttft_p99_ms=100.0)

    near = Row("chat", "conserve", measured, Figures(offline_tokens_per_s=109.0, ttft_p99_ms=76.0))
    far = Row("chat", "conserve", measured, Figures(offline_tokens_per_s=111.0, ttft_p99_ms=74.0))

    assert near.outside == []
    assert far.outside == ["offline_tokens_per_s", "ttft_p99_ms"]


def test_a_run_on_a_slower_machine_is_simulated_with_slower_iterations(recordings: list[Recording]) -> None:
    slow = [slow_down(recording, 1.2) if recording.repeat == 2 else recording for recording in recordings]
    costs = fit_costs([recording for recording in recordings if recording.iterations and recording.repeat == 1])

    before, after = measure_speeds(recordings, costs), measure_speeds(slow, costs)

    for recording, one, other in zip(recordings, before, after, strict=True):
        # Runs without a log are as fast as the others of their repeat.
        assert other == pytest.approx(one * (1.2 if recording.repeat == 2 else 1.0), rel=0.01)
    assert costs.at_speed(1.2).time_ms(SHAPE) == pytest.approx(1.2 * costs.time_ms(SHAPE))
