"""Which online requests a load sends, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.front.schedule import OnlinePlan, draw_schedule
from loadtests.traces import TraceError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write_azure(folder: Path, rows: int, wrong: dict[int, str] | None = None) -> Path:
    """A trace of one request a second; `wrong` replaces lines, the header being line 1."""
    lines = [f"2023-11-16 {index // 3600:02}:{index // 60 % 60:02}:{index % 60:02}.0,800,80" for index in range(rows)]
    for number, text in (wrong or {}).items():
        lines[number - 2] = text
    path = folder / "AzureLLMInferenceTrace_conv.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("arrivals", ["trace", "poisson", "gamma", "tide"])
def test_requests_are_due_in_order_within_the_time_at_the_mean_rate(arrivals: Any) -> None:
    plan = OnlinePlan(duration_s=200.0, rate_per_s=10.0, arrivals=arrivals, cv=1.5)
    schedule = draw_schedule(plan)
    times_s = [request.arrival_s for request in schedule]
    assert times_s == sorted(times_s)
    assert times_s[0] >= 0
    assert times_s[-1] < 200
    assert len(schedule) == pytest.approx(2_000, rel=0.12)
    assert schedule == draw_schedule(plan)
    assert schedule != draw_schedule(OnlinePlan(duration_s=200.0, rate_per_s=10.0, arrivals=arrivals, cv=1.5, seed=8))


@pytest.mark.parametrize(
    ("arrivals", "cv", "expected"), [("poisson", 5.0, 1.0), ("gamma", 0.5, 0.5), ("gamma", 3.0, 3.0)]
)
def test_gaps_vary_as_asked(arrivals: Any, cv: float, expected: float) -> None:
    plan = OnlinePlan(duration_s=2_000.0, rate_per_s=10.0, arrivals=arrivals, cv=cv)
    gaps = np.diff([request.arrival_s for request in draw_schedule(plan)])
    assert gaps.std() / gaps.mean() == pytest.approx(expected, rel=0.1)


def test_a_tide_is_high_in_the_middle() -> None:
    plan = OnlinePlan(duration_s=1_000.0, rate_per_s=10.0, arrivals="tide", tide_ratio=10.0)
    counts, _ = np.histogram([request.arrival_s for request in draw_schedule(plan)], bins=10, range=(0, 1_000))
    assert counts[4:6].mean() > 5 * counts[[0, 9]].mean()


def test_time_of_a_trace_is_stretched_to_the_rate(tmp_path: Path) -> None:
    write_azure(tmp_path, 500)
    plan = OnlinePlan(duration_s=100.0, rate_per_s=0.5, traces=tmp_path)
    gaps = np.diff([request.arrival_s for request in draw_schedule(plan)])
    assert np.median(gaps) == pytest.approx(2.0)


def test_lengths_are_scaled_then_cut(tmp_path: Path) -> None:
    write_azure(tmp_path, 500)
    plan = OnlinePlan(
        duration_s=60.0,
        rate_per_s=1.0,
        traces=tmp_path,
        length_scale=0.25,
        max_prompt_tokens=150,
        max_output_tokens=100,
    )
    assert {(request.prompt_tokens, request.output_tokens) for request in draw_schedule(plan)} == {(150, 20)}


def test_lines_that_are_wrong_are_reported_with_their_numbers_and_left_out(tmp_path: Path) -> None:
    path = write_azure(tmp_path, 100, {7: "yesterday,800,80", 20: "2023-11-16 00:00:18.0,many,80"})
    problems: list[str] = []
    assert draw_schedule(OnlinePlan(duration_s=20.0, rate_per_s=1.0, traces=tmp_path), problems)
    assert [problem.split(": ")[:3] for problem in problems] == [
        [str(path), "line 7", "TIMESTAMP"],
        [str(path), "line 20", "ContextTokens"],
    ]
    with pytest.raises(TraceError, match="line 7: TIMESTAMP"):
        draw_schedule(OnlinePlan(duration_s=20.0, rate_per_s=1.0, traces=tmp_path))


def test_a_trace_that_is_too_short_is_said_so(tmp_path: Path) -> None:
    write_azure(tmp_path, 10)
    with pytest.raises(TraceError, match="holds 10 requests where 61 are needed"):
        draw_schedule(OnlinePlan(duration_s=60.0, rate_per_s=1.0, traces=tmp_path))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rate_per_s": 0.0}, "rate_per_s must be above 0"),
        ({"cv": -1.0}, "cv must be above 0"),
        ({"tide_ratio": 0.5}, "tide_ratio must be at least 1"),
        ({"arrivals": "often"}, "arrivals must be one of trace, poisson, gamma, tide"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnlinePlan(**{"duration_s": 1.0, "rate_per_s": 1.0, **setting})
