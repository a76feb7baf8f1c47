"""An engine that answers what it is told to, as slowly as it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from conserve.engine.chunk_assembly import ChunkAssembly
from conserve.engine.contract import (
    AttemptTimeout,
    EngineDied,
    EngineFault,
    EngineStats,
    OfflineResult,
    OnChunk,
    TokenRecord,
)
from tests.integration.bench import MODEL

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class FakeEngine:
    """Answers with the content it was asked.

    `faults`, `refusals` and `slow` are contents that fail, that get a 400, and that are not answered in time; a content
    of `poisons` fails all requests that run with it. `company` has the most that ran beside each in its last attempt.
    Since `online_since_s` there are online requests in it all the time.
    A streamed answer comes word by word; each word waits for `word_gate`, and of contents in `breaks` the next attempt
    fails after so many.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.faults: set[str] = set()
        self.refusals: set[str] = set()
        self.slow: set[str] = set()
        self.poisons: set[str] = set()
        self.company: dict[str, int] = {}
        self._active: list[str] = []
        self._death = asyncio.Event()
        self.online_running = 0
        self.running = 0
        self.most_running = 0
        self.answers_until_gate_shuts: int | None = None
        self.word_gate = asyncio.Event()
        self.word_gate.set()
        self.breaks: dict[str, int] = {}
        self.floor = 0.0
        self.online_since_s: float | None = None

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        content = body["messages"][0]["content"]
        self.asked.append(content)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._active.append(content)
        self.company[content] = 0
        for one in self._active:
            self.company[one] = max(self.company[one], self.running - 1)
        death = self._death
        try:
            if content in self.poisons:
                self._death = asyncio.Event()  # Another engine takes its place at once.
                death.set()
                raise EngineDied("the engine ended")
            await asyncio.sleep(0.001)
            await self.gate.wait()
            if death.is_set():
                raise EngineDied("the engine ended")
            if on_chunk is not None and content not in self.refusals:
                return await self._stream(content, on_chunk)
            if self.answers_until_gate_shuts is not None:
                self.answers_until_gate_shuts -= 1
                if self.answers_until_gate_shuts <= 0:
                    self.gate.clear()
        except asyncio.CancelledError:
            self.cancelled.append(content)
            raise
        finally:
            self.running -= 1
            self._active.remove(content)
        if content in self.slow:
            raise AttemptTimeout("not answered in time")
        if content in self.faults:
            raise EngineFault("the engine fell over")
        if content in self.refusals:
            return OfflineResult(400, {"error": {"message": "too long", "code": 400}})
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        answer = {"id": f"chatcmpl-{content}", "object": "chat.completion", "created": 1, "model": MODEL}
        answer |= {"choices": [choice], "usage": USAGE, "echo": content}
        return OfflineResult(200, answer, 7, 3)

    async def _stream(self, content: str, on_chunk: OnChunk) -> OfflineResult:
        assembly = ChunkAssembly()
        breaks_after = self.breaks.pop(content, None)
        words = content.split(" ")
        deltas = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word if not place else f" {word}"} for place, word in enumerate(words)]
        for place, delta in enumerate(deltas):
            await self.word_gate.wait()
            if place == breaks_after:
                raise EngineFault("the engine fell over")
            ending = "stop" if place == len(deltas) - 1 else None
            self._say(assembly, on_chunk, [{"index": 0, "delta": delta, "finish_reason": ending}])
            await asyncio.sleep(0.001)
        self._say(assembly, on_chunk, [], usage=USAGE)
        return OfflineResult(200, assembly.body(), 7, 3)

    def _say(self, assembly: ChunkAssembly, on_chunk: OnChunk, choices: list[Any], **more: Any) -> None:
        chunk = {"id": f"chatcmpl-{len(self.asked)}", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        chunk |= {"choices": choices} | more
        assembly.add(chunk)
        on_chunk(chunk)

    def grant_floor(self, share: float) -> None:
        self.floor = share

    def stats(self) -> EngineStats:
        return EngineStats(
            online_running=self.online_running,
            online_waiting=0,
            offline_running=self.running,
            kv_usage=0.0,
            online_busy_s=0.0 if self.online_since_s is None else time.monotonic() - self.online_since_s,
            offline_busy_s=0.0,
            engine_cpu_s=0.0,
            online_requests=0,
            offline_requests=len(self.asked),
            offline_prompt_tokens=0,
            offline_output_tokens=0,
        )
