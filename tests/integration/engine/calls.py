"""Requests for an engine, and what it makes of them."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from conserve.engine.direct import DirectEngine
from conserve.engine.page import Counters
from tests.integration.engine.tiny_llama import TOKEN_IDS

GROUP = 8
"""Requests with the same prefix."""


@dataclass(frozen=True)
class Call:
    """One request."""

    prompt: tuple[int, ...]
    max_tokens: int
    online: bool = True


def draw_calls(seed: int, count: int, prefix: int, tail: tuple[int, int], output: tuple[int, int]) -> list[Call]:
    """Requests in groups with a shared prefix, every third one online; lengths in tokens."""
    generator = random.Random(seed)
    prefixes = [generator.choices(TOKEN_IDS, k=prefix) for _ in range(-(-count // GROUP))]
    return [
        Call(
            prompt=(*prefixes[number // GROUP], *generator.choices(TOKEN_IDS, k=generator.randint(*tail))),
            max_tokens=generator.randint(*output),
            online=number % 3 == 2,
        )
        for number in range(count)
    ]


SHORT = draw_calls(1, count=64, prefix=48, tail=(5, 40), output=(16, 40))
"""No eight of these need more than three quarters of the KV blocks of `make_settings`."""
LONG = draw_calls(2, count=64, prefix=64, tail=(190, 260), output=(32, 64))
"""Any eight of these need more KV blocks than there are."""
TWINS = [replace(call, prompt=((call.prompt[0] + 1) % len(TOKEN_IDS), *call.prompt[1:])) for call in SHORT[:16]]
"""Like the first short ones, but for the first token."""

Outputs = dict[Call, list[int]]
"""The tokens that came out of requests."""


async def run(engine: DirectEngine, call: Call, report: Callable[[int], None] = lambda _: None) -> list[int]:
    """The tokens of one request; `report` is told how many have just come."""
    found = []
    async for token_ids in engine.generate_tokens(call.prompt, call.max_tokens, online=call.online):
        found += token_ids
        report(len(token_ids))
    return found


async def run_together(
    engine: DirectEngine, calls: Sequence[Call], bursts: int = 1, on_burst: Callable[[int], None] = lambda _: None
) -> list[list[int]]:
    """The tokens of each request, in order. The offline ones begin at once, the online ones come in bursts.

    How much has come out of the offline ones says when a burst comes, so it meets them running on any machine; so there
    must be some.
    `on_burst` is called with the number of each burst, from 0, before its requests.
    """
    starts = [asyncio.Event() for _ in range(bursts)]
    due = sum(call.max_tokens for call in calls if not call.online) / (bursts + 1)
    seen = 0

    def report(tokens: int) -> None:
        nonlocal seen
        seen += tokens
        for number, start in enumerate(starts):
            if seen >= due * (number + 1) and not start.is_set():
                on_burst(number)
                start.set()

    async def run_online(call: Call, start: asyncio.Event) -> list[int]:
        await start.wait()
        return await run(engine, call)

    turns = itertools.cycle(starts)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(run_online(call, next(turns)) if call.online else run(engine, call, report))
            for call in calls
        ]
    return [task.result() for task in tasks]


def subtract(after: Counters, before: Counters) -> Counters:
    """What was counted in between."""
    return Counters(*(getattr(after, field.name) - getattr(before, field.name) for field in fields(Counters)))
