"""How the front learns that a replica is gone which says nothing, neither an answer nor an error.

Ray tells a caller of an actor's death, as a rule within a second. It says nothing of a process that is stopped or cut
off, and its word can be late or lost. So a replica sends a pulse in the pauses of an answer, and the front gives an
answer up in which neither a piece nor a pulse has come for `http.replica_silence_s`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar, copy_context
from typing import Any, Final, NamedTuple

PULSE: Final = ": pulse\n\n"
"""Sent by a replica. As a comment of an event stream, so that a front of an older version may pass it on."""
PULSES: Final = 5
"""In the longest silence that there may be."""
AVOIDED_S: Final = 120.0
"""Serve has found out by then whether a replica that says nothing is to be replaced."""
LOOK_PERIOD_S: Final = 0.25
"""While nothing has come yet, so often the front looks whether there is still time."""


class ReplicaSilent(RuntimeError):
    """A replica that was sent a request has said nothing for too long."""


class NoReplicaTook(RuntimeError):
    """No replica has had room for a request in the time that it may wait."""


class Attempt:
    """One time that the front sends a request: to which replica, and when, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.replica: str | None = None
        self.sent_s: float | None = None


class SilentReplicas:
    """Those that have said nothing lately, so that the next request goes to another one."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def add(self, replica: str, now_s: float) -> None:
        """An answer was waited for in vain."""
        self._since_s = {one: since_s for one, since_s in self._since_s.items() if now_s - since_s < AVOIDED_S}
        self._since_s[replica] = now_s

    def discard(self, replica: str) -> None:
        """Something was heard of it."""
        self._since_s.pop(replica, None)

    def is_silent(self, replica: str, now_s: float) -> bool:
        """Whether it is to be avoided, if there are others."""
        since_s = self._since_s.get(replica)
        return since_s is not None and now_s - since_s < AVOIDED_S


ATTEMPT: Final[ContextVar[Attempt | None]] = ContextVar("conserve_attempt", default=None)
"""Of the request that is under way. Serve's router runs in the context of the request that it routes."""
SILENT: Final = SilentReplicas()
"""Of this process. Routers know it by this module's name, since Ray pickles their own module by value."""


def note_sent(replica: str, now_s: float) -> None:
    """Called by the router, perhaps in its own thread, when it sends the request of this context to a replica."""
    if (attempt := ATTEMPT.get()) is not None:
        attempt.replica, attempt.sent_s = replica, now_s


async def beat(responses: AsyncGenerator[Any, None], silence_s: float) -> AsyncGenerator[Any, None]:
    """At the replica: passes an answer on, with pulses in its pauses.

    Args:
        responses: The answer: whole, or pieces of it.
        silence_s: What the front waits for at most.
    """
    period_s = silence_s / PULSES
    # One piece, so that whoever makes them sees a slow reader and puts them together.
    pieces: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)

    async def pass_on() -> None:
        try:
            async with aclosing(responses):
                async for response in responses:
                    await pieces.put(response)
        except Exception as error:  # noqa: BLE001 - raised again by whoever takes the pieces
            await pieces.put(_End(error))
        else:
            await pieces.put(_End(None))

    passing = asyncio.create_task(pass_on())
    try:
        while True:
            try:
                async with asyncio.timeout(period_s):
                    piece = await pieces.get()
            except TimeoutError:
                yield PULSE
                continue
            if isinstance(piece, _End):
                if piece.error is not None:
                    raise piece.error
                return
            yield piece
    finally:
        passing.cancel()
        await asyncio.wait([passing])


class _End(NamedTuple):
    error: Exception | None


async def listen(
    ask: Callable[[], AsyncGenerator[Any, None]],
    silence_s: float,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Any, None]:
    """At the front: passes an answer on without its pulses, as long as something is heard of its replica.

    Args:
        ask: Sends the request, when it is asked for the first piece.
        silence_s: How long a replica may say nothing.
        wait_s: How long no replica may have room for the request.
        clock: Seconds, monotonic, the router's.

    Raises:
        NoReplicaTook: none had room.
        ReplicaSilent: the replica has said nothing.
    """
    attempt = Attempt()
    async with aclosing(ask()) as responses:
        try:
            piece = await _wait_for_first(responses, attempt, silence_s, clock() + wait_s, clock)
            while True:
                if piece != PULSE:
                    yield piece
                async with asyncio.timeout(silence_s):
                    piece = await anext(responses)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if attempt.replica is not None:
                SILENT.add(attempt.replica, clock())
            raise ReplicaSilent(f"nothing has come for {silence_s:g} s") from None


async def _wait_for_first(
    responses: AsyncGenerator[Any, None],
    attempt: Attempt,
    silence_s: float,
    until_s: float,
    clock: Callable[[], float],
) -> Any:
    """The first piece or pulse. Raises TimeoutError where the request was sent, and NoReplicaTook where it was not."""
    context = copy_context()
    context.run(ATTEMPT.set, attempt)
    first = asyncio.get_running_loop().create_task(_fetch(responses), context=context)
    try:
        while True:
            await asyncio.wait([first], timeout=LOOK_PERIOD_S)
            if first.done():
                return first.result()
            if attempt.sent_s is not None:
                if clock() - attempt.sent_s > silence_s:
                    raise TimeoutError
            elif clock() > until_s:
                raise NoReplicaTook("no replica has had room for the request")
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait([first])


async def _fetch(responses: AsyncGenerator[Any, None]) -> Any:
    return await anext(responses)
