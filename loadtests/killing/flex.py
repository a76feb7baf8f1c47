"""Flex requests beside the batches of a run of kills, by clients who ask again."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Final

from loadtests.killing.client import (
    PATIENCE_S,
    RETRY_S,
    NotNowError,
    PatienceLostError,
    PatientClient,
    WrongAnswerError,
)
from loadtests.killing.ledger import Verdict

AT_A_TIME: Final = 4
"""Every second one is streamed."""
ANSWER_TIMEOUT_S: Final = 120.0
LEAVES: Final = 0.1
"""Share of clients who leave before they have an answer, to ask again."""
LONGEST_STAY_S: Final = 1.0


class FlexClients:
    """Ask one after the other, each in its own words: an answer is that of one request only.

    Args:
        clients: Of the tenants.
        verdict: Takes the answers in.
        generator: Draws who leaves.
    """

    def __init__(self, clients: Sequence[PatientClient], verdict: Verdict, generator: random.Random) -> None:
        self._clients = clients
        self._verdict = verdict
        self._generator = generator
        self._names = (f"f{number}" for number in itertools.count())
        self.tries = 0

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Asks until it is over; whoever has begun gets an answer.

        Raises:
            PatienceLostError: somebody has got none for too long.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(AT_A_TIME):
                client = self._clients[number // 2 % len(self._clients)]
                group.create_task(self._ask_on_end(client, number % 2 == 1, is_over))

    async def _ask_on_end(self, client: PatientClient, streamed: bool, is_over: Callable[[], bool]) -> None:
        while not is_over():
            await self._ask(client, next(self._names), streamed)

    async def _ask(self, client: PatientClient, name: str, streamed: bool) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        for number in itertools.count():
            self.tries += 1
            leaves = self._generator.random() < LEAVES
            timeout_s = self._generator.uniform(0.0, LONGEST_STAY_S) if leaves else ANSWER_TIMEOUT_S
            body = dict(self._verdict.questions.make_body(name, number)) | {"stream": streamed}
            try:
                self._verdict.check_flex(name, number, await client.ask_flex(body, timeout_s))
            except WrongAnswerError as error:
                self._verdict.check_flex(name, number, str(error))
            except NotNowError as error:
                if loop.time() > until_s:
                    raise PatienceLostError(
                        f"{name} has no flex answer for {PATIENCE_S:g} s; at last: {error}"
                    ) from error
                await asyncio.sleep(RETRY_S)
                continue
            return
