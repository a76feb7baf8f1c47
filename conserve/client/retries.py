"""When a call is made again: what passes, how long to wait, how often."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from conserve.client.errors import ConServeError, StatusError
from conserve.client.transport import Transport

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
LONGEST_RETRY_AFTER_S = 120.0
"""Who is told to come back later than that is told so by an error."""

OnRetry = Callable[[ConServeError, float], None]
"""Told what went wrong, and in how many seconds it is tried again."""

T = TypeVar("T")


class Retries:
    """Makes a call again while what is wrong may pass.

    Args:
        transport: Waits.
        most: Further tries of a call, at most.
        on_retry: Told before each.
    """

    def __init__(self, transport: Transport, most: int, on_retry: OnRetry | None) -> None:
        self._transport = transport
        self._most = most
        self._on_retry = on_retry

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of a call that is safe to be made again.

        Raises:
            ConServeError: as the last try did.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._most + 1),
            wait=lambda state: find_pause_s(_find_error(state), state.attempt_number),
            retry=retry_if_exception(may_pass),
            sleep=self._transport.sleep,
            before_sleep=lambda state: self._tell(_find_error(state), state.upcoming_sleep),
            reraise=True,
        )

        async def await_attempt() -> T:  # tenacity awaits what it can see to be a coroutine function.
            return await attempt()

        return await retrying(await_attempt)

    async def pause(self, error: ConServeError, failures: int) -> None:
        """Waits after so many failures one after the other, the last of which was this one.

        Raises:
            ConServeError: it, where it will not pass or was one too many.
        """
        if failures > self._most or not may_pass(error):
            raise error
        seconds = find_pause_s(error, failures)
        self._tell(error, seconds)
        await self._transport.sleep(seconds)

    def _tell(self, error: ConServeError, seconds: float) -> None:
        if self._on_retry is not None:
            self._on_retry(error, seconds)


def may_pass(error: BaseException) -> bool:
    """Whether it is worth trying again, in a while that somebody would wait."""
    if not isinstance(error, ConServeError) or not error.is_passing:
        return False
    return _find_retry_after_s(error) <= LONGEST_RETRY_AFTER_S


def find_pause_s(error: ConServeError, failures: int) -> float:
    """How long to wait: twice as long each time, three quarters of it at least, and no less than was asked for."""
    longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30))
    jitter = random.uniform(0.75, 1.0)  # noqa: S311 - so that clients do not come back all at once
    return max(longest_s * jitter, _find_retry_after_s(error))


def _find_retry_after_s(error: ConServeError) -> float:
    if not isinstance(error, StatusError):
        return 0.0
    return error.retry_after_s or 0.0


def _find_error(state: RetryCallState) -> ConServeError:
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, ConServeError):
        raise TypeError(f"only errors of our own are tried again, not {error!r}")
    return error
