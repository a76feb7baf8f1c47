from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from conserve.config import Settings
from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.connection import connect
from conserve.jobs.errors import NotDurableError, UnsuitableServerError
from conserve.jobs.identity import find_identity
from conserve.jobs.keys import SCHEMA_VERSION, Keys
from conserve.jobs.storage import Storage


@pytest.mark.parametrize(
    ("found", "said"), [("99", "A newer version"), ("0", "that wrote them finish them"), ("x", "")]
)
async def test_another_schema_is_refused(redis: Redis, settings: Settings, found: str, said: str) -> None:
    key = f"{settings.jobs.namespace}:schema"
    assert await redis.get(key) == SCHEMA_VERSION
    await redis.set(key, found)
    with pytest.raises(UnsuitableServerError, match=rf"'{found}'.*{said}.*jobs\.namespace"):
        await connect(settings)
    assert await redis.get(key) == found


async def test_another_deployment_is_refused_by_name(redis: Redis, settings: Settings, tmp_path: Path) -> None:
    key = f"{settings.jobs.namespace}:deployment"
    other = settings.model_copy(update={"state_dir": tmp_path / "other"})
    with pytest.raises(UnsuitableServerError, match=r"jobs\.namespace") as refused:
        await connect(other)
    for said in (f"{tmp_path}/files", f"{tmp_path}/other/files", f"delete the key '{key}'"):
        assert said in str(refused.value)
    await (await connect(settings)).aclose()
    await redis.delete(key)
    await (await connect(other)).aclose()
    with pytest.raises(UnsuitableServerError, match="another deployment"):
        await connect(settings)


async def test_the_same_files_are_known_by_other_names(
    redis: Redis, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mounted").symlink_to(tmp_path / "files")
    jobs = settings.jobs.model_copy(update={"files_url": f"{tmp_path}/mounted"})
    elsewhere = settings.model_copy(update={"jobs": jobs})
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        await (await connect(elsewhere)).aclose()
        await (await connect(settings)).aclose()
    await (await connect(settings)).aclose()
    shutil.rmtree(tmp_path / "files")  # Emptied on purpose.
    await (await connect(settings)).aclose()
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        await (await connect(settings)).aclose()


async def test_deployments_on_object_stores_are_known_by_url(redis: Redis, settings: Settings) -> None:
    await redis.delete(f"{settings.jobs.namespace}:deployment")

    def at(url: str) -> Settings:
        return settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"files_url": url})})

    await (await connect(at("memory://name:secret@one/files"))).aclose()
    await (await connect(at("memory://one/files"))).aclose()
    with pytest.raises(UnsuitableServerError, match=r"memory://one/files.*memory://two/files") as refused:
        await connect(at("memory://two/files"))
    assert "secret" not in str(refused.value)


async def test_storage_that_is_away_keeps_nobody_out(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "away")

    monkeypatch.setattr(Storage, "create_once", fail)
    await (await connect(settings)).aclose()
    with pytest.raises(OSError, match="away"):
        await connect(settings.model_copy(update={"state_dir": tmp_path / "other"}))


async def test_of_many_at_once_one_marks_the_folder(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    found = await asyncio.gather(*(asyncio.to_thread(find_identity, url) for _ in range(20)))
    assert len({one.mark for one in found}) == 1
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["deployment.id"]


@pytest.mark.parametrize("version", ["6.0.16", "5.0", ""])
async def test_an_old_server_is_refused(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    async def info(*_: object) -> dict[str, str]:
        return {"redis_version": version}

    monkeypatch.setattr(Redis, "info", info)
    with pytest.raises(UnsuitableServerError, match=r"6\.2 or later"):
        await connect(settings)


async def test_a_node_of_a_cluster_is_refused(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Redis.info
    await redis.delete(f"{settings.jobs.namespace}:schema")

    async def info(client: Redis, section: str) -> dict[str, Any]:
        found: dict[str, Any] = await real(client, section)
        if section == "cluster":
            assert found["cluster_enabled"] == 0
            return {"cluster_enabled": 1}
        return found

    monkeypatch.setattr(Redis, "info", info)
    with pytest.raises(UnsuitableServerError, match="cluster"):
        await connect(settings)
    assert not await redis.exists(f"{settings.jobs.namespace}:schema"), "nothing is written to it"


async def test_what_is_accepted_is_on_disk(redis: Redis, settings: Settings) -> None:
    keys = Keys(settings.jobs.namespace)
    await DiskBarrier(redis, keys).wait("file-12345678")
    try:
        await redis.waitaof(0, 0, 1)
    except ResponseError:
        # A server without WAITAOF: it was told to sync each write.
        assert await redis.config_get("appendfsync") == {"appendfsync": "always"}


async def test_an_unconfirmed_write_is_not_acknowledged(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = DiskBarrier(redis, Keys(settings.jobs.namespace))
    await barrier.wait("file-12345678")
    if not barrier._available:
        pytest.skip("this server has no WAITAOF")
    await redis.config_set("appendfsync", "no")
    monkeypatch.setattr("conserve.jobs.barrier._WAIT_MS", 1)
    try:
        with pytest.raises(NotDurableError):
            await barrier.wait("file-12345678")
    finally:
        await redis.config_set("appendfsync", "always")


async def test_a_cancellation_while_sending_is_not_lost(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drop_cancellation(sending: Coroutine[Any, Any, None], _timeout_s: float) -> None:
        """What `asyncio.wait_for` of Python 3.11 does when both come in the same moment."""
        await sending
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return

    with monkeypatch.context() as patch:
        patch.setattr("redis.asyncio.connection.asyncio.wait_for", drop_cancellation)
        task = asyncio.create_task(redis.echo("for nobody"))
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await redis.echo("next") == "next"
