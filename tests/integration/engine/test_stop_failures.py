"""What happens to requests and files when processes of an engine with safepoints die or hang."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from conserve.engine.direct import DirectEngine
from tests.integration.engine.calls import LONG, Call, run
from tests.integration.engine.engines import make_settings, start_engine

LIMIT_S = 120.0
"""Less than vLLM waits for a worker by itself."""
SHARED = Path("/dev/shm")
OFFLINE = [Call(call.prompt, 150, online=False) for call in LONG]
"""Work for seconds, also where the machine stands still for a moment."""


def list_files() -> set[Path]:
    return set(SHARED.glob("conserve-*"))


async def begin(engine: DirectEngine) -> list[asyncio.Task[list[int]]]:
    """Requests of which one has a token."""
    runs = asyncio.Event()
    tasks = [asyncio.create_task(run(engine, call, lambda _: runs.set())) for call in OFFLINE]
    await asyncio.wait_for(runs.wait(), LIMIT_S)
    assert not any(task.done() for task in tasks)
    return tasks


async def expect_errors(tasks: list[asyncio.Task[list[int]]]) -> None:
    """Each ends with an error that names the engine, within a bounded time."""
    async with asyncio.timeout(LIMIT_S):
        for task in tasks:
            with pytest.raises(Exception, match=r"EngineCore|[Ee]ngine"):
                await task


def find_processes(engine: DirectEngine, name: str) -> list[psutil.Process]:
    return [process for process in engine._processes if name in "".join(process.cmdline())]


@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
async def test_a_process_that_dies_ends_requests_with_an_error_and_leaves_no_file(tiny_llama: Path, name: str) -> None:
    before = list_files()
    async with start_engine(tiny_llama, make_settings("conserve")) as engine:
        own = list_files() - before
        assert len(own) >= 2
        tasks = await begin(engine)
        for process in find_processes(engine, name):
            process.send_signal(signal.SIGKILL)
        await expect_errors(tasks)
    assert not own & list_files()  # Other engines of the machine may have come and gone.


async def test_a_worker_that_never_answers_ends_requests_with_an_error(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "3")
    before = list_files()
    async with start_engine(tiny_llama, make_settings("conserve")) as engine:
        own = list_files() - before
        tasks = await begin(engine)
        workers = find_processes(engine, "Worker")
        assert workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        try:
            await expect_errors(tasks)
        finally:
            for worker in workers:
                if worker.is_running():
                    worker.send_signal(signal.SIGKILL)
    assert not own & list_files()  # Other engines of the machine may have come and gone.
