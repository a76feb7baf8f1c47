"""Connects to Redis and checks that it suits: version, no cluster, schema of the data, whose it is, durability."""

from __future__ import annotations

import asyncio
import re

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from conserve.config import EMBEDDED_REDIS, Settings
from conserve.config.redis_url import describe_server
from conserve.jobs import embedded
from conserve.jobs.cancellation import honour_cancellation
from conserve.jobs.credentials import read_credentials
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.identity import check_identity
from conserve.jobs.keys import Keys
from conserve.jobs.migration import explain_older, is_of_older_schema, take_over

_log = structlog.get_logger(__name__)

OLDEST_VERSION = (6, 2)
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 10.0
_RETRIES = 3


async def connect(settings: Settings, *, check_files: bool = True) -> Redis:
    """Returns a client (decoding to `str`) of the Redis of these settings; starts the embedded server if need be.

    Commands are tried again a few times when a connection breaks, so scripts are written to be repeatable. Who has
    nothing to do with files need not have them within reach: then it is not checked whose the batches are.

    Raises:
        UnsuitableServerError: the server is too old, is part of a cluster, does not take the user and password, does
            not let the user do what is needed, or holds data of another schema version or of another deployment; or
            the file of the password cannot be read.
        EmbeddedServerError: the embedded server did not start.
        redis.exceptions.RedisError: the server cannot be reached or refuses the commands.
        OSError: the storage of the files is away, and whether they belong to this server is not known.
    """
    url = settings.jobs.redis_url
    if url == EMBEDDED_REDIS:
        url = await asyncio.to_thread(embedded.ensure_running, settings.state_dir)
    redis = Redis.from_url(
        url,
        **read_credentials(settings.jobs),
        decode_responses=True,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
        socket_timeout=_ANSWER_TIMEOUT_S,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(cap=1.0, base=0.05), _RETRIES),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    honour_cancellation(redis)
    try:
        await _check_version(redis)
        await _check_cluster(redis)
        keys = Keys(settings.jobs.namespace)
        is_older = await is_of_older_schema(redis, keys)
        if is_older and not check_files:
            raise explain_older(keys)
        if check_files:
            await check_identity(redis, keys, settings.files_url)
        await _check_eviction(redis)
        await _prepare_durability(redis)
        if is_older:
            await take_over(redis, keys, settings.files_url)
    except BaseException as error:
        await redis.aclose()
        if isinstance(error, AuthenticationError | NoPermissionError):
            raise UnsuitableServerError(explain_refusal(url, error)) from None
        raise
    return redis


def explain_refusal(url: str, error: AuthenticationError | NoPermissionError) -> str:
    """What to do about a server that does not take a user and password, or does not let the user do something."""
    where = describe_server(url)
    if isinstance(error, NoPermissionError):
        return (
            f"Redis at {where} does not let its user do what is needed: {error}. "
            "Give it the rules of cluster/redis/valkey.conf, with the `jobs.namespace` of this deployment."
        )
    return (
        f"Redis at {where} takes neither this user nor this password: {error}. "
        "The user stands in `jobs.redis_url`, the password there (in the variable CONSERVE_JOBS__REDIS_URL) or in the "
        "file `jobs.redis_password_file`."
    )


def is_new_enough(version: str) -> bool:
    """Whether a server that says it is of this version has the commands that are used."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= OLDEST_VERSION


async def _check_version(redis: Redis) -> None:
    info = await redis.info("server")
    text = str(info.get("redis_version", ""))
    if not is_new_enough(text):
        raise UnsuitableServerError(f"The Redis server says it is version '{text}'; 6.2 or later is needed.")


async def _check_cluster(redis: Redis) -> None:
    # The keys are laid out for a cluster, but this client would follow none of its redirections.
    info = await redis.info("cluster")
    if int(info.get("cluster_enabled", 0)):
        raise UnsuitableServerError(
            "The Redis server is a node of a cluster (`cluster-enabled yes`), which is not supported. "
            "Set `jobs.redis_url` to a server with cluster mode off."
        )


async def _check_eviction(redis: Redis) -> None:
    info = await redis.info("memory")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if int(info.get("maxmemory", 0)) and policy != "noeviction":
        _log.warning(
            "redis may drop keys of accepted batches", maxmemory_policy=policy, fix="maxmemory-policy noeviction"
        )


async def _prepare_durability(redis: Redis) -> None:
    """Sees to it that an acknowledged batch is on disk, or says that it will not be."""
    info = await redis.info("persistence")
    if not int(info.get("aof_enabled", 0)):
        _log.warning("redis keeps no append-only file: accepted batches are lost when it stops", fix="appendonly yes")
        return
    if await _has_waitaof(redis):
        return
    try:
        if (await redis.config_get("appendfsync")).get("appendfsync") != "always":
            await redis.config_set("appendfsync", "always")
            _log.info("set appendfsync to always: this redis has no WAITAOF")
    except ResponseError as error:
        _log.warning(
            "redis has no WAITAOF and appendfsync cannot be set: a batch accepted in the second before a crash is lost",
            reason=str(error),
            fix="appendfsync always",
        )


async def _has_waitaof(redis: Redis) -> bool:
    try:
        await redis.waitaof(0, 0, 1)
    except ResponseError:
        return False
    return True
