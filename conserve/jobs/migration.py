"""When the application starts, data that an older version of it has left in Redis are made those of this one."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.errors import NotDurableError, UnsuitableServerError
from conserve.jobs.files import FileStore
from conserve.jobs.keys import OLDER_SCHEMAS, RESULTS_KEPT_MS, SCHEMA_VERSION, Keys
from conserve.jobs.scripts import Scripts

_log = structlog.get_logger(__name__)


async def is_of_older_schema(redis: Redis, keys: Keys) -> bool:
    """Whether the data are of a schema that `take_over` knows. New ones get the present schema.

    Raises:
        UnsuitableServerError: they are of any other one.
    """
    found = await redis.get(keys.schema)  # First: a server without memory refuses to write.
    if found is None:
        await redis.set(keys.schema, SCHEMA_VERSION, nx=True)
        found = await redis.get(keys.schema)
    if found in (SCHEMA_VERSION, *OLDER_SCHEMAS):
        return found != SCHEMA_VERSION
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


def explain_older(keys: Keys) -> UnsuitableServerError:
    """What a tool says that only looks on: it does not know whose the data are."""
    return UnsuitableServerError(
        f"Redis holds batches of an older version of the program (key '{keys.schema}'). "
        "Take that one down and start this one: it takes them over. Nothing was changed."
    )


async def take_over(redis: Redis, keys: Keys, files_url: str) -> None:
    """Migrates data of an older schema, and waits until that is on disk.

    It is one script, so that it is done once and wholly, whoever else starts at the same time. It cannot be undone, so
    the files of the batches have to be here, and nobody of the older version may be at work.

    Raises:
        UnsuitableServerError: that is not so.
        redis.exceptions.TimeoutError: the server did not confirm in time; the next start finds them taken over.
        OSError: the storage of the files is away.
    """
    client: Any = redis
    newest = await client.zrevrange(keys.files_of_default, 0, 0)
    store = FileStore(files_url)
    if newest and not await asyncio.to_thread(store.storage.exists, store.file_path(newest[0])):
        raise UnsuitableServerError(
            f"Redis holds batches of an older version of the program (key '{keys.schema}'), but their newest file, "
            f"{newest[0]}, is not in the storage of this one: they may be those of another deployment. "
            f"If so, use another `jobs.namespace` and delete the key '{keys.deployment}', written by this start. "
            "The batches were not changed."
        )
    names = [keys.schema, keys.batches_of_default, keys.active_batches, keys.ended_batches, keys.replicas]
    args: list[str | int] = [keys.batch_prefix, keys.report_prefix, SCHEMA_VERSION, RESULTS_KEPT_MS]
    batches, leased, replicas, validating, left_ms = await Scripts(redis).run("migrate_1", names, args)
    if leased or replicas or validating:
        raise UnsuitableServerError(
            f"An older version of the program is at work on the batches in Redis (key '{keys.schema}'): "
            f"{leased} requests are leased, {replicas} replicas report, {validating} batches are being validated. "
            f"Take it down; if it has died, its last lease ends in {left_ms / 1000:.0f} s. "
            "Then start again: the batches are taken over. Nothing was changed."
        )
    # A server that forgot this would give the schema of before to who starts next, while this one works on.
    try:
        await DiskBarrier(redis, keys).wait("schema")
    except NotDurableError as error:
        raise RedisTimeoutError(str(error)) from error
    if batches:
        _log.info("took over the batches of an older version", batches=batches, schema=SCHEMA_VERSION)
