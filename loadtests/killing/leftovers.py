"""What flex requests and tenants have left in Redis, once nothing runs any more: nothing."""

from __future__ import annotations

from conserve.config import Settings
from conserve.jobs.connection import connect
from conserve.jobs.keys import Keys
from conserve.jobs.ledger import Holding, Ledger
from loadtests.killing.household import KEYS


async def find_left(settings: Settings) -> list[str]:
    """Flex requests in the indexes, keys of streams, and quotas that are in use but for files."""
    keys = Keys(settings.jobs.namespace)
    redis = await connect(settings)
    try:
        left = [
            "flex: " + str(one) for index in (keys.flex, keys.flex_over) for one in await redis.zrange(index, 0, -1)
        ]
        left += ["key: " + str(key) async for key in redis.scan_iter(match=f"{settings.jobs.namespace}:batch:*:stream")]
        for tenant in KEYS:
            used = await Ledger(redis, keys).used(tenant)
            if used._replace(files=0, bytes=0) != Holding():
                left.append(f"in use by {tenant}: {used}")
    finally:
        await redis.aclose()
    return left
