from __future__ import annotations

import asyncio
import json
import random
import secrets
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.results import FinishedRequest, ResultWriter
from conserve.jobs.segments import SegmentReader
from tests.integration.bench import LONG_MS, TIMEOUT_S, URL, Bench, make_input, make_line


async def crashing_worker(bench: Bench, batch_id: str, chance: random.Random) -> None:
    """Claims, works, and now and then is gone: with its leases, before or after its segment was written."""
    while not (await bench.get(batch_id)).status.ended:
        writer = ResultWriter(bench.queue, bench.store, f"w{secrets.token_hex(8)}")
        claimed = await bench.queue.claim(batch_id, chance.randint(1, 8), 60, writer_epoch := secrets.token_hex(8))
        assert all(one.fence.endswith(writer_epoch) for one in claimed)
        await asyncio.sleep(chance.random() * 0.05)
        fate = chance.random()
        if fate < 0.15:
            continue
        if fate < 0.3 and claimed:
            await bench.write(claimed)
            continue
        for one in claimed:
            writer.add(FinishedRequest(batch_id, one.line, one.fence, "output", await bench.answer(one), 1, 1))
        await writer.flush()
        await asyncio.sleep(0.005)


async def test_every_request_counts_once_while_workers_crash(bench: Bench) -> None:
    count = 120
    batch_id = await bench.submit(make_input(count))
    seed = random.randrange(2**32)
    print(f"seed {seed}")

    async def keep() -> None:
        while not (await bench.get(batch_id)).status.ended:
            bench.now_s += bench.lease_s
            await bench.keeper.run_once()
            await asyncio.sleep(0.01)

    async with asyncio.timeout(2 * TIMEOUT_S), asyncio.TaskGroup() as group:
        group.create_task(keep())
        for number in range(4):
            group.create_task(crashing_worker(bench, batch_id, random.Random(seed + number)))
    batch, output, errors = await bench.end(batch_id)
    assert batch.status == "completed"
    assert set(errors.values()) <= {"max_attempts_exceeded"}
    expected = [f"id-{i}" for i in range(1, count + 1)]
    assert output == [custom_id for custom_id in expected if custom_id not in errors]
    assert sorted(output + list(errors)) == sorted(expected)
    for line in await bench.read(batch.output_file_id):
        assert line["response"]["body"]["echo"] == f"say {line['custom_id']}"
    assert not bench.store.storage.exists(f"segments/{batch_id}")
    assert await bench.queue.active_ids() == {}


async def test_expiry(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(3, "1m")
    claimed = await bench.queue.claim(batch_id, 2, LONG_MS, "a")
    await bench.finish(claimed[:1])
    late = await bench.write(claimed[1:])
    assert not await bench.queue.expire(batch_id)
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await redis.hset(key, "expires_at_ms", "1")  # type: ignore[misc]
    await bench.keeper.run_once()
    assert (await bench.get(batch_id)).status == "finalizing"
    assert await bench.queue.commit(batch_id, late) == set()
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output) == ("expired", ["id-1"])
    assert errors == {"id-2": "batch_expired", "id-3": "batch_expired"}
    assert batch.expired_at is not None


async def test_a_window_that_ended_before_validation_still_names_every_line(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.submit(make_input(2))
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await redis.hset(key, "expires_at_ms", "1")  # type: ignore[misc]
    batch, _, errors = await bench.end(batch_id)
    assert (batch.status, sorted(errors)) == ("expired", ["id-1", "id-2"])


async def test_cancelled_before_validation(bench: Bench) -> None:
    batch_id = await bench.submit(make_input(2))
    await bench.service.cancel_batch(batch_id)
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output) == ("cancelled", [])
    assert errors == {"id-1": "batch_cancelled", "id-2": "batch_cancelled"}
    assert batch.in_progress_at is None
    broken = await bench.submit(b"{")
    await bench.service.cancel_batch(broken)
    batch, output, errors = await bench.end(broken)
    assert (batch.status, output, errors) == ("cancelled", [], {})
    assert batch.errors is not None


BAD_FILES: list[tuple[list[Any], str, str | None, int | None]] = [
    (["{nope"], "invalid_json_line", None, 1),
    (["7"], "invalid_request", None, 1),
    ([make_line("a"), make_line("a")], "duplicate_custom_id", "custom_id", 2),
    ([make_line(None)], "invalid_custom_id", "custom_id", 1),
    ([make_line("a"), make_line("b", method="GET")], "invalid_method", "method", 2),
    ([make_line("a", url="/v1/embeddings")], "invalid_url", "url", 1),
    ([make_line("a", body=None)], "invalid_body", "body", 1),
    ([make_line("a", body={"model": "model-a", "stream": True})], "stream_not_supported", "body.stream", 1),
    ([make_line("a", body={"model": "other"})], "model_not_found", "body.model", 1),
    ([], "empty_file", None, None),
]


@pytest.mark.parametrize(("lines", "code", "param", "number"), BAD_FILES, ids=[bad[1] for bad in BAD_FILES])
async def test_a_file_that_is_not_valid_fails_the_batch(
    bench: Bench, lines: list[Any], code: str, param: str | None, number: int | None
) -> None:
    content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    batch_id = await bench.submit(content.encode())
    await bench.keeper.run_once()
    batch = await bench.get(batch_id)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == (code, param, number)
    assert await bench.queue.claim(batch_id, 9, LONG_MS, "a") == []
    await bench.keeper.run_once()
    assert await bench.queue.active_ids() == {}


