"""How the front learns that a replica is gone which says nothing, neither an answer nor an error.

Ray tells a caller of an actor's death, as a rule within a second. It says nothing of a process that is stopped or cut
off, and its word can be late or lost. So a replica sends a pulse in the pauses of an answer, and the front gives an
answer up in which neither a piece nor a pulse has come for `http.replica_silence_s`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from fastapi import Request

PULSE: Final = ": pulse\n\n"
"""Sent by a replica. As a comment of an event stream, so that a front of an older version may pass it on."""
PULSES: Final = 5
"""In the longest silence that there may be."""
ATTEMPT_HEADER: Final = "x-conserve-attempt"
"""Header from the front to the router in the same process: the number of the attempt."""
LOOK_PERIOD_S: Final = 0.25
"""While nothing has come yet, so often the front looks whether there is still time."""


class ReplicaSilent(RuntimeError):
    """A replica that was sent a request has said nothing for too long."""


class NoReplicaTook(RuntimeError):
    """No replica has had room for a request in the time that it may wait."""


class Attempt:
    """One time that the front sends a request."""

    def __init__(self) -> None:
        self.sent_s: float | None = None
        """When a replica was last chosen that has room, in seconds of the monotonic clock."""


class Attempts:
    """Those of this process that no replica has answered yet, so that the router can say when it has sent them."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Attempt] = {}

    def begin(self) -> tuple[str, Attempt]:
        """A new one, and its number as the header has it."""
        number, attempt = str(next(self._numbers)), Attempt()
        self._waiting[number] = attempt
        return number, attempt

    def end(self, number: str) -> None:
        """It is not waited for any more."""
        self._waiting.pop(number, None)

    def note_sent(self, number: str | None, now_s: float) -> None:
        """A replica was chosen for it. Called in the router's thread; of an unknown number nothing is noted."""
        attempt = self._waiting.get(number or "")
        if attempt is not None:
            attempt.sent_s = now_s


ATTEMPTS: Final = Attempts()


def number_attempt(request: Request | None, number: str) -> Request | None:
    """The request as it goes to the router; its header replaces one that a client has sent."""
    if request is None:
        return None
    own = ATTEMPT_HEADER.encode()
    headers = [*(header for header in request.scope["headers"] if header[0] != own), (own, number.encode())]
    return Request({**request.scope, "headers": headers}, request.receive)


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


async def ask_heard(
    send: Callable[[Request | None], AsyncGenerator[Any, None]],
    request: Request | None,
    silence_s: float,
    wait_s: float,
) -> AsyncGenerator[Any, None]:
    """At the front: sends a request, and passes the answer on as long as something is heard of its replica.

    Args:
        send: Sends it; its argument is the request, with a number for the router.
        request: How it came.
        silence_s: How long a replica may say nothing.
        wait_s: How long no replica may have room for the request.

    Raises:
        NoReplicaTook: none had room.
        ReplicaSilent: the replica has said nothing.
    """
    number, attempt = ATTEMPTS.begin()
    answer = listen(lambda: send(number_attempt(request, number)), attempt, silence_s, wait_s)
    try:
        async with aclosing(answer):
            async for response in answer:
                yield response
    finally:
        ATTEMPTS.end(number)


async def listen(
    ask: Callable[[], AsyncGenerator[Any, None]],
    attempt: Attempt,
    silence_s: float,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Any, None]:
    """At the front: passes an answer on without its pulses.

    Args:
        ask: Sends the request to a replica.
        attempt: Of this request; the router notes in it when it has sent the request.
        silence_s: How long a replica may say nothing.
        wait_s: How long no replica may have room for the request.
        clock: Seconds, monotonic, the router's.

    Raises:
        NoReplicaTook: none had room.
        ReplicaSilent: the replica has said nothing.
    """
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
            raise ReplicaSilent(f"nothing has come for {silence_s:g} s") from None


async def _wait_for_first(
    responses: AsyncGenerator[Any, None],
    attempt: Attempt,
    silence_s: float,
    until_s: float,
    clock: Callable[[], float],
) -> Any:
    first = asyncio.ensure_future(anext(responses))
    try:
        while True:
            await asyncio.wait([first], timeout=LOOK_PERIOD_S)
            if first.done():
                return first.result()
            if attempt.sent_s is not None:
                if clock() - attempt.sent_s > silence_s:
                    raise ReplicaSilent(f"nothing has come for {silence_s:g} s")
            elif clock() > until_s:
                raise NoReplicaTook("no replica has had room for the request")
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait([first])
