"""Batches that cannot get on wait, say why, and go on when they can."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
from redis.asyncio import Redis

from conserve.jobs.queue import JobQueue
from conserve.jobs.storage import Storage
from tests.integration.bench import LONG_MS, Bench, make_input
from tests.integration.jobs.test_redis_full import out_of_memory


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The storage takes nothing, until the block ends."""

    class FullFile:
        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device", "/var/secret/place")

    real = Storage.create

    @contextmanager
    def create(storage: Storage, path: str) -> Iterator[IO[bytes] | FullFile]:
        with real(storage, path):
            yield FullFile()

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "create", create)
        yield


@pytest.mark.parametrize("restart", [False, True])
async def test_a_batch_waits_for_space_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    batch_id = await bench.start(2)
    await bench.finish(await bench.queue.claim(batch_id, 2, LONG_MS, "a"))
    with full_disk(monkeypatch):
        for _ in range(4):
            await bench.keeper.run_once()
            bench.now_s += 60
            batch = await bench.get(batch_id)
            assert batch.status == "finalizing"
            assert batch.delayed_because == "The file storage is not available: No space left on device."
    if restart:
        bench.keeper = bench.new_keeper()
    batch, output, _ = await bench.end(batch_id)
    assert (batch.status, output, batch.delayed_because) == ("completed", ["id-1", "id-2"], None)
    fields: dict[str, str] = await bench.redis.hgetall(  # type: ignore[misc]
        f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    )
    assert "delayed_because" not in fields


async def test_a_batch_whose_input_cannot_be_read_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.submit(make_input(1))
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "chunks", refuse)
        await bench.keeper.run_once()
    batch = await bench.get(batch_id)
    assert batch.status == "validating"
    assert batch.delayed_because == "The file storage is not available: Permission denied."
    bench.now_s += 60
    await bench.keeper.run_once()
    batch = await bench.get(batch_id)
    assert (batch.status, batch.delayed_because) == ("in_progress", None)


async def test_a_fault_of_ours_is_not_told_in_its_own_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.submit(make_input(1))

    async def fail(*_: Any) -> bool:
        raise ValueError("inner words")

    with monkeypatch.context() as patch:
        patch.setattr(JobQueue, "begin_enqueue", fail)
        await bench.keeper.run_once()
    said = (await bench.get(batch_id)).delayed_because
    assert said is not None
    assert "inner" not in said


async def test_a_batch_that_waits_for_memory_says_so(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.submit(make_input(1))
    async with out_of_memory(redis):
        await bench.keeper.run_once()
        assert (await bench.get(batch_id)).delayed_because == "Redis is out of memory."


def refuse(*_: Any) -> Iterator[bytes]:
    raise PermissionError(errno.EACCES, "Permission denied", "/var/secret/place")
    yield b""


async def test_a_cancelled_batch_does_not_wait_for_its_input(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.submit(make_input(1))
    monkeypatch.setattr(Storage, "chunks", refuse)
    for _ in range(3):
        await bench.keeper.run_once()
        bench.now_s += 60
    await bench.keeper.run_once()  # It is left alone for a while from now on.
    assert (await bench.get(batch_id)).status == "validating"
    await bench.service.cancel_batch(batch_id)
    await bench.keeper.run_once()
    batch = await bench.get(batch_id)
    assert (batch.status, batch.cancelled_at is not None, batch.delayed_because) == ("cancelled", True, None)
    assert batch.errors is not None
    assert "/var" not in batch.errors.model_dump_json()
