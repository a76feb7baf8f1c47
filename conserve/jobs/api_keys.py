"""API keys as Redis keeps them: by name, with what they are good for, and as digests alone."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple

import structlog
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from redis.asyncio import Redis

from conserve.config import NAME_PATTERN, digest_key
from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.keys import Keys
from conserve.jobs.scripts import Scripts

log = structlog.get_logger(__name__)

MOST_KEYS: Final = 10_000
"""A front reads all of them after each change: some 3 MB then."""
MARK: Final = "sk-conserve-"
"""Keys begin like that, so that one that has got into a text is seen to be one."""
_SECRET_BYTES: Final = 32
_SHOWN_CHARACTERS: Final = 5
_BARRIER_TAG: Final = "index"


class Scope(StrEnum):
    """What a key is good for."""

    ONLINE = "online"  # chat, completions and embeddings that are answered at once
    OFFLINE = "offline"  # files, batches, flex requests, and the console
    ADMIN = "admin"  # the status with the batches of all tenants; of their content it opens nothing


EVERYDAY: Final = frozenset({Scope.ONLINE, Scope.OFFLINE})
"""Of keys that say nothing else, and of those in the settings."""


def _keep_known(value: Any) -> Any:
    # Of a scope that a newer version has made, this one does not know what it is good for.
    return [one for one in value if one in list(Scope)] if isinstance(value, list | tuple | set | frozenset) else value


class ApiKeyRecord(BaseModel):
    """A key. Times are Unix seconds; None: without end, or without a limit.

    The digest is a plain SHA-256. Slow hashes, and salts, protect what people choose, which can be guessed: a key is
    256 random bits, of which nothing is found by trying, and one digest lets a front look it up at once.
    """

    # A newer peer may say more than this one understands.
    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    digest: str
    begins: str
    tenant: str
    scopes: Annotated[frozenset[Scope], BeforeValidator(_keep_known)]
    created_at: int
    expires_at: int | None = None
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)

    def is_over(self, now_s: float) -> bool:
        """Whether it has expired, at this Unix time."""
        return self.expires_at is not None and now_s >= self.expires_at


class NewApiKey(NamedTuple):
    """A key that was made, and the only copy of it."""

    record: ApiKeyRecord
    key: str


class KeyNameError(ValueError):
    """A name that cannot be one, of a key or of a tenant."""


class KeyExistsError(RuntimeError):
    """There is a key of that name."""


class TooManyKeysError(RuntimeError):
    """There are as many keys as may be."""


class ApiKeyStore:
    """The keys in Redis. Errors of Redis come through.

    Every change gives them another version, by which fronts see that they have to read them again. That there is one
    says that there has been a key: also when the last one was revoked, nobody gets in without one.
    """

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis: Any = redis  # As in `registry.BatchRegistry`.
        keys = Keys(namespace)
        self._keys = [keys.api_keys, keys.api_keys_version]
        self._scripts = Scripts(redis)
        self._barrier = DiskBarrier(redis, keys)

    async def create(
        self,
        name: str,
        tenant: str,
        *,
        scopes: Collection[Scope] = EVERYDAY,
        expires_after_s: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> NewApiKey:
        """Makes a key. It is on disk when this returns.

        Raises:
            KeyNameError: the key or the tenant cannot be called that.
            KeyExistsError, TooManyKeysError: see there.
            NotDurableError: the server did not confirm in time. Nobody knows the key; revoke the name.
        """
        for what, value in (("a key", name), ("a tenant", tenant)):
            if NAME_PATTERN.fullmatch(value) is None:
                raise KeyNameError(
                    f"{value[:80]!r} is no name for {what}: at most 64 lower-case letters, digits, `_` and `-`, a "
                    "letter or digit first"
                )
        key = MARK + secrets.token_urlsafe(_SECRET_BYTES)
        now_s = int(time.time())
        record = ApiKeyRecord(
            name=name,
            digest=digest_key(key),
            begins=key[: len(MARK) + _SHOWN_CHARACTERS],
            tenant=tenant,
            scopes=frozenset(scopes),
            created_at=now_s,
            expires_at=None if expires_after_s is None else now_s + expires_after_s,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
        answer = await self._scripts.run(
            "put_api_key", self._keys, [name, record.model_dump_json(), secrets.token_hex(8), MOST_KEYS]
        )
        if answer == "taken":
            raise KeyExistsError(f"there is a key `{name}`: revoke it, or choose another name")
        if answer == "full":
            raise TooManyKeysError(f"there are {MOST_KEYS:,} keys, which is the most: revoke some")
        await self._barrier.wait(_BARRIER_TAG)
        return NewApiKey(record, key)

    async def revoke(self, names: Collection[str]) -> list[str]:
        """Takes keys away; that is on disk when this returns. The result are those that there were.

        Raises:
            NotDurableError: the server did not confirm in time. Again is no error.
        """
        wanted = list(dict.fromkeys(names))
        if not wanted:
            return []
        there = await self._redis.hmget(self._keys[0], wanted)
        await self._scripts.run("drop_api_keys", self._keys, [secrets.token_hex(8), *wanted])
        await self._barrier.wait(_BARRIER_TAG)
        return [name for name, record in zip(wanted, there, strict=True) if record is not None]

    async def version(self) -> str | None:
        """Of the keys; None: there has never been one."""
        found = await self._redis.get(self._keys[1])
        return None if found is None else str(found)

    async def read_with_version(self) -> tuple[str | None, list[ApiKeyRecord]]:
        """Both of them. If keys change in between, the next version is another one still."""
        return await self.version(), await self.read()

    async def read(self) -> list[ApiKeyRecord]:
        """All keys, by name; also those that have expired."""
        found = await self._redis.hgetall(self._keys[0])
        records = []
        for name, text in sorted(found.items()):
            try:
                records.append(ApiKeyRecord.model_validate_json(text))
            except ValidationError as error:
                # One that cannot be read opens nothing, and must not shut out all others.
                log.warning("an API key cannot be read", key=name, problems=error.error_count())
        return records
