"""A light engine that answers online requests, too, and whose core is a process that can be killed."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from conserve.engine.contract import EngineDied, EngineGone, EngineStats, OfflineResult, OnChunk, TokenRecord
from loadtests.killing.roles import ENGINE_LOG
from loadtests.killing.testing.engine import STEP, STEP_S, LightEngine, make_answer

CORE: Final = ("sleep", "86400")
"""What stands for the core of an engine."""
LOOK_S: Final = 0.02


class MortalEngine(LightEngine):
    """A light engine with a core, without which it answers nothing any more.

    Args:
        state_dir: What it has produced is written to a file there.
    """

    def __init__(self, state_dir: Path) -> None:
        self._core = subprocess.Popen(CORE)
        super().__init__(random.Random(self._core.pid), state_dir / ENGINE_LOG)
        self._online_running = 0
        self._online_requests = 0

    def has_died(self) -> bool:
        """Whether the core has ended."""
        return self._core.poll() is not None

    def close(self) -> None:
        """Ends the core."""
        self._core.kill()
        self._core.wait()

    async def online(self, content: str) -> AsyncGenerator[str, None]:
        """Answers a question piece by piece.

        Raises:
            EngineDied: the core has ended meanwhile.
            EngineGone: it had ended before.
        """
        if self.has_died():
            raise EngineGone("the engine has ended")
        text = make_answer(content)
        self._online_requests += 1
        self._online_running += 1
        try:
            for place in range(0, len(text), STEP):
                await asyncio.sleep(STEP_S)
                if self.has_died():
                    raise EngineDied("the engine has ended")
                yield text[place : place + STEP]
        finally:
            self._online_running -= 1

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        """As `LightEngine.offline`.

        Raises:
            EngineDied: the core has ended meanwhile.
            EngineGone: it had ended before.
        """
        if self.has_died():
            raise EngineGone("the engine has ended")
        answer = asyncio.ensure_future(super().offline(endpoint, body, timeout_s, record, on_chunk=on_chunk))
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=LOOK_S)
                if self.has_died():
                    raise EngineDied("the engine has ended")
            return await answer
        finally:
            answer.cancel()

    def stats(self) -> EngineStats:
        """Online and offline requests."""
        offline = super().stats()
        return replace(offline, online_running=self._online_running, online_requests=self._online_requests)
