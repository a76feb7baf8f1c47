"""Redis is out of memory under `noeviction`, or its disk is full: it takes nothing in, and nothing is lost."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError
from starlette.datastructures import UploadFile

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.connection import connect
from conserve.jobs.errors import ApiError, NotDurableError
from conserve.jobs.files import FileStore
from conserve.jobs.keys import Keys
from conserve.jobs.validation import RequestRange
from conserve.policy.retry import FaultKind
from tests.integration.bench import LONG_MS, TIMEOUT_S, URL, Bench, make_input, stream
from tests.integration.jobs.test_batch_routes import BASE, make_app


@asynccontextmanager
async def out_of_memory(redis: Redis) -> AsyncIterator[None]:
    """Less memory than an empty server takes, until the block ends."""
    await redis.config_set("maxmemory", "100kb")
    try:
        yield
    finally:
        await redis.config_set("maxmemory", "0")


@pytest.fixture
async def http(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(bench.service)), base_url=BASE) as client:
        yield client


def check_unavailable(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["Retry-After"] == "5"
    assert answer.json()["error"]["code"] == "service_unavailable"


async def test_without_memory_intake_refuses_and_what_runs_comes_to_its_end(
    bench: Bench, redis: Redis, http: httpx.AsyncClient
) -> None:
    batch_id = await bench.start(6)
    file = await bench.service.upload_file("in.jsonl", "batch", stream(make_input(1)))
    waiting = await bench.submit(make_input(2))
    claimed = await bench.queue.claim(batch_id, 5, LONG_MS, "a")
    used = await bench.queue.ledger.used("default")
    async with out_of_memory(redis):
        body = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"}
        check_unavailable(await http.post("/v1/batches", json=body))
        form = {"file": ("in.jsonl", make_input(1))}
        check_unavailable(await http.post("/v1/files", data={"purpose": "batch"}, files=form))
        with pytest.raises(ApiError) as refused:
            await bench.submit(make_input(1))
        assert (refused.value.status, refused.value.retry_after_s) == (503, 5)
        assert await bench.queue.ledger.used("default") == used, "what was refused takes up nothing"

        await bench.finish(claimed[:2])
        renewed = await bench.queue.renew(batch_id, {one.line: one.fence for one in claimed[2:]}, LONG_MS)
        assert not renewed.lost
        assert await bench.queue.release(batch_id, {claimed[2].line: claimed[2].fence}) == 1
        assert await bench.queue.retry(claimed[3], FaultKind.ENGINE_FAULT, "it broke")
        await bench.finish(claimed[4:])
        again = await bench.queue.claim(batch_id, 6, LONG_MS, "b")
        assert sorted(one.line for one in again) == [3, 4, 6]
        await bench.keeper.run_once()
        await bench.finish(again)
        batch, output, errors = await bench.end(batch_id)
        assert (batch.status, output, errors) == ("completed", [f"id-{i}" for i in range(1, 7)], {})
        assert (await bench.queue.ledger.used("default")).requests == 2, "what the other batch waits with"
        assert (await bench.get(waiting)).status == "validating"
    bench.now_s += 100
    await bench.keeper.run_once()
    await bench.finish(await bench.queue.claim(waiting, 2, LONG_MS, "a"))
    assert (await bench.end(waiting))[1] == ["id-1", "id-2"]
    assert (await http.post("/v1/batches", json=body)).status_code == 200


async def test_without_memory_a_validation_that_has_begun_waits(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.submit(make_input(2))
    assert await bench.queue.begin_enqueue(batch_id, "token")
    parts = [RequestRange(1, 0, 10), RequestRange(2, 11, 10)]
    async with out_of_memory(redis):
        with pytest.raises(OutOfMemoryError):
            await bench.queue.enqueue(batch_id, "token", 0, parts)
    assert await bench.queue.enqueue(batch_id, "token", 0, parts) == 2, "nothing of it was taken"


async def test_without_memory_a_batch_is_cancelled(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(3)
    claimed = await bench.queue.claim(batch_id, 2, LONG_MS, "a")
    async with out_of_memory(redis):
        await bench.finish(claimed[:1])
        await bench.service.cancel_batch(batch_id)
        await bench.queue.release(batch_id, {2: claimed[1].fence})
        batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output, sorted(errors)) == ("cancelled", ["id-1"], ["id-2", "id-3"])


async def test_without_memory_a_batch_expires(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(1)
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await redis.hset(key, "expires_at_ms", "1")  # type: ignore[misc]
    async with out_of_memory(redis):
        batch, _, errors = await bench.end(batch_id)
    assert (batch.status, errors) == ("expired", {"id-1": "batch_expired"})


async def test_without_memory_leases_that_run_out_are_taken_away(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(1)
    await bench.queue.claim(batch_id, 1, 1, "a")
    await bench.lapse()
    async with out_of_memory(redis):
        bench.now_s += 100
        await bench.keeper.run_once()
        [again] = await bench.queue.claim(batch_id, 1, LONG_MS, "b")
        assert again.attempt == 2
        await bench.finish([again])
        assert (await bench.end(batch_id))[1] == ["id-1"]


async def test_a_batch_is_not_acknowledged_when_the_disk_is_not_waited_for(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = DiskBarrier(redis, Keys(settings.jobs.namespace))
    async with out_of_memory(redis):
        await barrier.wait("file-12345678")
        if not barrier._available:
            pytest.skip("this server has no WAITAOF")
        with monkeypatch.context() as patch:
            patch.setattr(barrier, "_write", "return redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])")
            with pytest.raises(NotDurableError, match="maxmemory"):
                await barrier.wait("file-12345678")
    await redis.config_set("appendfsync", "no")
    monkeypatch.setattr("conserve.jobs.barrier._WAIT_MS", 1)
    try:
        with pytest.raises(NotDurableError):
            await barrier.wait("file-12345678")
    finally:
        await redis.config_set("appendfsync", "always")


async def test_a_refusal_to_wait_for_the_disk_does_not_switch_waiting_off(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = DiskBarrier(redis, Keys(settings.jobs.namespace))
    await barrier.wait("file-12345678")
    if not barrier._available:
        pytest.skip("this server has no WAITAOF")
    with monkeypatch.context() as patch:
        patch.setattr("conserve.jobs.barrier._WAIT_MS", -1)  # It says that the timeout is negative.
        with pytest.raises(NotDurableError, match="negative"):
            await barrier.wait("file-12345678")
    await redis.config_set("appendfsync", "no")
    monkeypatch.setattr("conserve.jobs.barrier._WAIT_MS", 1)
    try:
        with pytest.raises(NotDurableError):
            await barrier.wait("file-12345678")
    finally:
        await redis.config_set("appendfsync", "always")


async def test_a_full_disk_of_redis_is_an_outage(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "jobs": {"lease_ms": LONG_MS}})
    redis = await connect(settings)
    try:
        await redis.config_set("appendfsync", "always")  # As in `conftest`.
        bench = Bench(redis, FileStore(settings.files_url), settings)
        batch_id = await bench.start(2)
        [claimed] = await bench.queue.claim(batch_id, 1, 1, "a")
        await bench.lapse()
        # The server cannot save, as with a full disk: there is a folder in the place of its file.
        (tmp_path / "redis" / "dump.rdb").mkdir()
        await redis.config_set("save", "3600 1000000")
        await redis.bgsave()
        async with asyncio.timeout(TIMEOUT_S):
            while (await redis.info("persistence"))["rdb_last_bgsave_status"] == "ok":
                await asyncio.sleep(0.01)
        for call in (bench.submit(make_input(1)), bench.service.cancel_batch(batch_id)):
            with pytest.raises(ApiError) as refused:
                await call
            assert (refused.value.status, refused.value.retry_after_s) == (503, 5)
        bench.now_s += 100
        with pytest.raises(Exception, match="MISCONF"):
            await bench.keeper.run_once()
        await redis.config_set("save", "")
        await bench.keeper.run_once()
        renewed = await bench.queue.renew(batch_id, {claimed.line: claimed.fence}, LONG_MS)
        assert not renewed.lost, "replicas are given time to renew"
        await bench.finish([claimed])
        await bench.finish(await bench.queue.claim(batch_id, 1, LONG_MS, "a"))
        assert (await bench.end(batch_id))[1] == ["id-1", "id-2"]
    finally:
        await redis.config_set("save", "")
        await redis.aclose()
        assert embedded.stop(tmp_path)


async def test_a_full_disk_for_forms_is_an_outage(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(UploadFile, "write", fail)
    answer = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", make_input(1))})
    check_unavailable(answer)
    assert "space" not in answer.text
