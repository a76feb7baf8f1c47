"""A light engine for runs in which what is around the engine is tried out: no model, answers that can be checked."""

from __future__ import annotations

import asyncio
import os
import random
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from conserve.engine.contract import EngineStats, OfflineResult, OnChunk, TokenRecord
from loadtests.killing.questions import Answer, make_id

MODEL: Final = "light"
PROMPT_TOKENS: Final = 5
STEP: Final = 4
"""Tokens that are produced at a time."""
STEP_S: Final = 0.04
"""On average; a hundred tokens a second, as a large model."""
LONGEST_ANSWER: Final = 160


def make_answer(content: str) -> str:
    """What the light engine answers: the question from its end on, again and again. Each letter is a token."""
    length = 1 + zlib.crc32(content.encode()) % LONGEST_ANSWER
    return (content[::-1] * (length // len(content) + 1))[:length]


class LightQuestions:
    """Questions for the light engine: their own custom ids."""

    def make_body(self, name: str, number: int) -> Mapping[str, Any]:
        """The body of a request; greedy, so that it may be continued."""
        message = {"role": "user", "content": make_id(name, number)}
        return {"model": MODEL, "messages": [message], "temperature": 0}

    def expect(self, name: str, number: int) -> Answer:
        """The answer to it."""
        text = make_answer(make_id(name, number))
        return Answer(text, PROMPT_TOKENS, len(text))


class LightEngine:
    """Answers within some seconds.

    Args:
        generator: Draws how many.
        log: What it has produced is written there, for `regeneration.read_log`.
    """

    def __init__(self, generator: random.Random, log: Path) -> None:
        self._generator = generator
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._running = 0
        self._answered = 0
        self._attempts = 0
        self._output_tokens = 0

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        """Runs one chat request; after the tokens in `record`, if these are its own.

        What is streamed is not written down: it begins anew in each attempt.
        """
        content = body["messages"][-1]["content"]
        text = make_answer(content)
        place = 0
        if record is not None and record.token_ids == [ord(letter) for letter in text[: len(record.token_ids)]]:
            place = record.reused = len(record.token_ids)
        self._attempts += 1
        attempt = f"{os.getpid()}.{self._attempts}"
        self._running += 1
        try:
            while place < len(text):
                await asyncio.sleep(self._generator.uniform(0.0, 2 * STEP_S))
                new = text[place : place + STEP]
                if on_chunk is None:
                    os.write(self._log, f"{content} {attempt} {place} {len(new)}\n".encode())
                else:
                    on_chunk(_make_chunk(content, new, is_first=place == 0))
                place += len(new)
                if record is not None and place < len(text):
                    record.add([ord(letter) for letter in new])
        finally:
            self._running -= 1
        self._answered += 1
        self._output_tokens += len(text)
        message = {"role": "assistant", "content": text}
        answer = {"id": f"chatcmpl-{content}", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return OfflineResult(200, answer, PROMPT_TOKENS, len(text))

    def grant_floor(self, share: float) -> None:
        """There are no online requests to take it from."""

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
            offline_output_tokens=self._output_tokens,
        )


def _make_chunk(content: str, new: str, *, is_first: bool) -> dict[str, Any]:
    delta = {"content": new} | ({"role": "assistant"} if is_first else {})
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": f"chatcmpl-{content}", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}
