"""How slots are dealt out to several owners."""

from __future__ import annotations

import asyncio

import pytest

from conserve.jobs.slots import FairSlots


class Crowd:
    """Those who work in a slot until they are told to end."""

    def __init__(self, slots: FairSlots) -> None:
        self._slots = slots
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.at_work: list[str] = []

    async def add(self, *names: str) -> None:
        """Each is its owner and a number, as `a1`."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._work(name))
        await self._settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await self._settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await self._settle()

    async def _work(self, name: str) -> None:
        async with self._slots.take(name[0]):
            self.at_work.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.at_work.remove(name)

    async def _settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_one_owner_leaves_some_for_others() -> None:
    crowd = Crowd(FairSlots(4, 3))
    await crowd.add("a1", "a2", "a3", "a4")
    assert crowd.at_work == ["a1", "a2", "a3"]
    await crowd.add("b1", "b2")
    assert crowd.at_work == ["a1", "a2", "a3", "b1"]
    await crowd.end("a1")
    assert crowd.at_work == ["a2", "a3", "b1", "b2"], "who has fewest goes first"
    await crowd.end("a2", "b1", "b2")
    assert crowd.at_work == ["a3", "a4"]


async def test_of_one_owner_they_come_in_their_order() -> None:
    crowd = Crowd(FairSlots(1, 1))
    await crowd.add("a1", "a2", "a3")
    await crowd.end("a1")
    assert crowd.at_work == ["a2"]
    await crowd.end("a2")
    assert crowd.at_work == ["a3"]


@pytest.mark.parametrize("name", ["a1", "a2"])
async def test_who_is_cancelled_takes_no_slot(name: str) -> None:
    crowd = Crowd(FairSlots(1, 1))
    await crowd.add("a1", "a2", "a3")
    await crowd.cancel(name)
    await crowd.end("a1", "a2")
    assert crowd.at_work == ["a3"]


async def test_a_slot_given_in_the_moment_of_a_cancellation_is_given_on() -> None:
    slots = FairSlots(1, 1)
    crowd = Crowd(slots)
    await crowd.add("a1", "a2", "a3")
    crowd._ends["a1"].set()
    await asyncio.sleep(0)  # The first one ends, and the second has the slot but has not heard of it.
    await crowd.cancel("a2")
    assert crowd.at_work == ["a3"]
