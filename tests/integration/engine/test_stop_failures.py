"""What happens to requests and files when processes of an engine with safepoints die or hang."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from conserve.engine.direct import DirectEngine
from tests.integration.engine.calls import LONG, Call, run
from tests.integration.engine.engines import make_settings, start_engine

SHARED = Path("/dev/shm")
OFFLINE = Call(LONG[0].prompt, 200, online=False)


def list_files() -> set[Path]:
    return set(SHARED.glob("conserve-*"))


def find_processes(engine: DirectEngine, name: str) -> list[psutil.Process]:
    return [process for process in engine._processes if name in "".join(process.cmdline())]


@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
async def test_a_process_that_dies_ends_requests_with_an_error_and_leaves_no_file(tiny_llama: Path, name: str) -> None:
    before = list_files()
    async with start_engine(tiny_llama, make_settings("conserve")) as engine:
        assert len(list_files() - before) >= 2
        task = asyncio.create_task(run(engine, OFFLINE))
        await asyncio.sleep(0.3)
        assert not task.done()
        for process in find_processes(engine, name):
            process.send_signal(signal.SIGKILL)
        with pytest.raises(Exception, match=r"EngineCore|[Ee]ngine"):
            await asyncio.wait_for(task, 60)
    assert list_files() == before


async def test_a_worker_that_never_answers_ends_requests_with_an_error(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "3")
    before = list_files()
    async with start_engine(tiny_llama, make_settings("conserve")) as engine:
        task = asyncio.create_task(run(engine, OFFLINE))
        await asyncio.sleep(0.3)
        workers = find_processes(engine, "Worker")
        assert workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        try:
            with pytest.raises(Exception, match=r"EngineCore|[Ee]ngine"):
                await asyncio.wait_for(task, 60)
            assert time.monotonic() - began_s < 30
        finally:
            for worker in workers:
                if worker.is_running():
                    worker.send_signal(signal.SIGKILL)
    assert list_files() == before
