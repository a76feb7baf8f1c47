"""Files that expire or are deleted, and what crashes on the way leave behind."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.errors import ApiError
from conserve.jobs.expiry import ExpiresAfter
from conserve.jobs.files import FileStore
from conserve.jobs.retention import FileRetention
from conserve.jobs.service import JobService
from tests.integration.bench import LONG_MS, MODEL, URL, Bench, make_input, stream

HOUR = ExpiresAfter(anchor="created_at", seconds=3_600)


@pytest.fixture
def retention(bench: Bench) -> FileRetention:
    return FileRetention(bench.redis, bench.store, bench.settings)


@pytest.fixture
def catalog(bench: Bench) -> FileCatalog:
    return FileCatalog(bench.redis, bench.settings.jobs.namespace)


async def expire(bench: Bench, file_id: str) -> None:
    """Lets the time of a file come."""
    namespace = bench.settings.jobs.namespace
    await bench.redis.hset(f"{namespace}:file:{{{file_id}}}", "expires_at_ms", "1")  # type: ignore[misc]
    await make_due(bench, file_id)


async def make_due(bench: Bench, file_id: str) -> None:
    await bench.redis.zadd(f"{bench.settings.jobs.namespace}:{{index}}:files:due", {file_id: 1})


def is_stored(bench: Bench, file_id: str) -> bool:
    return bench.store.storage.exists(bench.store.file_path(file_id))


async def test_input_files_expire_when_the_client_or_the_settings_say(bench: Bench, redis: Redis) -> None:
    file = await bench.service.upload_file("in.jsonl", "batch", stream(b"x"), HOUR)
    assert file.expires_at == file.created_at + 3_600
    assert await bench.service.get_file(file.id) == file
    file = await bench.service.upload_file("in.jsonl", "batch", stream(b"x"))
    assert file.expires_at == file.created_at + 30 * 86_400
    raw = bench.settings.model_dump(mode="json")
    forever = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"input_files_kept_s": None}})
    file = await JobService(redis, bench.store, forever, [MODEL]).upload_file("in.jsonl", "batch", stream(b"x"))
    assert file.expires_at is None


async def test_an_expired_file_is_gone_for_clients_at_once_and_then_for_good(
    bench: Bench, retention: FileRetention, catalog: FileCatalog
) -> None:
    kept, file = [await bench.service.upload_file("in.jsonl", "batch", stream(b"x"), HOUR) for _ in range(2)]
    await expire(bench, file.id)
    for call in (bench.service.get_file, bench.service.file_content, bench.service.delete_file):
        with pytest.raises(ApiError) as refused:
            await call(file.id)
        assert refused.value.status == 404
    with pytest.raises(ApiError, match="No such File") as refused:
        await bench.service.create_batch(file.id, URL, "24h")
    assert refused.value.param == "input_file_id"
    assert [one.id for one in (await bench.service.list_files()).data] == [kept.id]
    assert is_stored(bench, file.id)
    assert await retention.sweep() == 1
    assert not is_stored(bench, file.id)
    assert await catalog.record(file.id) is None
    assert await retention.sweep() == 0
    assert await bench.service.get_file(kept.id) == kept


async def test_pages_are_full_though_files_between_have_expired(bench: Bench) -> None:
    ids = [(await bench.service.upload_file("f", "batch", stream(b"x"))).id for _ in range(7)]
    order = [file.id for file in (await bench.service.list_files(order="asc")).data]
    assert sorted(order) == sorted(ids)
    for gone in (order[1], order[2], order[6]):
        await expire(bench, gone)
    page = await bench.service.list_files(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == ([order[0], order[3]], True)
    page = await bench.service.list_files(after=page.last_id, limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == ([order[4], order[5]], False)


async def test_an_input_file_that_expires_meanwhile_stays_for_its_batch(
    bench: Bench, retention: FileRetention, catalog: FileCatalog
) -> None:
    batch_id = await bench.start(2)
    file_id = (await bench.get(batch_id)).input_file_id
    await expire(bench, file_id)
    assert await retention.sweep() == 0
    assert is_stored(bench, file_id)
    assert await retention.sweep() == 0, "it is looked at again later"
    await bench.finish(await bench.queue.claim(batch_id, 1, LONG_MS, "a"))
    await bench.service.cancel_batch(batch_id)
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output, errors) == ("cancelled", ["id-1"], {"id-2": "batch_cancelled"})
    await make_due(bench, file_id)
    assert await retention.sweep() == 1
    assert not is_stored(bench, file_id)
    assert await catalog.record(file_id) is None


async def test_output_files_expire_when_the_batch_says(bench: Bench, retention: FileRetention) -> None:
    file = await bench.service.upload_file("in.jsonl", "batch", stream(make_input(1)))
    batch_id = (await bench.service.create_batch(file.id, URL, "24h", output_expires_after=HOUR)).id
    await bench.keeper.run_once()
    await bench.finish(await bench.queue.claim(batch_id, 1, LONG_MS, "a"))
    batch, _, _ = await bench.end(batch_id)
    assert batch.output_file_id is not None
    output = await bench.service.get_file(batch.output_file_id)
    assert output.expires_at == output.created_at + 3_600
    await expire(bench, output.id)
    assert await retention.sweep() == 1
    assert (await bench.service.list_files("batch_output")).data == []


async def test_a_deletion_that_broke_off_is_made_up_for(
    bench: Bench, retention: FileRetention, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await bench.service.upload_file("in.jsonl", "batch", stream(b"x"))

    async def fail(*_: Any) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "delete_file", fail)
        with pytest.raises(ApiError) as refused:
            await bench.service.delete_file(file.id)
        assert refused.value.status == 503
        await make_due(bench, file.id)
        assert await retention.sweep() == 0, "the storage is still away"
    with pytest.raises(ApiError) as refused:
        await bench.service.get_file(file.id)
    assert refused.value.status == 404
    assert is_stored(bench, file.id)
    await make_due(bench, file.id)
    assert await retention.sweep() == 1
    assert not is_stored(bench, file.id)


async def test_what_an_upload_that_broke_off_has_stored_goes(
    bench: Bench, retention: FileRetention, catalog: FileCatalog
) -> None:
    file_id = "file-0123456789abcdef"
    await catalog.announce(file_id)
    await bench.store.write_file(file_id, stream(b"x"), 10)
    assert await retention.sweep() == 0, "it may still be recorded"
    await make_due(bench, file_id)
    await retention.sweep()
    assert not is_stored(bench, file_id)


async def test_a_file_that_is_due_too_early_stays(bench: Bench, retention: FileRetention, redis: Redis) -> None:
    file = await bench.service.upload_file("in.jsonl", "batch", stream(b"x"), HOUR)
    due = f"{bench.settings.jobs.namespace}:{{index}}:files:due"
    before = await redis.zscore(due, file.id)
    await make_due(bench, file.id)
    assert await retention.sweep() == 0
    assert await redis.zscore(due, file.id) == before
    assert await bench.service.get_file(file.id) == file
