from __future__ import annotations

import asyncio

from conserve.harvest.held_work import HeldWork
from conserve.jobs.claims import ClaimedRequest


def claim(line: int, fence: str = "f1") -> ClaimedRequest:
    return ClaimedRequest("batch_1", line, 0, 10, fence, 1)


async def test_work_is_held_until_it_is_committed() -> None:
    held, task = HeldWork(), asyncio.create_task(asyncio.sleep(0))
    held.add(claim(1), task)
    assert (held.running_count, held.running_lines("batch_1")) == (1, {1})
    held.finish(claim(1))
    assert (held.running_count, held.fences("batch_1")) == (0, {1: "f1"})
    held.drop_finished("batch_1", [1])
    assert held.batch_ids() == []
    await task


async def test_late_news_of_an_older_claim_leaves_the_newer_one_alone() -> None:
    held, task = HeldWork(), asyncio.create_task(asyncio.sleep(0))
    held.add(claim(1, "f2"), task)
    held.finish(claim(1, "f1"))
    held.drop_finished("batch_1", [1])
    assert held.drop("batch_1", {1: "f1"}) == []
    assert held.running_tasks("batch_1") == [task]
    assert held.drop("batch_1", {1: "f2", 2: "f9"}) == [task]
    assert held.batch_ids() == []
    await task
