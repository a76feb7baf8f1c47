"""The API keys as a front has them: those of the settings, and a copy of those in Redis, renewed in the background.

No request waits for Redis. While that is away the last copy holds, for a day; it lies in the state folder, too, so that
it holds for a front that starts meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from pydantic import BaseModel, ValidationError
from redis.asyncio import Redis

from conserve.config import HttpSettings, Settings, TenantSettings, digest_key
from conserve.jobs.api_keys import EVERYDAY, ApiKeyRecord, ApiKeyStore, Scope
from conserve.policy.rate_limit import Bucket, draw, fill

log = structlog.get_logger(__name__)

PERIOD_S: Final = 1.0
"""From one look at Redis to the next: so long a revoked key goes on, and a little more."""
LONGEST_LOOK_S: Final = 3.0
LONGEST_COPY_S: Final = 86_400.0
"""An older copy opens nothing: keys may have been revoked since."""
TOUCH_PERIOD_S: Final = 60.0
COPY_NAME: Final = "api_keys.json"
_LOST: Final = "lost"
"""In place of a version: there were keys, and are none any more."""


class KeyEntry(NamedTuple):
    """What a key is good for. `limits` are requests and tokens a minute at this front; None: as many as it likes."""

    digest: str
    tenant: str
    scopes: frozenset[Scope]
    expires_at: int | None = None
    limits: tuple[float | None, float | None] = (None, None)


class KeysUnknownError(RuntimeError):
    """Which keys there are is not known: Redis is away, and there is no copy, or too old a one."""


class LimitReachedError(RuntimeError):
    """A key has had its requests, or tokens, of this minute. `wait_s` is when there are enough again."""

    def __init__(self, what: str, wait_s: float) -> None:
        super().__init__(f"the limit of {what} a minute is reached")
        self.what = what
        self.wait_s = wait_s


class _Copy(BaseModel):
    version: str
    records: list[ApiKeyRecord]


class KeyRing:
    """Finds keys, and counts what is done with them.

    Args:
        tenants: Of the settings, with the keys in them.
        http: What the settings say of keys.
        listens_on_loopback: Whether other machines do not reach this front.
        copy_path: Where the copy of the keys in Redis is kept; None: `follow` is not called, and there are none there.
    """

    def __init__(
        self,
        tenants: Mapping[str, TenantSettings],
        http: HttpSettings | None = None,
        *,
        listens_on_loopback: bool = True,
        copy_path: Path | None = None,
    ) -> None:
        http = http or HttpSettings()
        self._mode, self._fronts = http.keys, http.fronts
        self._listens_on_loopback = listens_on_loopback
        self._copy_path = copy_path
        self._fixed = {
            key.get_secret_value(): KeyEntry(key.get_secret_value(), name, EVERYDAY)
            for name, one in tenants.items()
            for key in one.api_keys
        }
        self._entries = dict(self._fixed)
        self._version: str | None = None
        self._has_had_keys = False
        self._renewed_at_s: float | None = None
        self._touched_at_s = 0.0
        self._buckets: dict[str, tuple[Bucket | None, Bucket | None]] = {}
        self.tenants: frozenset[str] = frozenset()
        self._note_tenants()

    @classmethod
    def following(cls, settings: Settings, *, listens_on_loopback: bool) -> KeyRing:
        """The keys of an installation, with those that the last front on this machine has seen in Redis."""
        path = settings.state_dir / COPY_NAME
        ring = cls(settings.tenants, settings.http, listens_on_loopback=listens_on_loopback, copy_path=path)
        ring._load_copy(path)
        return ring

    @property
    def needs_keys(self) -> bool:
        """Whether a caller has to name a key, wherever it is."""
        if self._mode != "auto":
            return self._mode == "required"
        return bool(self._fixed) or self._has_had_keys or not self._listens_on_loopback

    @property
    def is_open(self) -> bool:
        """Whether callers of other machines need no key, either."""
        return self._mode == "none"

    def find(self, key: str, now_s: float | None = None) -> KeyEntry | None:
        """What a key is good for; None where it is good for nothing: it is not known, has expired or was revoked.

        Raises:
            KeysUnknownError: see there.
        """
        now_s = time.time() if now_s is None else now_s
        # Digests are looked up, so how long that takes says nothing about a key.
        digest = digest_key(key)
        if (entry := self._fixed.get(digest)) is not None:
            return entry
        if self._copy_path is not None and (
            self._renewed_at_s is None or abs(now_s - self._renewed_at_s) > LONGEST_COPY_S
        ):
            raise KeysUnknownError
        entry = self._entries.get(digest)
        return None if entry is None or (entry.expires_at is not None and now_s >= entry.expires_at) else entry

    def count(self, entry: KeyEntry, tokens: float, now_s: float | None = None) -> None:
        """Counts a request with a key, and the tokens that it will take.

        Args:
            entry: As it was found.
            tokens: Of the model; 0 for a request that runs none.
            now_s: Now, monotonic seconds.

        Raises:
            LimitReachedError: that is too much by now; nothing was counted.
        """
        if entry.limits == (None, None):
            return
        now_s = time.monotonic() if now_s is None else now_s
        left: list[Bucket | None] = []
        before = self._buckets.get(entry.digest, (None, None))
        amounts = (("requests", 1.0), ("tokens", tokens))
        for (what, amount), limit, bucket in zip(amounts, entry.limits, before, strict=True):
            if limit is None or not amount:
                left.append(bucket)
                continue
            bucket, wait_s = draw(bucket or fill(limit, now_s), limit, amount, now_s)
            if wait_s > 0:
                raise LimitReachedError(what, wait_s)
            left.append(bucket)
        self._buckets[entry.digest] = (left[0], left[1])

    async def follow(self, redis: Redis, namespace: str) -> None:
        """Keeps the copy of the keys in Redis up to date, until cancelled. Errors of Redis come through."""
        store = ApiKeyStore(redis, namespace)
        while True:
            async with asyncio.timeout(LONGEST_LOOK_S):
                await self.renew(store)
            await asyncio.sleep(PERIOD_S)

    async def renew(self, store: ApiKeyStore) -> None:
        """Looks once whether the keys in Redis have changed, and takes them over."""
        version = await store.version()
        if version != self._version:
            # If they change once more in between, the next look finds a further version.
            records = await store.read()
            if version is None:
                log.warning("the API keys are gone from Redis; no caller is let in with those that there were")
            self._take(version, records)
            await asyncio.to_thread(self._save_copy, _Copy(version=version or _LOST, records=records))
        self._renewed_at_s = time.time()
        if self._renewed_at_s - self._touched_at_s > TOUCH_PERIOD_S:
            self._touched_at_s = self._renewed_at_s
            await asyncio.to_thread(self._touch_copy)

    def _take(self, version: str | None, records: Iterable[ApiKeyRecord]) -> None:
        # Also where Redis has lost its data, or is another one: that opens nothing.
        self._has_had_keys = True
        self._version = version
        self._entries = self._fixed | {one.digest: self._to_entry(one) for one in records}
        self._buckets = {digest: kept for digest, kept in self._buckets.items() if digest in self._entries}
        self._note_tenants()

    def _to_entry(self, record: ApiKeyRecord) -> KeyEntry:
        # What a key may do it may do at all fronts together, to which its requests are dealt out evenly.
        limits = [
            None if limit is None else limit / self._fronts
            for limit in (record.requests_per_minute, record.tokens_per_minute)
        ]
        return KeyEntry(record.digest, record.tenant, record.scopes, record.expires_at, (limits[0], limits[1]))

    def _note_tenants(self) -> None:
        self.tenants = frozenset(entry.tenant for entry in self._entries.values())

    def _load_copy(self, path: Path) -> None:
        try:
            saved_at_s = path.stat().st_mtime
            copy = _Copy.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            log.warning("the copy of the API keys cannot be read", path=str(path), reason=type(error).__name__)
            self._has_had_keys = True
            return
        self._take(copy.version, copy.records)
        self._renewed_at_s = saved_at_s

    def _save_copy(self, copy: _Copy) -> None:
        if self._copy_path is None:
            return
        partial = self._copy_path.with_suffix(f".{os.getpid()}.partial")
        try:
            self._copy_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(copy.model_dump_json())
            partial.replace(self._copy_path)
        except OSError as error:
            # Then only a front that starts while Redis is away lacks them.
            log.warning("the copy of the API keys cannot be written", path=str(self._copy_path), reason=str(error))

    def _touch_copy(self) -> None:
        if self._copy_path is not None:
            try:
                os.utime(self._copy_path)
            except OSError:
                return  # There is none, or `_save_copy` has said why.
