"""Requests whose KV blocks were taken and came back from host memory give the tokens of stock vLLM."""

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
from tests.integration.engine.calls import LONG, Call, Outputs, run, run_together, subtract
from tests.integration.engine.engines import make_settings, start_engine
from tests.integration.engine.test_stops import FORCED

in_loop_of_module = pytest.mark.asyncio(loop_scope="module")
FEW_BLOCKS_GIB = 0.0004
"""Room for some blocks of the tiny model, far fewer than preemptions take."""


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sync", "async", "tp2", "few slots", "stops", "async stops", "blocks of 128"],
)
async def started(request: pytest.FixtureRequest, stock: Outputs, tiny_llama: Path) -> AsyncIterator[DirectEngine]:
    extra: dict[str, Any] = {}
    if "async" in request.param:
        extra["distributed_executor_backend"] = AsyncCpuExecutor
    if request.param == "blocks of 128":
        extra |= {"block_size": 128, "num_gpu_blocks_override": 17}
    settings = make_settings("conserve", **extra).model_copy(update={"host_copy_share": 1.0})
    if request.param == "tp2":
        settings = settings.model_copy(update={"tensor_parallel_size": 2, "cpu_threads_bind": "0|1"})
    if request.param == "few slots":
        settings = settings.model_copy(update={"host_kv_gib": FEW_BLOCKS_GIB})
    with pytest.MonkeyPatch.context() as patch:
        if "stops" in request.param:
            patch.setitem(direct._SCHEDULERS, "conserve", FORCED)
        async with start_engine(tiny_llama, settings) as engine:
            yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def engine(started: DirectEngine) -> DirectEngine:
    """Ours, with nothing in its prefix cache, nor in host memory."""
    await started.reset_prefix_cache()
    started.set_knobs(Knobs())
    return started


@in_loop_of_module
async def test_blocks_come_back_and_tokens_are_those_of_stock(engine: DirectEngine, stock: Outputs) -> None:
    before = engine.counters()
    for _ in range(2):
        assert await run_together(engine, LONG, bursts=5) == [stock[call] for call in LONG]
    counted = subtract(engine.counters(), before)
    assert counted.offline_preemptions > 10
    assert counted.saved_blocks > 10
    assert counted.restored_blocks > 10
    assert counted.copied_blocks > 0
    assert counted.failed_copies == 0
    assert engine.counters().host_blocks == 0


@in_loop_of_module
async def test_requests_that_are_cancelled_while_blocks_are_copied(engine: DirectEngine, stock: Outputs) -> None:
    async def give_up(call: Call, after_s: float) -> None:
        task = asyncio.create_task(run(engine, replace(call, online=False)))
        await asyncio.sleep(after_s)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    leaving = [give_up(call, 0.05 * number) for number, call in enumerate(LONG[:24])]
    outputs, *_ = await asyncio.gather(run_together(engine, LONG, bursts=5), *leaving)
    assert outputs == [stock[call] for call in LONG]
    assert engine.counters().host_blocks == 0


@in_loop_of_module
async def test_without_them_tokens_are_computed_again(
    request: pytest.FixtureRequest, engine: DirectEngine, stock: Outputs
) -> None:
    lost = {}
    for off in (1.0, 0.0):
        await engine.reset_prefix_cache()
        engine.set_knobs(Knobs(checkpoints_off=off))
        before = engine.counters()
        assert await run_together(engine, LONG, bursts=5) == [stock[call] for call in LONG]
        counted = subtract(engine.counters(), before)
        lost[off] = counted.offline_recomputed_tokens / counted.offline_preemptions
        assert bool(counted.restored_blocks) != bool(off)
    if "few slots" not in request.node.name:  # what few slots save is lost in the noise
        assert lost[0.0] < lost[1.0] / 2
