"""Results streamed while a batch runs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs import result_feed
from conserve.jobs.errors import ApiError
from conserve.jobs.segments import SegmentReader
from conserve.jobs.service import JobService
from conserve.policy.retry import FaultKind
from tests.integration.bench import LONG_MS, MODEL, TIMEOUT_S, Bench, make_input


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_feed, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(result_feed, "_LONGEST_PAUSE_S", 0.02)


async def read(bench: Bench, batch_id: str, after: int = 0, *, follow: bool = False) -> list[dict[str, Any]]:
    async with asyncio.timeout(TIMEOUT_S):
        lines = await bench.service.stream_results(batch_id, after, follow=follow)
        content = b"".join([piece async for piece in lines])
    assert not content or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines() if line]


async def read_ids(bench: Bench, batch_id: str, after: int = 0, *, follow: bool = False) -> list[str]:
    return [line["custom_id"] for line in await read(bench, batch_id, after, follow=follow)]


async def run(bench: Bench, batch_id: str, *lines: int) -> None:
    """Commits these lines, in this order, of all that are left."""
    claimed = {one.line: one for one in await bench.queue.claim(batch_id, 1_000, LONG_MS, "a")}
    for line in lines:
        await bench.finish([claimed.pop(line)])
    fences = {line: one.fence for line, one in sorted(claimed.items(), reverse=True)}
    if fences:
        await bench.queue.release(batch_id, fences)


async def test_results_come_in_the_order_of_their_commits_while_the_batch_runs(bench: Bench) -> None:
    batch_id = await bench.start(5)
    assert await read(bench, batch_id) == []
    await run(bench, batch_id, 4, 2)
    lines = await read(bench, batch_id)
    assert [line["custom_id"] for line in lines] == ["id-4", "id-2"]
    assert lines[0]["response"]["body"]["echo"] == "say id-4"
    assert await read_ids(bench, batch_id, 1) == ["id-2"]
    assert await read(bench, batch_id, 2) == []
    assert await read(bench, batch_id, 99) == []


async def test_the_end_changes_neither_the_order_nor_the_lines(bench: Bench) -> None:
    batch_id = await bench.start(5)
    await run(bench, batch_id, 4, 2)
    (refused,) = await bench.queue.claim(batch_id, 1, LONG_MS, "a")
    assert refused.line == 1
    await bench.queue.commit(batch_id, await bench.write([refused], "error"))
    before = await read(bench, batch_id)
    await bench.service.cancel_batch(batch_id)
    await bench.end(batch_id)
    after = await read(bench, batch_id)
    assert after[:3] == before
    assert [line["custom_id"] for line in after] == ["id-4", "id-2", "id-1", "id-3", "id-5"]
    assert [line["error"]["code"] for line in after[3:]] == ["batch_cancelled"] * 2
    for position in range(6):
        assert await read(bench, batch_id, position) == after[position:]


async def test_who_follows_gets_each_line_once_until_the_batch_has_ended(bench: Bench) -> None:
    count = 60
    batch_id = await bench.submit(make_input(count))

    async def work() -> None:
        while not (await bench.get(batch_id)).status.ended:
            await bench.keeper.run_once()
            if claimed := await bench.queue.claim(batch_id, 7, LONG_MS, "a"):
                await bench.finish(claimed[::-1])

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        readers = [group.create_task(read_ids(bench, batch_id, follow=True)) for _ in range(3)]
        group.create_task(work())
    expected = [f"id-{number}" for number in range(1, count + 1)]
    assert sorted(readers[0].result()) == sorted(expected)
    assert all(reader.result() == readers[0].result() for reader in readers)
    assert await read_ids(bench, batch_id) == readers[0].result()
    _, output, _ = await bench.end(batch_id)
    assert output == expected


async def test_who_follows_is_kept_alive_and_not_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.start(1)
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1
        return now_s

    monkeypatch.setattr(bench.service._feed, "_clock", clock)
    monkeypatch.setattr(result_feed, "KEEP_ALIVE_S", 10)
    monkeypatch.setattr(result_feed, "LONGEST_FOLLOW_S", 35)
    async with asyncio.timeout(TIMEOUT_S):
        pieces = [piece async for piece in await bench.service.stream_results(batch_id, follow=True)]
    assert pieces == [b"\n"] * 3


async def test_what_the_queue_gave_up_names_its_request(bench: Bench) -> None:
    batch_id = await bench.start(2)
    for _ in range(bench.settings.jobs.max_attempts):
        (one,) = await bench.queue.claim(batch_id, 1, LONG_MS, "a")
        await bench.queue.retry(one, FaultKind.ENGINE_FAULT, "engine died")
    (line,) = await read(bench, batch_id)
    assert (line["custom_id"], line["error"]["code"]) == ("id-1", "max_attempts_exceeded")
    await run(bench, batch_id, 2)
    await bench.end(batch_id)
    assert (await read(bench, batch_id))[0] == line


async def test_segments_that_go_while_they_are_read_do_not_matter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await bench.start(2)
    await run(bench, batch_id, 2, 1)
    real = bench.service._queue.results_of

    async def end_first(*arguments: Any) -> Any:
        found = await real(*arguments)
        await bench.end(batch_id)
        return found

    monkeypatch.setattr(bench.service._queue, "results_of", end_first)
    assert await read_ids(bench, batch_id) == ["id-2", "id-1"]


async def test_segments_that_are_lost_break_the_stream(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.start(2)
    await run(bench, batch_id, 1)

    def fail(*_: Any) -> bytes:
        raise FileNotFoundError("no such segment")

    monkeypatch.setattr(SegmentReader, "read", fail)
    with pytest.raises(FileNotFoundError):
        await read(bench, batch_id)
    assert bench.service._streams.taken == 0


async def test_a_batch_that_failed_has_no_results(bench: Bench) -> None:
    batch_id = await bench.submit(b"{")
    assert (await bench.end(batch_id))[0].status == "failed"
    assert await read(bench, batch_id, follow=True) == []


async def test_results_that_are_not_kept_any_more(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(2)
    await run(bench, batch_id, 2, 1)
    batch, _, _ = await bench.end(batch_id)
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:settled"
    assert 0 < await redis.pttl(key) <= 7 * 86_400_000
    await redis.delete(key)
    assert await read_ids(bench, batch_id) == ["id-1", "id-2"]
    with pytest.raises(ApiError, match="order") as refused:
        await read(bench, batch_id, 1)
    assert (refused.value.status, refused.value.param) == (410, "after")
    assert batch.output_file_id is not None
    await bench.service.delete_file(batch.output_file_id)
    with pytest.raises(ApiError, match="deleted") as refused:
        await read(bench, batch_id)
    assert refused.value.status == 410
    assert bench.service._streams.taken == 0


async def test_streams_are_limited(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(1)
    raw = bench.settings.model_dump(mode="json")
    settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"max_result_streams": 1}})
    service = JobService(redis, bench.store, settings, [MODEL])
    lines = await service.stream_results(batch_id, follow=True)
    with pytest.raises(ApiError, match="limit") as refused:
        await service.stream_results(batch_id)
    assert (refused.value.status, refused.value.code) == (429, "too_many_streams")
    await lines.aclose()
    assert [piece async for piece in await service.stream_results(batch_id)] == []


async def test_unknown_batches_have_no_results(bench: Bench) -> None:
    for unknown in ("batch_0123456789", "nonsense"):
        with pytest.raises(ApiError) as refused:
            await bench.service.stream_results(unknown)
        assert refused.value.status == 404
    with pytest.raises(ApiError) as refused:
        await bench.service.stream_results(await bench.start(1), -1)
    assert (refused.value.status, refused.value.param) == (400, "after")
