"""A load that changes all the time: clients that come and go and leave in mid-answer, batches that are cancelled."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import httpx

from loadtests.killing.client import PatientClient
from loadtests.killing.questions import ENDPOINT, Questions, make_input

TIDE_S: Final = 120.0
"""From one high water to the next."""
LEAVES: Final = 0.15
"""Share of clients who leave in the middle of an answer."""
LONGEST_STAY_S: Final = 1.0
CANCELLED: Final = 0.25
"""Share of batches that are cancelled."""
LONGEST_WAIT_S: Final = 3.0
"""Until a batch is cancelled that will be."""
ANSWER_LIMIT_S: Final = 60.0
POLL_S: Final = 0.5
PAUSE_S: Final = 0.05
BATCHES_AT_A_TIME: Final = 2


def find_level(at_s: float, clients: int) -> int:
    """How many clients are active at a time: from one to all of them and back, once in `TIDE_S`."""
    return 1 + round((clients - 1) * (1 - math.cos(2 * math.pi * at_s / TIDE_S)) / 2)


class ChangingLoad:
    """Runs until cancelled.

    Args:
        http: Asks the front for chats.
        client: Calls the batch routes.
        questions: What is asked.
        clients: Online ones at high water.
        requests: Of a batch, fewest and most.
        generator: Draws everything.

    Attributes:
        counts: What was asked, answered, left, submitted, cancelled, and what failed.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        client: PatientClient,
        questions: Questions,
        clients: int,
        requests: tuple[int, int],
        generator: random.Random,
    ) -> None:
        self._http = http
        self._client = client
        self._questions = questions
        self._clients = clients
        self._requests = requests
        self._generator = generator
        self._began_s = time.monotonic()
        self.counts: Counter[str] = Counter()

    @property
    def level(self) -> int:
        """Active online clients now."""
        return find_level(time.monotonic() - self._began_s, self._clients)

    async def run(self) -> None:
        """Asks and submits for ever."""
        self._began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._chat_on_end(number))
            for number in range(BATCHES_AT_A_TIME):
                group.create_task(self._submit_on_end(f"s{number}"))

    async def _chat_on_end(self, client: int) -> None:
        number = 0
        while True:
            if client >= self.level:
                await asyncio.sleep(POLL_S)
                continue
            body = {**self._questions.make_body(f"chat-{client}", number), "stream": True}
            number += 1
            leaves = self._generator.random() < LEAVES
            limit_s = self._generator.uniform(0.0, LONGEST_STAY_S) if leaves else ANSWER_LIMIT_S
            self.counts[await _chat(self._http, body, limit_s, leaves=leaves)] += 1
            await asyncio.sleep(PAUSE_S)

    async def _submit_on_end(self, client: str) -> None:
        number = 0
        while True:
            name, size = f"{client}.{number}", self._generator.randint(*self._requests)
            number += 1
            batch = await self._client.submit(make_input(self._questions, name, size), {"name": name})
            self.counts["batches"] += 1
            if self._generator.random() < CANCELLED:
                await asyncio.sleep(self._generator.uniform(0.0, LONGEST_WAIT_S))
                await self._client.cancel(batch.id)
                self.counts["batches cancelled"] += 1
            while not (batch := await self._client.get(batch.id)).status.ended:  # noqa: ASYNC110 - the API is polled
                await asyncio.sleep(POLL_S)
            self.counts["batch requests"] += len(await self._client.read_lines(batch))


async def _chat(http: httpx.AsyncClient, body: Mapping[str, Any], limit_s: float, *, leaves: bool) -> str:
    """Asks once; what has become of it."""
    try:
        async with asyncio.timeout(limit_s), http.stream("POST", ENDPOINT, json=body) as response:
            ended = False
            async for line in response.aiter_lines():
                ended |= line == "data: [DONE]"
            return "chats" if ended and response.status_code == 200 else "chats failed"
    except TimeoutError:
        return "clients left" if leaves else "chats failed"
    except httpx.TransportError:
        return "chats failed"
