"""The outputs of online requests are seen as they leave the engine; nobody else's are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.metrics.stats import RequestStateStats

from conserve.engine.continuation import RecordingGenerate, keep_records
from conserve.engine.output_watch import watch_first, watch_outputs
from conserve.engine.vllm_compat import SamplingParams
from conserve.policy.priority import OFFLINE_PRIORITY


class Watcher:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int, float]] = []

    def note_queued(self, priority: int, queued_s: float) -> None:
        self.heard.append(("queued", priority, queued_s))

    def note_gap(self, priority: int, gap_s: float) -> None:
        self.heard.append(("gap", priority, gap_s))


class Llm:
    """As much of an `AsyncLLM` as passes requests on."""

    def __init__(self, times: RequestStateStats | None) -> None:
        self.times = times
        self.now_s = 0.0
        self.vllm_config = SimpleNamespace(watermark_config=None, model_config=SimpleNamespace(logits_processors=None))

    async def generate(self, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
        for pause_s in (1.0, 0.25, 0.5):
            self.now_s += pause_s
            yield SimpleNamespace(metrics=self.times, now_s=self.now_s)


TIMES = RequestStateStats(queued_ts=10.0, scheduled_ts=10.5)


async def test_waits_and_gaps_are_heard_of() -> None:
    llm, watcher = Llm(TIMES), Watcher()
    outputs = watch_outputs(llm.generate(), 1, watcher, clock=lambda: llm.now_s)
    assert [output.now_s async for output in outputs] == [1.0, 1.25, 1.75]
    assert watcher.heard == [("queued", 1, 0.5), ("gap", 1, 0.25), ("gap", 1, 0.5)]


async def test_without_vllm_s_times_only_gaps_are() -> None:
    llm, watcher = Llm(None), Watcher()
    [output async for output in watch_outputs(llm.generate(), 0, watcher, clock=lambda: llm.now_s)]
    assert [what for what, *_ in watcher.heard] == ["gap", "gap"]


def make_watched() -> tuple[RecordingGenerate, Watcher]:
    generate, watcher = keep_records(Llm(TIMES)), Watcher()
    generate.watcher = watcher
    return generate, watcher


@pytest.mark.parametrize(
    ("params", "options", "heard"),
    [
        (SamplingParams(), {"priority": 0}, 3),
        (SamplingParams(), {}, 3),
        (SamplingParams(), {"priority": OFFLINE_PRIORITY}, 0),
        (SamplingParams(n=2), {"priority": 0}, 0),
    ],
)
async def test_only_online_requests_are_watched(params: SamplingParams, options: dict[str, int], heard: int) -> None:
    generate, watcher = make_watched()
    assert len([output async for output in generate("prompt", params, "r1", **options)]) == 3
    assert len(watcher.heard) == heard


@pytest.mark.parametrize("count", [1, 2])
async def test_the_first_output_of_an_online_request_is_told_to_who_asked_for_it(count: int) -> None:
    generate, _ = make_watched()
    came: list[str] = []

    async def ask(name: str, priority: int) -> None:
        watch_first(lambda: came.append(name))
        outputs = generate("prompt", SamplingParams(n=count), name, priority=priority)
        assert [len(came) async for _ in outputs] == [1, 1, 1]

    await asyncio.create_task(ask("online", 0))
    assert came == ["online"]
