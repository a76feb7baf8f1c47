"""Clients who submit batch after batch, and read and check what comes of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import httpx

from conserve.jobs.batch import Batch, BatchStatus
from loadtests.killing.client import PatienceLostError, PatientClient
from loadtests.killing.ledger import Verdict
from loadtests.killing.questions import make_input

POLL_S: Final = 0.3
SEEN: Final = 2_000
"""So many looks at batches are remembered."""
FAILURES: Final = (PatienceLostError, httpx.HTTPStatusError)
END_LIMIT_S: Final = 180.0
"""So long a batch may take once no fault comes any more."""


class BatchClients:
    """Submit batches until it is over.

    Args:
        client: Calls the application.
        verdict: Takes the batches in that have ended.
        generator: Draws how long they are.
        count: How many there are at a time.
        requests: Of a batch, fewest and most.

    Attributes:
        accepted: Batches whose creation was answered.
        unanswered: Calls that got no answer for very long, or a refusal, and batches that did not end.
        withdrawn: Batches whose creation was refused after they had been written, and that were cancelled for that.
    """

    def __init__(
        self,
        client: PatientClient,
        verdict: Verdict,
        generator: random.Random,
        count: int,
        requests: tuple[int, int],
    ) -> None:
        self._client = client
        self._verdict = verdict
        self._generator = generator
        self._count = count
        self._requests = requests
        self._sizes: dict[str, int] = {}
        self._seen: deque[tuple[float, str, int]] = deque(maxlen=SEEN)
        self._checked: set[str] = set()
        self._told: set[str] = set()  # Names of batches whose creation was answered, at last.
        self.accepted: list[str] = []
        self.unanswered: list[str] = []
        self.withdrawn: list[str] = []

    def has_advanced(self, since_s: float) -> bool:
        """Whether a batch had more requests done at one look than at another, both of them since a moment."""
        first: dict[str, int] = {}
        return any(
            done > first.setdefault(batch_id, done) for asked_s, batch_id, done in self._seen if asked_s >= since_s
        )

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Submits until it is over, and waits for the ends of what it has submitted."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._submit_on_end(f"b{number}", is_over))

    async def find_missing(self) -> list[str]:
        """Batches whose creation was answered and that are gone; and checks those whose creation was not answered.

        Where the disk did not confirm a batch in time, it is cancelled, and its client is told to try again.
        """
        batches = {batch.id: batch for batch in await self._client.list_batches()}
        for batch in batches.values():
            if batch.id not in self._checked and (name := (batch.metadata or {}).get("name")) in self._sizes:
                try:
                    await self._see_to_end(batch, str(name), lambda: True)
                except FAILURES as error:
                    self.unanswered.append(f"{name}: {error}")
        return sorted(set(self.accepted) - set(batches))

    async def _submit_on_end(self, client: str, is_over: Callable[[], bool]) -> None:
        number = 0
        while not is_over():
            name = f"{client}.{number}"
            number += 1
            self._sizes[name] = self._generator.randint(*self._requests)
            content = make_input(self._verdict.questions, name, self._sizes[name])
            try:
                batch = await self._client.submit(content, {"name": name})
                self.accepted.append(batch.id)
                self._told.add(name)
                await self._see_to_end(batch, name, is_over)
            except FAILURES as error:
                self.unanswered.append(f"{name}: {error}")

    async def _see_to_end(self, batch: Batch, name: str, is_over: Callable[[], bool]) -> None:
        over_s: float | None = None
        while not (batch := await self._look(batch.id)).status.ended:
            if is_over():
                over_s = over_s or time.monotonic()
                if time.monotonic() - over_s > END_LIMIT_S:
                    self.unanswered.append(f"{batch.id} is {batch.status} after {END_LIMIT_S:g} s")
                    return
            await asyncio.sleep(POLL_S)
        self._checked.add(batch.id)
        if batch.status is BatchStatus.CANCELLED and batch.id not in self.accepted and name in self._told:
            self.withdrawn.append(batch.id)
            return
        self._verdict.check(batch, name, self._sizes[name], await self._client.read_lines(batch))

    async def _look(self, batch_id: str) -> Batch:
        asked_s = time.monotonic()
        batch = await self._client.get(batch_id)
        self._seen.append((asked_s, batch_id, batch.request_counts.completed))
        return batch
