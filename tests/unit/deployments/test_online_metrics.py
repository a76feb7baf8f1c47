"""What clients feel is measured, and what becomes of their requests is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from conserve.config import load_settings
from conserve.engine.contract import InvalidRequest
from conserve.telemetry import online_metrics as metrics
from conserve.telemetry.bounded_label import OTHER
from conserve.telemetry.memory_recorder import MemoryRecorder
from deployments.errors import refusal
from deployments.online_metrics import OUTCOMES, OnlineMetrics, class_of
from deployments.ray_compat import ErrorInfo, ErrorResponse

SLO = load_settings({"slo": {"ttft_slo_ms": 500, "classes": {"fast": {"ttft_slo_ms": 100, "tbt_slo_ms": 20}}}}).slo
STREAMED = SimpleNamespace(stream=True)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Measured:
    def __init__(self) -> None:
        self.recorder, self.clock = MemoryRecorder(), Clock()
        self.online = OnlineMetrics(self.recorder, SLO, self.clock)

    async def answer(self, pieces: Iterable[tuple[float, Any]]) -> AsyncGenerator[Any, None]:
        """Pieces, each so many seconds after the one before; an exception is raised."""
        for pause_s, piece in pieces:
            self.clock.now_s += pause_s
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    async def follow(self, request: Any, *pieces: tuple[float, Any]) -> list[Any]:
        return [one async for one in self.online.follow(request, self.clock(), self.answer(pieces))]

    def outcomes(self, slo_class: str = "default") -> dict[str, float]:
        found = {one: self.recorder.value(metrics.ONLINE_REQUESTS, slo_class, one) or 0 for one in OUTCOMES}
        return {outcome: count for outcome, count in found.items() if count}


@pytest.fixture
def measured() -> Measured:
    return Measured()


async def test_a_streamed_answer_has_a_first_piece_and_an_end(measured: Measured) -> None:
    assert await measured.follow(STREAMED, (0.25, "a"), (0.5, "b")) == ["a", "b"]
    assert measured.recorder.observations(metrics.ONLINE_TTFT, "default") == [0.25]
    assert measured.recorder.observations(metrics.ONLINE_E2E, "default") == [0.75]
    assert measured.recorder.value(metrics.ONLINE_FIRST_TOKENS, "default") == 1
    assert measured.recorder.value(metrics.ONLINE_LATE_FIRST_TOKENS, "default") == 0
    assert measured.outcomes() == {"answered": 1}


async def test_the_objective_is_that_of_the_class(measured: Measured) -> None:
    await measured.follow(SimpleNamespace(stream=True, slo_class="fast"), (0.25, "a"))
    assert measured.recorder.value(metrics.ONLINE_LATE_FIRST_TOKENS, "fast") == 1
    assert measured.outcomes("fast") == {"answered": 1}


async def test_an_answer_that_comes_at_once_has_no_first_piece(measured: Measured) -> None:
    await measured.follow(SimpleNamespace(stream=False), (2.0, "whole"))
    assert measured.recorder.observations(metrics.ONLINE_TTFT, "default") == []
    assert measured.recorder.observations(metrics.ONLINE_E2E, "default") == [2.0]


async def test_what_the_engine_refuses_is_no_failure(measured: Measured) -> None:
    await measured.follow(STREAMED, (0.01, refusal(InvalidRequest("no", "max_tokens"))))
    await measured.follow(STREAMED, (0.01, ErrorResponse(error=ErrorInfo(message="x", type="y", code=500))))
    measured.online.refuse(SimpleNamespace(slo_class="nonsense"))
    assert measured.outcomes() == {"refused": 1, "failed": 1}
    assert measured.outcomes(OTHER) == {"refused": 1}
    assert measured.recorder.observations(metrics.ONLINE_E2E, "default") == []


async def test_an_engine_that_ends_fails_its_requests(measured: Measured) -> None:
    with pytest.raises(RuntimeError, match="gone"):
        await measured.follow(STREAMED, (0.1, "a"), (0.1, RuntimeError("gone")))
    await measured.follow(STREAMED, (0.1, "a"), (0.1, 'data: {"error": {}}\n\n'))
    assert measured.outcomes() == {"failed": 2}


async def test_a_client_that_leaves_is_counted_as_such(measured: Measured) -> None:
    answer = measured.online.follow(STREAMED, measured.clock(), measured.answer([(0.1, "a"), (0.1, "b")]))
    async with aclosing(answer):
        assert await anext(answer) == "a"
    assert measured.outcomes() == {"abandoned": 1}


async def test_a_request_that_is_cancelled_at_the_front_is_abandoned(measured: Measured) -> None:
    with pytest.raises(asyncio.CancelledError):
        await measured.follow(STREAMED, (0.1, "a"), (0.1, asyncio.CancelledError()))
    assert measured.outcomes() == {"abandoned": 1}


def test_gaps_and_waits_come_from_the_engine_by_priority(measured: Measured) -> None:
    measured.online.note_queued(0, 0.05)  # The class with the shortest TTFT.
    measured.online.note_queued(1, 0.5)
    for gap_s in (0.01, 0.03):
        measured.online.note_gap(0, gap_s)
    measured.online.report()
    measured.online.report()
    recorder = measured.recorder
    assert recorder.observations(metrics.ONLINE_QUEUE, "fast") == [0.05]
    assert recorder.observations(metrics.ONLINE_QUEUE, "default") == [0.5]
    assert recorder.observations(metrics.ONLINE_TBT, "fast") == [0.01, 0.03]
    assert recorder.value(metrics.ONLINE_NEXT_TOKENS, "fast") == 2
    assert recorder.value(metrics.ONLINE_LATE_NEXT_TOKENS, "fast") == 1
    assert recorder.value(metrics.ONLINE_NEXT_TOKENS, "default") == 0


@pytest.mark.parametrize(("named", "label"), [(None, "default"), ("fast", "fast"), ("x", OTHER), (["fast"], OTHER)])
def test_a_class_that_there_is_not_makes_no_series_of_its_own(named: Any, label: str) -> None:
    assert class_of(SimpleNamespace(slo_class=named), SLO) == label
    assert class_of(SimpleNamespace(), SLO) == "default"


async def test_what_was_felt_lately_is_kept_for_the_reports(measured: Measured) -> None:
    await measured.follow(STREAMED, (0.25, "data: a"), (1.0, "data: b"))
    measured.online.note_gap(1, 0.04)
    latency = measured.online.latency.measure(measured.clock())["latency"]
    assert latency["default"].ttft_p95_ms == 250.0
    assert latency["default"].tbt_p95_ms == 40.0