async def test_finalizing_again_gives_the_same_files(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(4)
    claimed = await bench.queue.claim(batch_id, 4, LONG_MS, "a")
    error_refs = await bench.write(claimed[1:2], "error")
    assert await bench.queue.commit(batch_id, error_refs) == {2}
    await bench.finish([claimed[0], *claimed[2:]])
    keepers = [bench.new_keeper() for _ in range(3)]
    await asyncio.gather(*(keeper.run_once() for keeper in keepers))
    first = await bench.get(batch_id)
    assert first.status == "completed"
    content = await bench.read(first.output_file_id), await bench.read(first.error_file_id)
    await bench.end(batch_id)
    # A failover of Redis to an older state: the batch is finalizing again, its segments are gone already.
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await redis.hset(key, "status", "finalizing")  # type: ignore[misc]
    await redis.hdel(key, "output_file_id", "error_file_id")  # type: ignore[misc]
    await redis.zadd(f"{bench.settings.jobs.namespace}:{{index}}:active", {batch_id: 1})
    again, output, errors = await bench.end(batch_id)
    assert (again.output_file_id, again.error_file_id) == (first.output_file_id, first.error_file_id)
    assert (await bench.read(again.output_file_id), await bench.read(again.error_file_id)) == content
    assert (output, errors) == (["id-1", "id-3", "id-4"], {"id-2": "response"})
    files = await bench.service.list_files("batch_output")
    assert len(files.data) == 2


async def test_one_broken_batch_does_not_stop_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, good = await bench.start(1), await bench.start(1)
    for batch_id in (broken, good):
        await bench.finish(await bench.queue.claim(batch_id, 1, LONG_MS, "a"))
    real = SegmentReader.read
    calls = 0

    def fail_for_one(self: SegmentReader, *place: Any) -> bytes:
        nonlocal calls
        if self._batch_id == broken:
            calls += 1
            raise OSError("storage away")
        return real(self, *place)

    monkeypatch.setattr(SegmentReader, "read", fail_for_one)
    for _ in range(3):
        await bench.keeper.run_once()
    assert (await bench.get(good)).status == "completed"
    assert (await bench.get(broken)).status == "finalizing"
    assert calls == 1, "tried again only after a pause"
    bench.now_s += 0.6
    await bench.keeper.run_once()
    assert calls == 2
    monkeypatch.setattr(SegmentReader, "read", real)
    bench.now_s += 60
    _, output, _ = await bench.end(broken)
    assert output == ["id-1"]
    assert "storage away" in "".join(capsys.readouterr())


async def test_leases_are_left_alone_for_a_while_after_a_start_or_an_outage(bench: Bench) -> None:
    batch_id = await bench.start(1)
    await bench.queue.claim(batch_id, 1, 1, "a")
    await bench.lapse()
    await bench.keeper.run_once()
    assert (await bench.queue.active_summaries())[0].leased == 1
    bench.keeper._watch._run_id = "of the server before"
    bench.now_s += bench.lease_s
    await bench.keeper.run_once()
    assert (await bench.queue.active_summaries())[0].leased == 1
    bench.now_s += bench.lease_s
    await bench.keeper.run_once()
    assert (await bench.queue.active_summaries())[0].leased == 0


async def test_the_keeper_runs_by_itself_until_stopped(bench: Bench) -> None:
    batch_id = await bench.submit(make_input(700))
    task = asyncio.create_task(bench.keeper.run(0.01))
    async with asyncio.timeout(TIMEOUT_S):
        claimed: list[ClaimedRequest] = []
        while not claimed:
            await asyncio.sleep(0.01)
            claimed = await bench.queue.claim(batch_id, 700, LONG_MS, "a")
        await bench.finish(claimed)
        active = True
        while active:
            await asyncio.sleep(0.01)
            active = bool(await bench.queue.active_ids())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _, output, _ = await bench.end(batch_id)
    assert output == [f"id-{i}" for i in range(1, 701)]


async def test_a_batch_that_never_came_to_be_is_forgotten(bench: Bench, redis: Redis) -> None:
    namespace = bench.settings.jobs.namespace
    now_s, _ = await redis.time()
    for index in ("batches", "active"):
        old, fresh = {"batch_00000001": 1}, {"batch_00000002": now_s * 1000}
        await redis.zadd(f"{namespace}:{{index}}:{index}", old | fresh)
    await bench.keeper.run_once()
    assert list(await bench.queue.active_ids()) == ["batch_00000002"]


async def test_results_wait_for_a_storage_that_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.start(1)
    (one,) = await bench.queue.claim(batch_id, 1, LONG_MS, "a")
    writer = ResultWriter(bench.queue, bench.store, "w1")
    writer.add(FinishedRequest(batch_id, one.line, one.fence, "output", await bench.answer(one)))
    with monkeypatch.context() as patch:

        async def fail(*_: Any) -> None:
            raise OSError("storage away")

        patch.setattr(bench.store, "write_segment", fail)
        report = await writer.flush()
    assert list(report.failed) == [batch_id]
    assert writer.pending_count == 1
    assert (await writer.flush()).accepted == {batch_id: {1}}
    assert writer.pending_count == 0
    assert (await writer.flush()).accepted == {}


async def test_an_input_file_in_use_stays(bench: Bench, queue: JobQueue, store: FileStore) -> None:
    batch_id = await bench.start(1)
    file_id = (await bench.get(batch_id)).input_file_id
    with pytest.raises(Exception, match="has not ended"):
        await bench.service.delete_file(file_id)
    await bench.service.cancel_batch(batch_id)
    await bench.end(batch_id)
    assert (await bench.service.delete_file(file_id)).deleted
    assert not store.storage.exists(store.file_path(file_id))
    with pytest.raises(Exception, match="No such File"):
        await bench.service.create_batch(file_id, URL, "24h")
