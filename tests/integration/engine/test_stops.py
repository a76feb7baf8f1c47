"""Passes that are stopped between two layers, and continued or not, give the tokens of stock vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from conserve.engine import direct
from conserve.engine.direct import DirectEngine
from conserve.engine.page import Knobs
from tests.integration.engine.async_cpu import AsyncCpuExecutor
from tests.integration.engine.calls import GROUP, LONG, SHORT, Call, Outputs, run, run_together, subtract
from tests.integration.engine.engines import make_settings, start_engine

in_loop_of_module = pytest.mark.asyncio(loop_scope="module")

FORCED = "tests.integration.engine.forced_stops.create_forced_scheduler"
RESUMED = Knobs()
ROLLED_BACK = Knobs(resume_off=1)
OFFLINE = [replace(call, online=False) for call in SHORT]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sync", "async", "tp2"])
async def started(request: pytest.FixtureRequest, stock: Outputs, tiny_llama: Path) -> AsyncIterator[DirectEngine]:
    extra: dict[str, Any] = {"distributed_executor_backend": AsyncCpuExecutor} if request.param == "async" else {}
    settings = make_settings("conserve", **extra)
    if request.param == "tp2":
        settings = settings.model_copy(update={"tensor_parallel_size": 2, "cpu_threads_bind": "0|1"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(direct._SCHEDULERS, "conserve", FORCED)
        async with start_engine(tiny_llama, settings) as engine:
            yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def engine(started: DirectEngine) -> DirectEngine:
    """Ours, with nothing in its prefix cache."""
    await started.reset_prefix_cache()
    started.set_knobs(Knobs())
    return started


@in_loop_of_module
@pytest.mark.parametrize("knobs", [RESUMED, ROLLED_BACK], ids=["resumed", "rolled back"])
@pytest.mark.parametrize("calls", [SHORT, LONG], ids=["short", "long"])
async def test_tokens_are_those_of_stock(engine: DirectEngine, stock: Outputs, calls: list[Call], knobs: Knobs) -> None:
    engine.set_knobs(knobs)
    before = engine.counters()
    assert await run_together(engine, calls, bursts=5) == [stock[call] for call in calls]
    counted = subtract(engine.counters(), before)
    assert counted.stops > 20
    assert (counted.resumed_passes > 10) == (knobs is RESUMED)
    if knobs is ROLLED_BACK:
        assert counted.wasted_tokens > 0


@in_loop_of_module
async def test_a_second_pass_through_the_prefix_cache(engine: DirectEngine, stock: Outputs) -> None:
    for start in range(0, len(SHORT), GROUP):
        calls = SHORT[start : start + GROUP]
        for _ in range(2):
            assert await run_together(engine, calls) == [stock[call] for call in calls]


@in_loop_of_module
async def test_a_request_that_is_cancelled_while_it_waits_between_two_layers(
    engine: DirectEngine, stock: Outputs
) -> None:
    async def give_up(call: Call, after_s: float) -> None:
        task = asyncio.create_task(run(engine, call))
        await asyncio.sleep(after_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    leaving = [give_up(replace(call, online=False), 0.02 * number) for number, call in enumerate(LONG[:24])]
    staying = [run(engine, call) for call in OFFLINE]
    outputs, *_ = await asyncio.gather(asyncio.gather(*staying), *leaving)
    assert outputs == [stock[call] for call in SHORT]
