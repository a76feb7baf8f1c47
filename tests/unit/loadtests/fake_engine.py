"""An engine and an event loop whose time passes only where somebody sleeps: minutes of a benchmark take no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

from conserve.config import EngineSettings
from conserve.engine.iteration_log import Iteration
from conserve.engine.page import Counters, Knobs

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: the time it was to wait for has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing is left to wait for")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


class FakeEngine:
    """Computes prompts one after the other, online ones first, and then one token every `token_s`.

    Smaller batches make online prompts wait less and compute offline ones more slowly.
    """

    def __init__(self, settings: EngineSettings | None = None, *, token_s: float = 0.03, prompt_token_s: float = 1e-3):
        self.mode = settings.mode if settings is not None else "stock"
        self.token_s = token_s
        self.prompt_token_s = prompt_token_s
        self.knobs = Knobs()
        self.knobs_seen: list[Knobs] = []
        self.resets = 0
        self.closed = False
        self.failure: Exception | None = None
        self.hangs = False
        self.prompts: list[tuple[int, ...]] = []
        self.online_prompts: list[tuple[int, ...]] = []
        self.in_flight = {True: 0, False: 0}
        self.most_in_flight = {True: 0, False: 0}
        self._prefill = asyncio.Lock()
        self._iterations = 0
        self._offline_prefill_tokens = 0

    async def generate(
        self, prompt_token_ids: Sequence[int], max_tokens: int, *, online: bool
    ) -> AsyncGenerator[int, None]:
        (self.online_prompts if online else self.prompts).append(tuple(prompt_token_ids))
        self.in_flight[online] += 1
        self.most_in_flight[online] = max(self.in_flight[online], self.most_in_flight[online])
        try:
            if self.failure is not None:
                raise self.failure
            if self.hangs:
                await asyncio.Event().wait()
            batch = self.knobs.max_num_batched_tokens or 512.0
            if online:
                # What waits for an iteration of the present size to end.
                beside = batch * self.prompt_token_s if self.in_flight[False] else 0.0
                await asyncio.sleep(beside + len(prompt_token_ids) * self.prompt_token_s)
            else:
                async with self._prefill:
                    await asyncio.sleep(len(prompt_token_ids) * self.prompt_token_s * (1 + 16 / batch))
                self._offline_prefill_tokens += len(prompt_token_ids)
            for index in range(max_tokens):
                if index:
                    await asyncio.sleep(self.token_s)
                self._iterations += 1
                yield 1
        finally:
            self.in_flight[online] -= 1

    def set_knobs(self, knobs: Knobs) -> None:
        assert not any(self.in_flight.values()), "knobs are changed between runs"
        self.knobs = knobs
        self.knobs_seen.append(knobs)

    def counters(self) -> Counters:
        return Counters(iterations=self._iterations, offline_prefill_tokens=self._offline_prefill_tokens)

    def iterations(self, since_s: float) -> list[Iteration]:
        return []

    async def reset_prefix_cache(self) -> None:
        if any(self.in_flight.values()):
            raise RuntimeError("in use")
        self.resets += 1

    def peak_memory_bytes(self) -> int:
        return 7

    async def close(self) -> None:
        self.closed = True
