"""Flex requests in Redis: batches of one line that take up room as long as somebody waits for them.

Who waits says so again and again, as a replica does with its leases: a front that is lost gives nothing back itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.batch import HIGHEST_PRIORITY, BatchEndpoint, FlexKind
from conserve.jobs.errors import TooManyWaitingError
from conserve.jobs.keys import Keys
from conserve.jobs.ledger import Holding, Ledger, Limits
from conserve.jobs.scripts import Scripts

OVER_FOR_EACH_WAITING: Final = 8
LEAST_OVER: Final = 64
"""So many requests that nobody waits for may not be deleted yet. It takes a second or two, longer without a keeper."""


class FlexLine(NamedTuple):
    """The line of a request: its file, its length in bytes, and what was found in it."""

    file_id: str
    length: int
    endpoint: str
    model: str
    prefix: str


class FlexRequests:
    """Every change is an atomic script that may be repeated; errors of Redis come through.

    Args:
        redis: A client that decodes to `str`.
        settings: ConServe's settings.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(settings.jobs.namespace)
        self._scripts = Scripts(redis)
        self._ledger = Ledger(redis, self._keys)

    async def create(
        self, batch_id: str, kind: FlexKind, line: FlexLine, *, tenant: str, tokens: int, limits: Limits
    ) -> None:
        """Records a request whose line was checked: it can be claimed at once.

        The disk of Redis is not waited for, as nothing is promised: who waits is told if the request gets lost.

        Args:
            batch_id: What it is called among the batches; it stands in no list of them.
            kind: Of its answer.
            line: Where it is.
            tenant: Whose it is.
            tokens: What it may take.
            limits: Of the tenant.

        Raises:
            TooManyWaitingError: as many as allowed are waiting, or wait to be deleted.
            QuotaExceededError: the tenant would have more than `limits`.
        """
        wait_s, most = self._settings.flex.wait_s, self._settings.flex.max_waiting
        most_over = max(LEAST_OVER, OVER_FOR_EACH_WAITING * most)
        held = Holding(requests=1, tokens=tokens, flex=1)
        if not await self._ledger.admit(batch_id, tenant, held, limits, index=None, most=most, most_over=most_over):
            raise TooManyWaitingError(
                f"{most} flex requests are waiting, or {most_over} that are over are to be deleted, which is the limit."
            )
        fields: dict[str, str | int] = {
            "input_file_id": line.file_id,
            "endpoint": BatchEndpoint(line.endpoint),
            "completion_window": f"{wait_s}s",
            "priority": HIGHEST_PRIORITY,
            "tenant": tenant,
            "tokens_guessed": tokens,
            "flex": kind,
            "total": 1,
            "model": line.model,
            "prefix": line.prefix,
        }
        args = [wait_s * 1000, f"1:0:{line.length}", *(part for pair in fields.items() for part in pair)]
        await self._scripts.run("create", self._keys.batch(batch_id), args)

    async def attend(self, batch_ids: Collection[str]) -> None:
        """Says that requests are still waited for, in one call."""
        if batch_ids:
            await self._ledger.attend(batch_ids)

    async def let_go(self, batch_ids: Collection[str]) -> None:
        """Nobody waits for these any more: what runs of them is cancelled, and then their keeper deletes them.

        They take up no room from now on, but for the limit of those that wait to be deleted.
        """
        if batch_ids:
            await self._scripts.run_each("let_go", (self._keys.batch(one) for one in batch_ids))
            await self._ledger.leave(batch_ids)

    async def let_go_unattended(self, unmarked: Collection[str]) -> list[str]:
        """Lets go of those whose front has not been heard of for a lease period; which they were.

        Args:
            unmarked: Requests that were not let go of, as far as is known. They are, if they take up no room any more:
                the word of a front may have come before the request that it was about.
        """
        lost = await self._ledger.unattended(self._settings.jobs.lease_ms, unmarked)
        await self.let_go(lost)
        return lost
