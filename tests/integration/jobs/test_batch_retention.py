"""Batches that ended long ago are forgotten."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.errors import ApiError
from conserve.jobs.storage import Storage
from tests.integration.bench import LONG_MS, Bench, make_input

LATER_S = 60.0
"""Until the keeper looks again."""


async def run_to_its_end(bench: Bench) -> str:
    batch_id = await bench.start(1)
    await bench.finish(await bench.queue.claim(batch_id, 1, LONG_MS, "a"))
    await bench.end(batch_id)
    return batch_id


async def age(bench: Bench, batch_id: str, by_s: int) -> None:
    """Lets a batch have ended so much earlier."""
    index = f"{bench.settings.jobs.namespace}:{{index}}:ended"
    await bench.redis.zincrby(index, -by_s * 1000, batch_id)
    bench.now_s += LATER_S


async def list_keys(bench: Bench, text: str) -> list[str]:
    return [key async for key in bench.redis.scan_iter(match=f"{bench.settings.jobs.namespace}:batch:*{text}*")]


def has_manifest(bench: Bench, batch_id: str) -> bool:
    return bench.store.storage.exists(bench.store.manifest_path(batch_id))


async def test_an_ended_batch_is_forgotten_and_its_files_stay(bench: Bench) -> None:
    old, young = await run_to_its_end(bench), await run_to_its_end(bench)
    active = await bench.start(1)
    output = (await bench.get(old)).output_file_id
    assert output is not None
    for one in (old, young):
        await age(bench, one, 90 * 86_400 - 100)
    await bench.keeper.run_once()
    assert (await bench.get(old)).status == "completed", "not yet"
    await age(bench, old, 101)
    await bench.keeper.run_once()
    with pytest.raises(ApiError) as refused:
        await bench.get(old)
    assert refused.value.status == 404
    assert {one.id for one in (await bench.service.list_batches()).data} == {young, active}
    assert await list_keys(bench, old) == []
    assert not has_manifest(bench, old)
    assert has_manifest(bench, young)
    assert [line["custom_id"] for line in await bench.read(output)] == ["id-1"]
    await bench.service.delete_file(output)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_however_it_has_ended(bench: Bench, how: str) -> None:
    batch_id = await bench.submit(b"no json\n" if how == "failed" else make_input(1))
    if how == "cancelled":
        await bench.service.cancel_batch(batch_id)
    assert (await bench.end(batch_id))[0].status == how
    await age(bench, batch_id, 91 * 86_400)
    await bench.keeper.run_once()
    assert await list_keys(bench, batch_id) == []
    assert (await bench.service.list_batches()).data == []


async def test_the_settings_say_for_how_long(bench: Bench, redis: Redis) -> None:
    batch_id = await run_to_its_end(bench)
    raw = bench.settings.model_dump(mode="json")

    async def sweep(kept_s: int | None) -> None:
        settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"batches_kept_s": kept_s}})
        await Bench(redis, bench.store, settings).keeper.run_once()

    await age(bench, batch_id, 7_200)
    await sweep(10_800)
    await sweep(None)
    assert await list_keys(bench, batch_id)
    await sweep(3_600)
    assert not await list_keys(bench, batch_id)


async def test_storage_that_is_away_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await run_to_its_end(bench)
    await age(bench, batch_id, 91 * 86_400)

    def fail(*_: object) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", fail)
        await bench.keeper.run_once()
    assert (await bench.get(batch_id)).status == "completed"
    bench.now_s += LATER_S
    await bench.keeper.run_once()
    assert not has_manifest(bench, batch_id)
    assert not await list_keys(bench, batch_id)


async def test_a_flex_request_leaves_no_entry(bench: Bench, redis: Redis) -> None:
    index = f"{bench.settings.jobs.namespace}:{{index}}:ended"
    batch_id = await run_to_its_end(bench)
    assert await redis.zrange(index, 0, -1) == [batch_id]
    await bench.queue.ledger.retire("batch_12345678")
    assert await redis.zrange(index, 0, -1) == [batch_id]
