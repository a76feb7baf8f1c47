"""Slots for work that several tenants have, dealt out so that none of them keeps the others waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class FairSlots:
    """A free slot goes to the one that waits whose owner has the fewest; of several, to the first.

    Args:
        total: How many there are.
        most_each: Of one owner at most, whether others wait or not: work cannot be taken away when they come.
    """

    def __init__(self, total: int, most_each: int) -> None:
        self._free = total
        self._most_each = most_each
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, owner: str) -> AsyncGenerator[None, None]:
        """A slot for the block, once there is one."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, turn))
        self._deal()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += 1
                self._taken[owner] -= 1
            else:
                self._waiting.remove((owner, turn))
            self._deal()

    def _deal(self) -> None:
        while self._free:
            able = [one for one in self._waiting if self._taken[one[0]] < self._most_each and not one[1].done()]
            if not able:
                return
            chosen = min(able, key=lambda one: self._taken[one[0]])
            self._waiting.remove(chosen)
            self._free -= 1
            self._taken[chosen[0]] += 1
            chosen[1].set_result(None)
