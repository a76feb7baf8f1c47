"""The keeper is gone at some step; the next one goes on, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.jobs import validation
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.storage import Storage
from tests.integration.bench import LONG_MS, TIMEOUT_S, Bench, make_input

STEPS: list[tuple[type, str, int]] = [
    (JobQueue, "begin_enqueue", 1),
    (JobQueue, "enqueue", 1),
    (JobQueue, "enqueue", 2),
    (JobQueue, "start", 1),
    (Storage, "create", 1),
    (Storage, "create", 2),
    (Storage, "create", 3),
    (FileCatalog, "put", 1),
    (FileCatalog, "put", 2),
    (JobQueue, "finish", 1),
    (FileStore, "delete_segments", 1),
    (FileCatalog, "unpin", 1),
    (JobQueue, "retire", 1),
]


class Crash(Exception):
    pass


def crash_at(patch: pytest.MonkeyPatch, owner: type, name: str, nth: int, *, done: bool) -> list[str]:
    """Makes the nth call of a method fail, before or after it did its work; the list tells whether it came to that."""
    real = getattr(owner, name)
    calls = 0
    fired: list[str] = []

    def counts() -> bool:
        nonlocal calls
        calls += 1
        if calls == nth:
            fired.append(name)
        return calls == nth

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        crash = counts()
        result = await real(*args, **kwargs) if done or not crash else None
        if crash:
            raise Crash
        return result

    def call(*args: Any, **kwargs: Any) -> Any:
        if counts():
            raise Crash
        return real(*args, **kwargs)

    patch.setattr(owner, name, call_async if inspect.iscoroutinefunction(real) else call)
    return fired


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name", "nth"), STEPS, ids=[f"{step[1]}-{step[2]}" for step in STEPS])
async def test_a_crash_anywhere(
    bench: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, nth: int, done: bool
) -> None:
    monkeypatch.setattr(validation, "_PART_REQUESTS", 2)
    batch_id = await bench.submit(make_input(4))
    validator = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:validator"

    async def keep(crashing: bool) -> None:
        """A keeper's life; whatever happens, the next call is a new keeper."""
        keeper = bench.new_keeper()
        await keeper.run_once()
        await keeper.close()
        if crashing:
            await redis.delete(validator)  # The token of a keeper that is gone runs out.

    fired = 0
    async with asyncio.timeout(TIMEOUT_S):
        crashed = False
        while not (await bench.get(batch_id)).status.ended or await bench.queue.active_ids():
            with monkeypatch.context() as patch:
                crashes = [] if crashed else crash_at(patch, owner, name, nth, done=done)
                for _ in range(2):
                    await keep(not crashed)
                fired += len(crashes)
            claimed = await bench.queue.claim(batch_id, 4, LONG_MS, "a")
            if claimed:
                assert [one.line for one in claimed] == [1, 2, 3, 4]
                assert await bench.queue.commit(batch_id, await bench.write(claimed[:1], "error")) == {1}
                await bench.finish(claimed[1:])
                # From here on it is the finalizing that breaks.
                with monkeypatch.context() as patch:
                    crashes = crash_at(patch, owner, name, nth, done=done)
                    for _ in range(2):
                        await keep(False)
                    fired += len(crashes)
                crashed = True
    assert fired
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output, errors) == ("completed", ["id-2", "id-3", "id-4"], {"id-1": "response"})
    assert len((await bench.service.list_files("batch_output")).data) == 2
    assert not bench.store.storage.exists(f"segments/{batch_id}")
    assert (await bench.service.delete_file(batch.input_file_id)).deleted
