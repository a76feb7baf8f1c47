from __future__ import annotations

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.leadership import Leadership
from loadtests.chat_record import ChatRecord
from loadtests.controller_outage import keep_from_work, render, summarise


async def test_a_controller_is_kept_from_work_and_takes_it_up_again(redis: Redis, settings: Settings) -> None:
    controller = Leadership(redis, settings.jobs.namespace, "its-cluster")
    assert await controller.take()
    async with keep_from_work(settings):
        assert not await controller.take()
        assert controller.other is not None
    assert await controller.take()


def test_rounds_without_are_compared_with_those_with() -> None:
    def answer(ttft_s: float, error: str | None = None) -> ChatRecord:
        return ChatRecord(0.0, 0.0, (ttft_s, ttft_s + 1), ttft_s + 1, 10, 2, error)

    records = {"with": [[answer(0.2), answer(0.4)]], "without": [[answer(0.1), answer(9.0, "gone")]]}
    figures = summarise(records, {"with": [50.0, 150.0], "without": [80.0, 80.0]}, round_s=60.0, rate_per_s=1.0)
    assert figures.offline_ratio == 0.8
    assert figures.p50_ratio.median < 1
    counts = {kind: (one.requests, one.errors) for kind, one in figures.kinds.items()}
    assert counts == {"with": (2, 0), "without": (2, 1)}
    assert render(figures).row_count == 3
