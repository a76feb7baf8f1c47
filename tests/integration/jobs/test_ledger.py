"""What tenants have of their quotas, on a real server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.errors import QuotaExceededError
from conserve.jobs.keys import Keys
from conserve.jobs.ledger import NO_LIMITS, Holding, Ledger, Limits

LIMITS = Limits(requests=10, tokens=1_000, files=2, bytes=100)


@pytest.fixture
def keys(settings: Settings) -> Keys:
    return Keys(settings.jobs.namespace)


@pytest.fixture
def ledger(redis: Redis, keys: Keys) -> Ledger:
    return Ledger(redis, keys)


def index_of(ledger: Ledger) -> str:
    return f"{ledger._keys[2]}:listed"


async def admit(ledger: Ledger, batch_id: str, holding: Holding, limits: Limits = LIMITS, most: int = 100) -> bool:
    return await ledger.admit(batch_id, "a", holding, limits, index=index_of(ledger), most=most)


async def test_what_is_taken_is_given_back_once(redis: Redis, ledger: Ledger) -> None:
    for _ in range(2):
        assert await admit(ledger, "b1", Holding(6, 600))
        await ledger.hold("f1", "a", Holding(files=1, bytes=60), LIMITS)
    assert await ledger.used("a") == Holding(6, 600, 1, 60)
    assert await ledger.used("b") == Holding()
    assert (await ledger.tenant_of("b1"), await ledger.tenant_of("f1"), await ledger.tenant_of("x")) == ("a", "a", None)
    for _ in range(2):
        await ledger.drop("f1")
        await ledger.retire("b1", index_of(ledger))
    assert await ledger.used("a") == Holding()
    assert await redis.zcard(index_of(ledger)) == 0


@pytest.mark.parametrize(
    ("holding", "name", "limit", "used"), [(Holding(5, 1), "requests", 10, 6), (Holding(1, 500), "tokens", 1_000, 600)]
)
async def test_a_batch_beyond_a_quota_is_refused(
    redis: Redis, ledger: Ledger, keys: Keys, holding: Holding, name: str, limit: int, used: int
) -> None:
    assert await admit(ledger, "b1", Holding(6, 600))
    with pytest.raises(QuotaExceededError) as refused:
        await admit(ledger, "b2", holding)
    error = refused.value
    assert (error.name, error.limit, error.used, error.asked) == (name, limit, used, getattr(holding, name))
    assert await ledger.used("a") == Holding(6, 600)
    assert await redis.zrange(keys.active_batches, 0, -1) == ["b1"]
    assert await ledger.admit("b2", "b", holding, LIMITS, index=index_of(ledger), most=100), "others have their own"


async def test_files_have_quotas_of_their_own(ledger: Ledger) -> None:
    await ledger.hold("f1", "a", Holding(files=1), LIMITS)
    await ledger.hold("f1", "a", Holding(files=1, bytes=100), LIMITS)
    with pytest.raises(QuotaExceededError) as refused:
        await ledger.hold("f1", "a", Holding(files=1, bytes=101), LIMITS)
    assert (refused.value.name, refused.value.used, refused.value.asked) == ("bytes", 0, 101)
    await ledger.hold("f2", "a", Holding(files=1), LIMITS)
    with pytest.raises(QuotaExceededError, match="2 files: 2 are in use"):
        await ledger.hold("f3", "a", Holding(files=1), LIMITS)
    await ledger.hold("out", "a", Holding(files=1, bytes=1_000), NO_LIMITS)
    assert await ledger.used("a") == Holding(files=3, bytes=1_100)
    await ledger.hold("f1", "a", Holding(files=1, bytes=50), LIMITS)
    assert (await ledger.used("a")).bytes == 1_050, "less is always allowed"


async def test_amounts_follow_what_is_left_and_come_back_no_more(ledger: Ledger) -> None:
    assert await admit(ledger, "b1", Holding(6, 600))
    for _ in range(2):
        await ledger.adjust({"b1": ("a", Holding(2, 900)), "gone": ("a", Holding(1, 1))})
    assert await ledger.used("a") == Holding(2, 900)
    await ledger.retire("b1")
    await ledger.adjust({"b1": ("a", Holding(2, 900))})
    assert await ledger.used("a") == Holding()


async def test_flex_requests_and_batches_have_limits_of_their_own(redis: Redis, ledger: Ledger, keys: Keys) -> None:
    for number in range(3):
        assert await admit(ledger, f"b{number}", Holding(), most=3)
    assert not await admit(ledger, "b3", Holding(), most=3)
    assert await admit(ledger, "b2", Holding(), most=3), "repeated"
    assert await ledger.admit("f0", "a", Holding(), LIMITS, index=None, most=1)
    assert not await ledger.admit("f1", "a", Holding(), LIMITS, index=None, most=1)
    assert not await admit(ledger, "b3", Holding(), most=3)
    assert await redis.zrange(keys.flex, 0, -1) == ["f0"]
    await ledger.retire("f0")
    assert await redis.zcard(keys.flex) == 0


async def test_a_flex_request_that_is_over_counts_for_nothing_but_its_deletion(
    redis: Redis, ledger: Ledger, keys: Keys
) -> None:
    async def admit_flex(name: str) -> bool:
        held = Holding(requests=1, flex=1)
        return await ledger.admit(name, "a", held, Limits(flex=1), index=None, most=2, most_over=2)

    for name in ("f0", "f1"):
        assert await admit_flex(name)
        with pytest.raises(QuotaExceededError, match="1 flex: 1 are in use"):
            await admit_flex("f2")
        for _ in range(2):
            await ledger.leave([name, "unknown"])
        assert (await ledger.used("a")).flex == 0
    assert not await admit_flex("f2"), "two are to be deleted"
    assert await admit(ledger, "b0", Holding(batches=1), most=1), "they are no batches"
    await ledger.retire("f0")
    assert await admit_flex("f2")
    for name in ("f1", "f2", "b0"):
        await ledger.retire(name)
    assert await ledger.used("a") == Holding()
    assert await redis.exists(keys.flex, keys.flex_over) == 0


async def test_what_was_held_before_there_were_more_quotas_is_read(redis: Redis, ledger: Ledger, keys: Keys) -> None:
    await redis.hset(keys.held, "b1", "a|6|600|0|0")  # type: ignore[misc]
    await redis.hset(keys.used, mapping={"a|requests": 6, "a|tokens": 600})  # type: ignore[misc]
    await redis.zadd(keys.active_batches, {"b1": 1})
    await ledger.adjust({"b1": ("a", Holding(2, 900, batches=1))})
    assert await ledger.used("a") == Holding(2, 900, batches=1)
    await ledger.retire("b1")
    assert await ledger.used("a") == Holding()


async def test_at_once_no_more_is_taken_than_there_is(ledger: Ledger) -> None:
    async def take(number: int) -> bool:
        try:
            return await admit(ledger, f"b{number}", Holding(3, 3))
        except QuotaExceededError:
            return False

    taken = await asyncio.gather(*(take(number) for number in range(30)))
    assert sum(taken) == 3
    assert await ledger.used("a") == Holding(9, 9)


async def test_random_histories_add_up(ledger: Ledger) -> None:
    chance = random.Random(7)
    model: dict[str, Holding] = {}

    async def admit_one(name: str) -> None:
        holding = Holding(chance.randint(0, 5), chance.randint(0, 2**45))
        try:
            await admit(ledger, name, holding, Limits(requests=20))
        except QuotaExceededError:
            assert sum(one.requests for one in model.values()) + holding.requests > 20
        else:
            model.setdefault(name, holding)

    async def adjust_one(name: str) -> None:
        holding = Holding(chance.randint(0, 5), chance.randint(0, 2**45))
        await ledger.adjust({name: ("a", holding)})
        if name in model:
            model[name] = holding

    async def retire_one(name: str) -> None:
        await ledger.retire(name)
        model.pop(name, None)

    moves: list[Callable[[str], object]] = [admit_one, adjust_one, retire_one]
    for _ in range(300):
        await chance.choice(moves)(f"b{chance.randint(0, 9)}")  # type: ignore[misc]
        used = await ledger.used("a")
        assert (used.requests, used.tokens) == (
            sum(one.requests for one in model.values()),
            sum(one.tokens for one in model.values()),
        )
