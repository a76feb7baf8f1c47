"""An engine that answers what it is told to, as slowly as it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from conserve.engine.contract import AttemptTimeout, EngineDied, EngineFault, EngineStats, OfflineResult, TokenRecord


class FakeEngine:
    """Answers with the content it was asked.

    `faults`, `refusals` and `slow` are contents that fail, that get a 400, and that are not answered in time; a content
    of `poisons` fails all requests that run with it. `company` has the most that ran beside each in its last attempt.
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
        self.floor = 0.0

    async def offline(
        self, endpoint: str, body: Mapping[str, Any], timeout_s: float, record: TokenRecord | None = None
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
        return OfflineResult(200, {"id": f"chatcmpl-{content}", "echo": content}, 7, 3)

    def grant_floor(self, share: float) -> None:
        self.floor = share

    def stats(self) -> EngineStats:
        return EngineStats(
            online_running=self.online_running,
            online_waiting=0,
            offline_running=self.running,
            kv_usage=0.0,
            online_busy_s=0.0,
            offline_busy_s=0.0,
            engine_cpu_s=0.0,
            online_requests=0,
            offline_requests=len(self.asked),
            offline_prompt_tokens=0,
            offline_output_tokens=0,
        )
