"""Online clients: streamed chats one after the other, and what became of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import httpx

from loadtests.killing.questions import ENDPOINT
from loadtests.killing.testing.engine import make_answer

TIMEOUT_S: Final = 60.0
PAUSE_S: Final = 0.05

Outcome = Literal["answered", "refused", "broken"]
"""`refused`: without any part of the answer; `broken`: after some of it."""


@dataclass(frozen=True)
class Chat:
    """One request. Times are monotonic seconds."""

    name: str
    began_s: float
    ended_s: float
    outcome: Outcome
    reason: str = ""


@dataclass
class ChatClients:
    """Some clients of the front.

    Args:
        base_url: Of the front.
        count: How many.
    """

    base_url: str
    count: int
    chats: list[Chat] = field(default_factory=list)

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Asks until it is over."""
        async with (
            httpx.AsyncClient(base_url=self.base_url, timeout=TIMEOUT_S) as http,
            asyncio.TaskGroup() as group,
        ):
            for number in range(self.count):
                group.create_task(self._chat_on_end(http, number, is_over))

    async def _chat_on_end(self, http: httpx.AsyncClient, client: int, is_over: Callable[[], bool]) -> None:
        number = 0
        while not is_over():
            self.chats.append(await _ask(http, f"chat-{client}-{number}"))
            number += 1
            await asyncio.sleep(PAUSE_S)


async def _ask(http: httpx.AsyncClient, name: str) -> Chat:
    began_s = time.monotonic()
    text, reason, has_ended = "", "", False
    try:
        async with http.stream("POST", ENDPOINT, json={"messages": [{"role": "user", "content": name}]}) as answer:
            if answer.status_code != 200:
                reason = f"{answer.status_code} {(await answer.aread()).decode(errors='replace')[:200]}"
            else:
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        has_ended = True
                    elif line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        reason = str(event["error"]) if "error" in event else reason
                        text += event.get("content", "")
    except httpx.TransportError as error:
        reason = f"{type(error).__name__} {error}"
    if has_ended and not reason and text != make_answer(name):
        reason = "a wrong answer"
    outcome: Outcome = "answered" if has_ended and not reason else "broken" if text else "refused"
    return Chat(name, began_s, time.monotonic(), outcome, reason)


def find_held(log: Path, killed: Set[int]) -> set[str]:
    """Names of the chats that killed processes, replicas or fronts, have begun and not completed."""
    held: set[str] = set()
    for line in log.read_text(encoding="utf-8").splitlines():
        what, name, process = line.split()
        if int(process) not in killed:
            continue
        if what == "begin":
            held.add(name)
        else:
            held.discard(name)
    return {name.removeprefix("front:") for name in held}
