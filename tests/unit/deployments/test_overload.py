"""The gate at a replica: what it is told, what clients hear, and what offline work does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from conserve.config import load_settings
from conserve.engine.engine import CoServeEngine
from conserve.engine.page import EnginePage
from conserve.jobs.errors import ApiError
from conserve.policy.outlook import Outlook
from conserve.policy.overload import Conditions
from conserve.telemetry import online_metrics as metrics
from conserve.telemetry.memory_recorder import MemoryRecorder
from deployments import overload
from deployments.online_metrics import OnlineMetrics
from deployments.overload import OVERLOADED, OverloadGuard, Visit, count_places, raise_overload
from deployments.ray_compat import ErrorResponse

SETTINGS = load_settings({"slo": {"ttft_slo_ms": 1_000}, "overload": {"ttft_share": 1.0}}, {})
CHAT = SimpleNamespace()


class Guarded:
    def __init__(self, engine: CoServeEngine | None = None) -> None:
        self.now_s = 100.0
        self.recorder = MemoryRecorder()
        self.online = OnlineMetrics(self.recorder, SETTINGS.slo, self.clock)
        self.engine = engine or CoServeEngine(SimpleNamespace())  # type: ignore[arg-type] - it is not asked
        self.guard = OverloadGuard(SETTINGS, self.engine, self.find_conditions, self.online, self.clock)

    def clock(self) -> float:
        return self.now_s

    def find_conditions(self, running: int) -> Conditions:
        return Conditions(Outlook(iteration_ms=10.0, prompt_token_ms=1.0, iteration_tokens=1e6), 0.0, 16)

    def fill(self) -> list[Visit]:
        """As many as are let in."""
        visits = []
        while isinstance(visit := self.guard.let_in(CHAT, 0, 300.0), Visit):
            visits.append(visit)
        assert visits
        return visits


async def test_a_refusal_becomes_429_with_the_time_to_wait_and_is_counted() -> None:
    guarded = Guarded()
    guarded.fill()
    refused = guarded.guard.let_in(CHAT, 0, 5_000.0)
    assert isinstance(refused, ErrorResponse)

    async def answer() -> AsyncGenerator[Any, None]:
        yield refused

    with pytest.raises(ApiError) as caught:
        [part async for part in raise_overload(answer())]
    error = caught.value
    assert (error.status, error.code) == (429, OVERLOADED)
    assert int(error.headers()["Retry-After"]) >= 1
    assert guarded.recorder.value(metrics.ONLINE_OVERLOAD, "default", "ttft") == 2
    assert guarded.recorder.value(metrics.ONLINE_REQUESTS, "default", "overload") == 2


async def test_other_answers_pass() -> None:
    async def answer() -> AsyncGenerator[Any, None]:
        yield "data: hello\n\n"

    assert [part async for part in raise_overload(answer())] == ["data: hello\n\n"]


async def test_first_tokens_and_ends_make_room() -> None:
    guarded = Guarded()
    visits = guarded.fill()
    visits[0].note_first()
    assert isinstance(guarded.guard.let_in(CHAT, 0, 300.0), Visit)
    visits[1].end()
    visits[1].end()
    assert len(guarded.fill()) == 1


async def test_an_answer_that_nobody_reads_holds_no_place() -> None:
    guarded = Guarded()
    visits = guarded.fill()

    async def read() -> AsyncGenerator[str, None]:
        yield "never"

    answer = read()
    visits[0].end_with(answer)
    assert isinstance(guarded.guard.let_in(CHAT, 0, 300.0), ErrorResponse)
    del answer
    assert isinstance(guarded.guard.let_in(CHAT, 0, 300.0), Visit)


async def test_offline_work_pauses_until_none_is_refused_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "PAUSE_S", 0.01)
    page = EnginePage.create()
    try:
        guarded = Guarded(CoServeEngine(SimpleNamespace(), page=page))  # type: ignore[arg-type] - it is not asked
        assert page.read_knobs().offline_paused == 0.0
        guarded.fill()
        assert page.read_knobs().offline_paused == 1.0
        await asyncio.sleep(0.05)
        assert page.read_knobs().offline_paused == 1.0
        guarded.now_s += 10.0
        async with asyncio.timeout(60):
            while page.read_knobs().offline_paused:
                await asyncio.sleep(0.01)
    finally:
        page.remove()


@pytest.mark.parametrize(
    ("request_", "places"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"prompt": "text", "n": None}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"input": ["a", "b", "c"]}, 3),
        ({"n": 10**9}, 128),
    ],
)
def test_sequences_are_counted(request_: dict[str, Any], places: int) -> None:
    assert count_places(SimpleNamespace(**request_)) == places
