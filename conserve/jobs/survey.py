"""What a Redis server is like, without leaving anything in it; `connection.connect` writes where it takes one on."""

from __future__ import annotations

import redis
from pydantic import BaseModel
from redis.backoff import NoBackoff
from redis.retry import Retry

from conserve.config import EMBEDDED_REDIS, Settings
from conserve.jobs import embedded
from conserve.jobs.connection import explain_refusal
from conserve.jobs.credentials import read_credentials
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.keys import SCHEMA_VERSION, Keys

TIMEOUT_S = 5.0


class RedisSurvey(BaseModel):
    """A server that answers. `found_schema` is that of the batches in it, None where there are none yet."""

    version: str
    is_cluster: bool
    has_append_only_file: bool
    max_memory_bytes: int
    eviction_policy: str
    found_schema: str | None
    wanted_schema: str = SCHEMA_VERSION


def survey_server(settings: Settings) -> RedisSurvey | None:
    """Looks at the server of these settings; None for an embedded one that does not run.

    Raises:
        RedisAwayError: it does not answer, not as Redis does, or refuses the user and password.
    """
    url = settings.jobs.redis_url
    if url == EMBEDDED_REDIS:
        found = embedded.find_url(settings.state_dir)
        if found is None:
            return None
        url = found
    try:
        client = redis.Redis.from_url(
            url,
            **read_credentials(settings.jobs),
            decode_responses=True,
            socket_connect_timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        with client:
            info = client.info()
            return RedisSurvey(
                version=str(info.get("redis_version", "")),
                is_cluster=bool(info.get("cluster_enabled", 0)),
                has_append_only_file=bool(info.get("aof_enabled", 0)),
                max_memory_bytes=int(info.get("maxmemory", 0)),
                eviction_policy=str(info.get("maxmemory_policy", "noeviction")),
                found_schema=client.get(Keys(settings.jobs.namespace).schema),
            )
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise RedisAwayError(explain_refusal(url, error)) from None
    except (redis.RedisError, OSError, ValueError, UnsuitableServerError) as error:
        raise RedisAwayError(str(error) or type(error).__name__) from error


class RedisAwayError(RuntimeError):
    """The server does not answer, or not as Redis does."""
