"""Online clients: streamed chats one after the other, and what became of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import httpx

from loadtests.killing.questions import ENDPOINT, Questions, make_id

TIMEOUT_S: Final = 60.0
"""So long a chat may take as a whole."""
PAUSE_S: Final = 0.05
FAILED_PAUSE_S: Final = 0.5
FRONT_MARK: Final = "front:"
"""Before the name of a chat in what a front writes."""
"""After a chat that was not answered."""

Outcome = Literal["answered", "refused", "broken", "unanswered"]
"""`refused`: without any part of the answer; `broken`: after some of it; `unanswered`: not over after `TIMEOUT_S`."""


@dataclass(frozen=True)
class Chat:
    """One request. Times are monotonic seconds; `silence_s` is the longest in which nothing came of the answer."""

    name: str
    began_s: float
    ended_s: float
    outcome: Outcome
    reason: str = ""
    silence_s: float = 0.0


@dataclass
class ChatClients:
    """Some clients of the front.

    Args:
        base_url: Of the front.
        count: How many.
        questions: What they ask; each has its own `name`.
    """

    base_url: str
    count: int
    questions: Questions
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
            chat = await self._ask(http, f"chat-{client}", number)
            self.chats.append(chat)
            number += 1
            await asyncio.sleep(PAUSE_S if chat.outcome == "answered" else FAILED_PAUSE_S)

    async def _ask(self, http: httpx.AsyncClient, name: str, number: int) -> Chat:
        answer = _Answer(time.monotonic())
        outcome: Outcome | None = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await answer.read(http, {**self.questions.make_body(name, number), "stream": True})
        except httpx.TransportError as error:
            answer.reason = f"{type(error).__name__} {error}"
        except json.JSONDecodeError as error:
            answer.reason = f"an event that is no JSON: {error}"
        except TimeoutError:
            answer.reason, outcome = f"not over after {TIMEOUT_S:g} s", "unanswered"
        answer.hear()
        if answer.has_ended and not answer.reason and answer.text != self.questions.expect(name, number).text:
            answer.reason = "a wrong answer"
        if outcome is None:
            is_right = answer.has_ended and not answer.reason
            outcome = "answered" if is_right else "broken" if answer.text else "refused"
        reason = answer.reason or ("" if answer.has_ended else "ended without a word")
        return Chat(make_id(name, number), answer.began_s, answer.heard_s, outcome, reason, answer.silence_s)


class _Answer:
    """What has come of an answer."""

    def __init__(self, now_s: float) -> None:
        self.began_s = self.heard_s = now_s
        self.text = self.reason = ""
        self.has_ended = False
        self.silence_s = 0.0

    async def read(self, http: httpx.AsyncClient, body: Mapping[str, Any]) -> None:
        async with http.stream("POST", ENDPOINT, json=body) as response:
            if response.status_code != 200:
                self.reason = f"{response.status_code} {(await response.aread()).decode(errors='replace')[:200]}"
                return
            async for line in response.aiter_lines():
                self.hear()
                if line == "data: [DONE]":
                    self.has_ended = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    self.reason = str(event["error"]) if "error" in event else self.reason
                    self.text += _find_piece(event)

    def hear(self) -> None:
        now_s = time.monotonic()
        self.silence_s = max(self.silence_s, now_s - self.heard_s)
        self.heard_s = now_s


def _find_piece(event: Mapping[str, Any]) -> str:
    """The text of an event: of the light front, or as in OpenAI's API."""
    pieces = [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
    return str(event.get("content", "")) + "".join(pieces)


def find_held(log: Path, killed: Set[int]) -> set[str]:
    """Names of the chats that killed processes, replicas or fronts, have begun and not completed.

    What a replica has completed may still be in its process: it is out of it when the front has completed it, too.
    """
    lines = [line.split() for line in log.read_text(encoding="utf-8").splitlines()]
    passed_on = {name.removeprefix(FRONT_MARK) for what, name, _ in lines if what == "end" and FRONT_MARK in name}
    held: set[str] = set()
    for what, name, process in lines:
        if int(process) not in killed:
            continue
        if what == "begin":
            held.add(name)
        elif name.startswith(FRONT_MARK) or name in passed_on:
            held.discard(name)
    return {name.removeprefix(FRONT_MARK) for name in held}
