"""Online requests that a replica refuses at once because it has no capacity for them: the gate at a real engine."""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol

import structlog

from conserve.config import Settings
from conserve.jobs.errors import ApiError
from conserve.policy.overload import PAUSE_S, Conditions, OverloadGate, OverloadLimits, Verdict
from deployments.online_metrics import OnlineMetrics
from deployments.ray_compat import ErrorInfo, ErrorResponse

log = structlog.get_logger(__name__)

OVERLOADED: Final = "overloaded"
"""Type of a replica's error, and code of the front's. The replica's `param` is the time to wait, in seconds: an error
of vLLM has no field for it, and an exception would be logged with its traceback for each request."""
MESSAGE: Final = "The server has no capacity for this request now; try again later."
FULLEST_PROMPTS: Final = 128
"""Sequences that a request asks for: `n` of each prompt. More are counted as so many."""


class PausableEngine(Protocol):
    """The part of `CoServeEngine` that keeps offline work away."""

    def pause_offline(self, paused: bool) -> None:
        """Lets no offline request run beside online ones, or lets them again."""


class Visit:
    """A request that was let in. Each of the calls may come again, and `end` without the others."""

    def __init__(self, gate: OverloadGate, number: int, clock: Callable[[], float]) -> None:
        self._gate = gate
        self._number = number
        self._clock = clock

    def note_first(self) -> None:
        """Its first token has come."""
        self._gate.note_first(self._number, self._clock())

    def end(self) -> None:
        """It has ended."""
        self._gate.leave(self._number, self._clock())

    def end_with(self, answer: AsyncGenerator[Any, None]) -> None:
        """It ends with the answer, too, which nobody may ever begin to read."""
        weakref.finalize(answer, self.end).atexit = False


class OverloadGuard:
    """Of one replica.

    Args:
        settings: ConServe's.
        engine: Whose offline work makes way.
        find_conditions: What the engine says of itself; takes the number of online sequences that decode.
        metrics: Where refusals are counted, and gaps between tokens are heard of.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        engine: PausableEngine,
        find_conditions: Callable[[int], Conditions],
        metrics: OnlineMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        overload = settings.overload
        objectives_ms = [(one.ttft_slo_ms, one.tbt_slo_ms) for one in settings.slo.by_priority().values()]
        limits = OverloadLimits(overload.ttft_share, overload.max_waiting_requests, overload.refuse, overload.grace_s)
        self._gate = OverloadGate(objectives_ms, limits)
        self._engine = engine
        self._find_conditions = find_conditions
        self._metrics = metrics
        self._clock = clock
        self._numbers = itertools.count()
        self._is_paused = False
        self._refused = 0
        metrics.on_gap = self._note_gap

    def let_in(self, request: Any, priority: int, tokens: float) -> Visit | ErrorResponse:
        """The visit of a request, or what it is answered if it is refused.

        Args:
            request: Of vLLM's OpenAI layer.
            priority: Of its class.
            tokens: Of its prompt that have to be computed, about.
        """
        places, now_s = count_places(request), self._clock()
        verdict = self._gate.decide(priority, tokens, places, self._find_conditions(self._gate.running), now_s)
        if verdict.reason is not None:
            self._metrics.note_overload(request, verdict.reason)
            self._refused += 1
            self._pause(verdict)
            return _refusal(verdict.retry_after_s)
        number = next(self._numbers)
        self._gate.enter(number, priority, tokens, places, verdict, now_s)
        return Visit(self._gate, number, self._clock)

    def _note_gap(self, gap_s: float) -> None:
        self._gate.note_gaps(gap_s * 1e3, self._clock())

    def _pause(self, verdict: Verdict) -> None:
        if not self._is_paused:
            self._is_paused = True
            log.warning("online requests are refused for want of capacity", reason=verdict.reason)
            self._engine.pause_offline(True)
            asyncio.get_running_loop().call_later(PAUSE_S, self._look_again)

    def _look_again(self) -> None:
        if self._gate.is_overloaded(self._clock()):
            asyncio.get_running_loop().call_later(PAUSE_S, self._look_again)
            return
        self._is_paused = False
        log.info("no online requests are refused any more", refused=self._refused)
        self._refused = 0
        self._engine.pause_offline(False)


def count_places(request: Any) -> int:
    """Sequences that a request asks for."""
    count = getattr(request, "n", None) or 1
    prompts = getattr(request, "prompt", None) or getattr(request, "input", None)
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        count *= len(prompts)
    return int(min(count, FULLEST_PROMPTS))


def _refusal(retry_after_s: int) -> ErrorResponse:
    error = ErrorInfo(message=MESSAGE, type=OVERLOADED, param=str(retry_after_s), code=429)
    return ErrorResponse(error=error)


async def raise_overload(answer: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Passes an answer of a replica on.

    Raises:
        ApiError: 429, it was refused.
    """
    async with aclosing(answer) as parts:
        async for part in parts:
            if isinstance(part, ErrorResponse) and part.error.type == OVERLOADED:
                retry_after_s = int(part.error.param or 1)
                raise ApiError(
                    429, MESSAGE, error_type="rate_limit_error", code=OVERLOADED, retry_after_s=retry_after_s
                )
            yield part
