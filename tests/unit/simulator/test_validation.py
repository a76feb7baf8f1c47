"""The simulator against a benchmark that was run on a 2-core CPU: requests, latencies and iterations are kept.

Costs are fitted to three runs of the first repeat. Runs whose P99 hangs on one or two requests are not asserted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.simulator_validation import LATENCY_LIMIT, RATE_LIMIT, Row, to_markdown, validate
from loadtests.validation.recording import Recording, read_recording
from loadtests.validation.replay import Figures, fit_costs

FOLDER = Path(__file__).parent / "recordings"
RUNS = ("conserve", "offline-only", "online-only", "stock-tuned")


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return [read_recording(path) for path in sorted(FOLDER.glob("*.json"))]


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
    assert all(abs(error) <= LATENCY_LIMIT for error in errors.values()), to_markdown([row])


def test_what_is_too_far_off_is_outside() -> None:
    measured = Figures(offline_tokens_per_s=100.0, ttft_p99_ms=100.0)

    near = Row("chat", "conserve", measured, Figures(offline_tokens_per_s=109.0, ttft_p99_ms=76.0))
    far = Row("chat", "conserve", measured, Figures(offline_tokens_per_s=111.0, ttft_p99_ms=74.0))

    assert near.outside == []
    assert far.outside == ["offline_tokens_per_s", "ttft_p99_ms"]
