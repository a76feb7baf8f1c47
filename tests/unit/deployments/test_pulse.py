from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from deployments import pulse
from deployments.pulse import AVOIDED_S, PULSE, NoReplicaTook, ReplicaSilent, SilentReplicas, beat, listen, note_sent

FOREVER_S = 1_000.0


class Source:
    """An answer: pieces, exceptions, and pauses until `go` is set (None)."""

    def __init__(self, *parts: str | Exception | None) -> None:
        self._parts = parts
        self.go = asyncio.Event()
        self.is_closed = False

    async def answer(self) -> AsyncGenerator[Any, None]:
        try:
            for part in self._parts:
                if isinstance(part, Exception):
                    raise part
                if part is None:
                    await self.go.wait()
                else:
                    yield part
        finally:
            self.is_closed = True


async def collect(answer: AsyncGenerator[Any, None]) -> list[Any]:
    return [part async for part in answer]


def listen_to(source: Source, silence_s: float = FOREVER_S, wait_s: float = FOREVER_S) -> AsyncGenerator[Any, None]:
    return listen(source.answer, silence_s, wait_s)


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> SilentReplicas:
    """Of these tests alone."""
    silent = SilentReplicas()
    monkeypatch.setattr(pulse, "SILENT", silent)
    return silent


async def test_in_a_pause_there_are_pulses_and_then_the_answer_goes_on() -> None:
    source = Source("a", None, "b")
    pulses = 0
    pieces = []
    async with aclosing(beat(source.answer(), 0.05)) as answer:
        async for piece in answer:
            if piece == PULSE:
                pulses += 1
                if pulses == 3:
                    source.go.set()
            else:
                pieces.append(piece)
    assert pieces == ["a", "b"]
    assert pulses >= 3
    assert source.is_closed


async def test_an_answer_without_pauses_has_no_pulse() -> None:
    assert await collect(beat(Source(*"abcdef").answer(), FOREVER_S)) == list("abcdef")


async def test_an_error_after_a_piece_that_nobody_has_fetched_is_raised() -> None:
    answer = beat(Source("a", "b", ValueError("x")).answer(), FOREVER_S)
    assert [await anext(answer), await anext(answer)] == ["a", "b"]
    with pytest.raises(ValueError, match="x"):
        await anext(answer)


async def test_a_client_that_leaves_ends_the_answer() -> None:
    source = Source("a", None)
    answer = beat(source.answer(), FOREVER_S)
    assert await anext(answer) == "a"
    await answer.aclose()
    assert source.is_closed


async def test_an_answer_that_is_cancelled_in_a_pause_is_closed() -> None:
    source = Source(None)
    task = asyncio.create_task(collect(beat(source.answer(), FOREVER_S)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.is_closed


async def test_pulses_are_not_passed_on() -> None:
    assert await collect(listen_to(Source(PULSE, "a", PULSE, PULSE, "b", PULSE))) == ["a", "b"]


async def test_an_empty_answer_is_empty() -> None:
    assert await collect(listen_to(Source())) == []


async def test_the_failure_of_a_replica_is_passed_on() -> None:
    for source in (Source(KeyError("x")), Source("a", KeyError("x"))):
        with pytest.raises(KeyError):
            await collect(listen_to(source))
        assert source.is_closed


@pytest.mark.parametrize("pieces", [[], ["a"]])
async def test_a_replica_that_falls_silent_is_given_up_and_avoided(silent: SilentReplicas, pieces: list[str]) -> None:
    source = Source(*pieces, None)

    async def send() -> AsyncGenerator[Any, None]:
        # As Serve's router does, which has a thread of its own.
        asyncio.get_running_loop().call_soon_threadsafe(note_sent, "one", time.monotonic())
        async with aclosing(source.answer()) as answer:
            async for piece in answer:
                yield piece

    answer = listen(send, 0.05, FOREVER_S)
    assert [await anext(answer) for _ in pieces] == pieces
    with pytest.raises(ReplicaSilent):
        await anext(answer)
    assert source.is_closed
    assert silent.is_silent("one", time.monotonic())


async def test_pulses_keep_an_answer_alive_before_its_first_piece() -> None:
    source = Source(*[PULSE] * 5, "a")
    assert await collect(listen_to(source, silence_s=0.5)) == ["a"]


async def test_a_request_that_waits_for_a_replica_is_no_silence() -> None:
    source = Source(None, "a")
    task = asyncio.create_task(collect(listen_to(source, silence_s=0.01)))
    await asyncio.sleep(0.6)  # Longer than the front looks away.
    assert not task.done()
    source.go.set()
    assert await task == ["a"]


async def test_a_request_that_no_replica_takes_is_given_up() -> None:
    source = Source(None)
    with pytest.raises(NoReplicaTook):
        await collect(listen_to(source, wait_s=0.05))
    assert source.is_closed


async def test_a_client_that_leaves_before_the_first_piece_ends_the_request() -> None:
    source = Source(None)
    task = asyncio.create_task(collect(listen_to(source)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.is_closed


def test_a_silent_replica_is_avoided_until_it_is_heard_of_or_for_a_time() -> None:
    silent = SilentReplicas()
    silent.add("one", 100.0)
    silent.add("two", 101.0)
    assert [silent.is_silent(name, 102.0) for name in ("one", "two", "three")] == [True, True, False]
    silent.discard("one")
    silent.discard("three")
    assert [silent.is_silent(name, 102.0) for name in ("one", "two")] == [False, True]
    assert not silent.is_silent("two", 101.0 + AVOIDED_S)


def test_what_is_sent_for_nobody_s_request_is_not_noted() -> None:
    note_sent("one", 1.0)
