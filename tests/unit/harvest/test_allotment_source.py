from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from conserve.config import HarvestSettings
from conserve.harvest.allotment_source import AllotmentSource
from conserve.policy.allotment import Allotment, JobShare
from conserve.policy.replica_capacity import ReplicaCapacity

IDLE = ReplicaCapacity("r1", "m", "serving")
BUSY = ReplicaCapacity("r1", "m", "serving", online_running=99)
B1, B2 = JobShare("b1", 3), JobShare("b2", 1)
SETTINGS = HarvestSettings(max_window=4, allotment_ttl_ms=5_000)


class FakeBoard:
    """What the controller has put up: an allotment, nothing, or Redis is away."""

    def __init__(self) -> None:
        self.entry: Allotment | Exception | None = None

    async def read_allotment(self, replica_id: str) -> Allotment | None:
        if isinstance(self.entry, Exception):
            raise self.entry
        return self.entry


class FakeQueue:
    async def active_summaries(self) -> list[Any]:
        return []


class World:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.board = FakeBoard()
        self.source = AllotmentSource(self.board, FakeQueue(), SETTINGS, "r1", lambda: self.now_s)  # type: ignore[arg-type]


async def test_the_controller_s_word_counts_until_it_is_too_old() -> None:
    world = World()
    world.board.entry = Allotment(2, (B1,))
    await world.source.refresh(IDLE)
    assert world.source.allotment == Allotment(2, (B1,))
    world.board.entry = None
    world.now_s = 4.9
    await world.source.refresh(IDLE)
    assert (world.source.allotment, world.source.alone) == (Allotment(2, (B1,)), False)
    world.now_s = 5.0
    await world.source.refresh(IDLE)
    assert (world.source.allotment.window, world.source.alone) == (4, True)


async def test_without_redis_the_replica_goes_by_its_own_load_and_the_last_order() -> None:
    world = World()
    world.board.entry = Allotment(2, (B1, B2))
    await world.source.refresh(IDLE)
    world.board.entry = RedisConnectionError("away")
    world.now_s = 5.0
    with pytest.raises(RedisConnectionError):
        await world.source.refresh(IDLE)
    assert world.source.allotment == Allotment(4, (B1, B2))
    with pytest.raises(RedisConnectionError):
        await world.source.refresh(BUSY)
    assert world.source.allotment.window == 0
    world.board.entry = Allotment(3, (B2,))
    await world.source.refresh(BUSY)
    assert (world.source.allotment, world.source.alone) == (Allotment(3, (B2,)), False)


async def test_an_empty_batch_is_passed_over_until_the_next_word() -> None:
    world = World()
    world.board.entry = Allotment(2, (B1, B2))
    await world.source.refresh(IDLE)
    assert world.source.turn == B1
    world.source.mark_empty("b1")
    assert world.source.turn == B2
    await world.source.refresh(IDLE)
    assert world.source.turn == B1


async def test_batches_come_in_turns_and_again_until_the_next_word() -> None:
    world = World()
    assert world.source.turn is None
    world.board.entry = Allotment(2, (B1, B2))
    await world.source.refresh(IDLE)
    world.source.mark_taken("b1", 2)
    assert world.source.turn == JobShare("b1", 1)
    world.source.mark_taken("b1", 1)
    assert world.source.turn == B2
    world.source.mark_taken("b2", 1)
    assert world.source.turn == B1


async def test_turns_that_stay_the_same_go_on_where_they_were() -> None:
    world = World()
    world.board.entry = Allotment(2, (B1, B2))
    await world.source.refresh(IDLE)
    world.source.mark_taken("b1", 3)
    world.board.entry = Allotment(1, (B1, B2))
    await world.source.refresh(IDLE)
    assert (world.source.turn, world.source.allotment.window) == (B2, 1)
    world.board.entry = Allotment(1, (B2, B1))
    await world.source.refresh(IDLE)
    world.source.mark_taken("b2", 1)
    world.board.entry = Allotment(1, (B1, B2))
    await world.source.refresh(IDLE)
    assert world.source.turn == B1, "others begin at their beginning"


async def test_requests_are_limited_by_the_tokens_in_flight_also_of_batches_heard_of_before() -> None:
    world = World()
    assert world.source.limit_by_tokens("b1", 9, {}) == 9
    world.board.entry = Allotment(8, (B1,), window_tokens=1_000, request_tokens={"b1": 400.0})
    await world.source.refresh(IDLE)
    world.board.entry = Allotment(8, (B2,), window_tokens=1_000, request_tokens={"b2": 100.0})
    await world.source.refresh(IDLE)
    assert world.source.limit_by_tokens("b2", 9, {"b1": 1}) == 6
    assert world.source.limit_by_tokens("b2", 3, {"b1": 1}) == 3
    assert world.source.limit_by_tokens("b2", 9, {"b1": 3}) == 0
