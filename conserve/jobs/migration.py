"""Data that an older version of the program has left in Redis are made those of this one."""

from __future__ import annotations

import structlog
from redis.asyncio import Redis

from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.keys import OLDER_SCHEMAS, RESULTS_KEPT_MS, SCHEMA_VERSION, Keys
from conserve.jobs.scripts import Scripts

_log = structlog.get_logger(__name__)


async def settle_schema(redis: Redis, keys: Keys) -> None:
    """Sees to it that the data are of this version's schema; data of an older one that is known are migrated.

    Raises:
        UnsuitableServerError: they are of another one, or the older version is still at work on them.
    """
    found = await redis.get(keys.schema)  # First: a server without memory refuses to write.
    if found is None:
        await redis.set(keys.schema, SCHEMA_VERSION, nx=True)
        found = await redis.get(keys.schema)
    if found in OLDER_SCHEMAS:
        await _migrate(redis, keys)
        found = await redis.get(keys.schema)
    if found != SCHEMA_VERSION:
        text = str(found)
        is_older = text.isdigit() and int(text) < int(SCHEMA_VERSION)
        mend = (
            "Let the version of the program that wrote them finish them, or use another `jobs.namespace`"
            if is_older
            else "A newer version of the program wrote them: use that one, or another `jobs.namespace`"
        )
        raise UnsuitableServerError(
            f"Redis holds batches of schema version {found!r} (key '{keys.schema}'); "
            f"this program needs {SCHEMA_VERSION!r}. {mend}. Nothing was changed."
        )


async def _migrate(redis: Redis, keys: Keys) -> None:
    """In one script, so that it is done once and wholly, whoever else starts at the same time."""
    names = [keys.schema, keys.batches_of_default, keys.active_batches, keys.ended_batches]
    args: list[str | int] = [keys.batch_prefix, SCHEMA_VERSION, RESULTS_KEPT_MS]
    batches, at_work, left_ms = await Scripts(redis).run("migrate_1", names, args)
    if at_work:
        raise UnsuitableServerError(
            f"Redis holds batches of an older version of the program (schema '1', key '{keys.schema}'), and {at_work} "
            f"of their requests are leased: it may still be at work. Take it down; where it is down, its last lease "
            f"ends in {left_ms / 1000:.0f} s. Then start again: the batches are taken over. Nothing was changed."
        )
    if batches:
        _log.info("took over the batches of an older version", batches=batches, schema=SCHEMA_VERSION)
