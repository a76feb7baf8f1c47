"""What is said about Redis before the application starts."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.keys import Keys
from conserve.jobs.preflight import check_server


async def test_a_server_that_suits_is_fine(redis: Redis, settings: Settings) -> None:
    assert await asyncio.to_thread(check_server, settings) is None


async def test_data_of_another_version_are_refused_by_name(redis: Redis, settings: Settings) -> None:
    await redis.set(Keys(settings.jobs.namespace).schema, "0")
    with pytest.raises(UnsuitableServerError, match=r"schema version '0'.*jobs\.namespace"):
        await asyncio.to_thread(check_server, settings)


async def test_a_server_that_is_away_is_told_apart(settings: Settings) -> None:
    trouble = await asyncio.to_thread(check_server, settings.with_redis_url("redis://127.0.0.1:1"))
    assert trouble is not None
    assert "127.0.0.1:1" in trouble
