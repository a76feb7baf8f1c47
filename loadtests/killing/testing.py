"""A light engine for runs in which what is around the engine is tried out: no model, answers that can be checked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Final

from conserve.engine.contract import EngineStats, OfflineResult, OnChunk

PROMPT_TOKENS: Final = 5
OUTPUT_TOKENS: Final = 3
LONGEST_S: Final = 0.04


def make_answer(content: str) -> str:
    """What the light engine answers."""
    return content[::-1]


class LightEngine:
    """Answers within some milliseconds.

    Args:
        generator: Draws how many.
    """

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._running = 0
        self._answered = 0

    async def offline(
        self, endpoint: str, body: Mapping[str, Any], timeout_s: float, *, on_chunk: OnChunk | None = None
    ) -> OfflineResult:
        """Runs one chat request."""
        content = body["messages"][-1]["content"]
        self._running += 1
        try:
            await asyncio.sleep(self._generator.uniform(0.0, LONGEST_S))
        finally:
            self._running -= 1
        self._answered += 1
        message = {"role": "assistant", "content": make_answer(content)}
        answer = {"id": f"chatcmpl-{content}", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return OfflineResult(200, answer, PROMPT_TOKENS, OUTPUT_TOKENS)

    def stats(self) -> EngineStats:
        """Nothing but offline requests."""
        return EngineStats(
            online_running=0,
            online_waiting=0,
            offline_running=self._running,
            kv_usage=0.0,
            online_busy_s=0.0,
            offline_busy_s=0.0,
            engine_cpu_s=0.0,
            online_requests=0,
            offline_requests=self._answered,
            offline_prompt_tokens=PROMPT_TOKENS * self._answered,
            offline_output_tokens=OUTPUT_TOKENS * self._answered,
        )
