"""API keys in Redis, and the copy of them that fronts go by."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings, digest_key
from conserve.jobs import api_keys
from conserve.jobs.api_keys import ApiKeyStore, KeyExistsError, KeyNameError, Scope, TooManyKeysError
from conserve.jobs.errors import ApiError
from conserve.jobs.key_ring import COPY_NAME, LONGEST_COPY_S, KeyRing
from conserve.jobs.keys import Keys
from conserve.jobs.ledger import Limits
from conserve.jobs.tenants import find_tenants
from tests.integration.harvest.conftest import running, wait_until


@pytest.fixture
def keys(redis: Redis, settings: Settings) -> ApiKeyStore:
    return ApiKeyStore(redis, settings.jobs.namespace)


def follow(settings: Settings, *, listens_on_loopback: bool = True) -> KeyRing:
    return KeyRing.following(settings, listens_on_loopback=listens_on_loopback)


def change(settings: Settings, **sections: Any) -> Settings:
    return Settings.model_validate(settings.to_args() | sections)


def refuse(settings: Settings, ring: KeyRing, key: str | None, scope: Scope | None = None, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        find_tenants(settings, ring).admit(key and f"Bearer {key}", scope, **more)
    return refused.value


async def test_a_key_is_shown_once_and_kept_as_its_digest(keys: ApiKeyStore, redis: Redis, settings: Settings) -> None:
    record, key = await keys.create("ci", "research", expires_after_s=60, tokens_per_minute=7)
    assert key.startswith(record.begins)
    assert len(key) >= len(record.begins) + 38
    assert record.scopes == {"online", "offline"}
    assert record.expires_at == record.created_at + 60
    assert await keys.read() == [record]
    (stored,) = (await redis.hgetall(Keys(settings.jobs.namespace).api_keys)).values()  # type: ignore[misc] # redis' stubs
    assert key not in stored
    assert json.loads(stored)["digest"] == digest_key(key)


async def test_of_several_that_make_a_key_of_one_name_one_does(keys: ApiKeyStore) -> None:
    made = await asyncio.gather(*(keys.create("ci", f"t{n}") for n in range(8)), return_exceptions=True)
    assert sum(isinstance(one, KeyExistsError) for one in made) == 7
    assert len(await keys.read()) == 1


@pytest.mark.parametrize(
    ("name", "tenant"), [("", "a"), ("A", "a"), ("a b", "a"), ("x" * 65, "a"), ("a", "../b"), ("a", "")]
)
async def test_names_are_checked(keys: ApiKeyStore, name: str, tenant: str) -> None:
    with pytest.raises(KeyNameError, match="lower-case"):
        await keys.create(name, tenant)
    assert await keys.version() is None


async def test_there_are_no_more_than_so_many(keys: ApiKeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MOST_KEYS", 2)
    for name in ("a", "b"):
        await keys.create(name, "t")
    with pytest.raises(TooManyKeysError, match="2 keys"):
        await keys.create("c", "t")
    await keys.revoke(["a"])
    await keys.create("c", "t")


async def test_revoking_says_what_there_was(keys: ApiKeyStore) -> None:
    for name in ("a", "b", "c"):
        await keys.create(name, "t")
    before = await keys.version()
    assert await keys.revoke(["c", "nobody", "a", "c"]) == ["c", "a"]
    assert await keys.version() not in (None, before)
    assert [one.name for one in await keys.read()] == ["b"]
    assert await keys.revoke(["a"]) == []


async def test_what_cannot_be_read_opens_nothing_and_shuts_nobody_out(
    keys: ApiKeyStore, redis: Redis, settings: Settings
) -> None:
    good, _ = await keys.create("good", "t")
    name = Keys(settings.jobs.namespace).api_keys
    newer = good.model_dump(mode="json") | {"name": "newer", "scopes": ["online", "dreams"], "colour": "blue"}
    await redis.hset(name, mapping={"bad": "{", "newer": json.dumps(newer)})  # type: ignore[misc] # redis' stubs
    records = {one.name: one for one in await keys.read()}
    assert records.keys() == {"good", "newer"}
    assert records["newer"].scopes == {Scope.ONLINE}


async def test_a_front_lets_a_key_in_and_then_not_any_more(keys: ApiKeyStore, redis: Redis, settings: Settings) -> None:
    ring = follow(settings)
    tenants = find_tenants(settings, ring)
    assert tenants.admit(None, Scope.ONLINE).tenant == "default"
    _, key = await keys.create("ci", "research", scopes={Scope.ONLINE})
    async with running(ring.follow(redis, settings.jobs.namespace)):

        async def is_needed() -> bool:
            return tenants.needs_keys

        async def is_out() -> bool:
            try:
                return not tenants.admit(f"Bearer {key}")
            except ApiError as error:
                return error.status == 401

        await wait_until(is_needed)
        caller = tenants.admit(f"bearer {key}", Scope.ONLINE)
        assert (caller.tenant, caller.is_admin) == ("research", False)
        assert (refuse(settings, ring, key, Scope.OFFLINE).status, refuse(settings, ring, None).status) == (403, 401)
        assert tenants.still_admits(f"Bearer {key}", Scope.ONLINE)
        await keys.revoke(["ci"])
        revoked_s = time.monotonic()
        await wait_until(is_out)
        assert time.monotonic() - revoked_s < 5
        assert not tenants.still_admits(f"Bearer {key}", Scope.ONLINE)
        # Nor is anybody let in without one, now that there is none.
        assert refuse(settings, ring, None).status == 401


async def test_expiry_and_limits_hold(keys: ApiKeyStore, settings: Settings) -> None:
    ring = follow(change(settings, http={"fronts": 2}))
    record, brief = await keys.create("brief", "t", expires_after_s=60)
    _, slow = await keys.create("slow", "t", requests_per_minute=4, tokens_per_minute=1_000)
    await ring.renew(keys)
    assert record.expires_at is not None
    assert ring.find(brief, record.expires_at - 1) is not None
    assert ring.find(brief, record.expires_at) is None
    tenants = find_tenants(settings, ring)
    # Of two fronts each lets half of it through.
    tenants.admit(f"Bearer {slow}", tokens=450)
    error = refuse(settings, ring, slow, tokens=450)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert "tokens" in error.message
    assert 40 <= int(error.headers()["Retry-After"]) <= 50
    tenants.admit(f"Bearer {slow}")
    error = refuse(settings, ring, slow)
    assert "requests" in error.message
    assert 1 <= int(error.headers()["Retry-After"]) <= 30
    # Renewing the copy gives nothing back, and takes nothing away.
    await keys.create("other", "t")
    await ring.renew(keys)
    assert refuse(settings, ring, slow).status == 429


async def test_keys_of_the_settings_count_beside_those_in_redis(keys: ApiKeyStore, settings: Settings) -> None:
    settings = change(settings, tenants={"a": {"api_keys": ["sk-a"], "max_files": 9}, "b": {"max_batches": 3}})
    ring = follow(settings)
    tenants = find_tenants(settings, ring)
    _, key = await keys.create("of-b", "b", scopes={Scope.ADMIN})
    assert tenants.limits("a") == Limits(files=9)
    await ring.renew(keys)
    assert tenants.admit("Bearer sk-a", Scope.OFFLINE).tenant == "a"
    assert refuse(settings, ring, "sk-a", Scope.ADMIN).status == 403
    assert tenants.admit(f"Bearer {key}", Scope.ADMIN).is_admin
    assert refuse(settings, ring, key, Scope.ONLINE).code == "insufficient_scope"
    # There are two now, so that neither may have all.
    assert tenants.limits("a").flex == tenants.limits("c").flex == 128
    assert tenants.limits("b").batches == 3


async def test_a_front_that_starts_while_redis_is_away_goes_by_the_last_copy(
    keys: ApiKeyStore, settings: Settings, tmp_path: Path
) -> None:
    _, key = await keys.create("ci", "t")
    elsewhere = follow(settings, listens_on_loopback=False)
    error = refuse(settings, elsewhere, key)
    assert (error.status, error.headers()) == (503, {"Retry-After": "5"})
    assert refuse(settings, elsewhere, None).status == 401
    await follow(settings).renew(keys)
    copy = tmp_path / COPY_NAME
    assert key not in copy.read_text()
    assert copy.stat().st_mode & 0o777 == 0o600
    ring = follow(settings)
    assert ring.needs_keys
    assert find_tenants(settings, ring).admit(f"Bearer {key}").tenant == "t"
    assert refuse(settings, ring, "sk-unknown").status == 401
    # But not for ever.
    past_s = time.time() - LONGEST_COPY_S - 60
    os.utime(copy, (past_s, past_s))
    assert refuse(settings, follow(settings), key).status == 503


async def test_redis_that_has_lost_its_data_opens_nothing(keys: ApiKeyStore, redis: Redis, settings: Settings) -> None:
    _, key = await keys.create("ci", "t")
    ring = follow(settings)
    await ring.renew(keys)
    names = Keys(settings.jobs.namespace)
    await redis.delete(names.api_keys, names.api_keys_version)
    await ring.renew(keys)
    for each in (ring, follow(settings)):
        assert refuse(settings, each, key).status == 401
        assert refuse(settings, each, None).status == 401


@pytest.mark.parametrize(
    ("mode", "on_loopback", "is_local", "is_let_in"),
    [
        ("auto", True, True, True),
        ("auto", True, False, False),
        ("auto", False, True, False),
        ("required", True, True, False),
        ("none", False, False, True),
    ],
)
def test_without_any_key_only_this_machine_gets_in(
    tmp_path: Path, mode: str, on_loopback: bool, is_local: bool, is_let_in: bool
) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "http": {"keys": mode}})
    ring = follow(settings, listens_on_loopback=on_loopback)
    if is_let_in:
        assert find_tenants(settings, ring).admit(None, Scope.OFFLINE, is_local=is_local).tenant == "default"
    else:
        assert refuse(settings, ring, None, Scope.OFFLINE, is_local=is_local).status == 401


def test_a_copy_that_cannot_be_read_opens_nothing(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path})
    (tmp_path / COPY_NAME).write_text("{")
    assert refuse(settings, follow(settings), None).status == 401
    assert refuse(settings, follow(settings), "sk-a").status == 503
