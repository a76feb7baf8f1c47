"""Where a replica's allotment comes from: the controller's while it is fresh, otherwise the replica's own rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from redis.exceptions import RedisError

from conserve.config import HarvestSettings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import demands_of, rule_of, uses_of
from conserve.jobs.queue import JobQueue
from conserve.policy.allotment import Allotment, JobShare, allot, pass_over_stopped
from conserve.policy.fair_shares import FairShares
from conserve.policy.replica_capacity import ReplicaCapacity
from conserve.policy.turns import ShareTurns
from conserve.policy.window import fit_requests

MOST_SIZES: Final = 1_000
"""Batches whose requests' sizes are remembered: some run that are in no allotment any more."""


class AllotmentSource:
    """Keeps the newest allotment of a replica, and whose turn it is in it.

    It expires by this process's own clock, `allotment_ttl_ms` after it was last read: no two clocks are compared.

    Args:
        board, queue: What is read.
        settings: Thresholds and times.
        replica_id: Whose allotment it is.
        clock: Seconds, monotonic.
        weights: Of tenants, for the time without a controller.
    """

    def __init__(
        self,
        board: CapacityBoard,
        queue: JobQueue,
        settings: HarvestSettings,
        replica_id: str,
        clock: Callable[[], float] = time.monotonic,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._board = board
        self._queue = queue
        self._rule = rule_of(settings)
        self._ttl_s = settings.allotment_ttl_ms / 1000
        self._replica_id = replica_id
        self._clock = clock
        self._shares = FairShares(weights)
        # A replica that has just started gives the controller as much time as one that has heard from it.
        self._heard_at_s = clock()
        self._allotment = Allotment(window=0)
        self._turns = ShareTurns(())
        self._has_dropped = False
        self._request_tokens: dict[str, float] = {}
        self.alone = False

    @property
    def allotment(self) -> Allotment:
        """What may be harvested now."""
        return self._allotment

    @property
    def turn(self) -> JobShare | None:
        """The batch to claim from next, and how many of its requests at most; None: there is nothing to claim."""
        return self._turns.current

    async def refresh(self, capacity: ReplicaCapacity) -> None:
        """Reads the controller's word; without one for too long, decides by the same rule from what is known here.

        Raises:
            RedisError: Redis is away. The allotment is up to date all the same.
        """
        try:
            heard = await self._board.read_allotment(self._replica_id)
        except (RedisError, OSError):
            self._decide_alone_when_expired(capacity)
            raise
        if heard is not None:
            self._heard_at_s, self.alone = self._clock(), False
            self._follow(heard)
            return
        self._decide_alone_when_expired(capacity)
        if self.alone:
            # The controller is gone but Redis is there: the order is known better than from memory.
            batches = await self._queue.active_summaries()
            self._shares.settle(pass_over_stopped(demands_of(batches), [capacity]), uses_of(batches))
            self._follow(self._decide(capacity))

    def limit_by_tokens(self, batch_id: str, most: int, running: Mapping[str, int]) -> int:
        """How many of so many requests of a batch fit into the tokens that may be in flight.

        Args:
            batch_id: Of which batch.
            most: How many are wanted.
            running: Requests in flight, by batch.
        """
        fitting = fit_requests(self._allotment.window_tokens, self._request_tokens, running, batch_id)
        return most if fitting is None else min(most, fitting)

    def mark_taken(self, batch_id: str, count: int) -> None:
        """So many requests of a batch were claimed in its turn."""
        self._turns.take(batch_id, count)

    def mark_empty(self, batch_id: str) -> None:
        """Takes a batch that has nothing to claim out of the allotment, until the next word."""
        self._turns.drop(batch_id)
        self._has_dropped = True
        self._allotment = self._allotment.without_late(batch_id)

    def _follow(self, allotment: Allotment) -> None:
        # The same turns go on where they were, unless a batch was passed over that may have work again.
        if allotment.jobs != self._allotment.jobs or self._has_dropped or self.alone:
            self._turns = ShareTurns(allotment.jobs)
            self._has_dropped = False
        self._allotment = allotment
        if len(self._request_tokens) > MOST_SIZES:
            self._request_tokens.clear()
        self._request_tokens |= allotment.request_tokens

    def _decide_alone_when_expired(self, capacity: ReplicaCapacity) -> None:
        if self._clock() - self._heard_at_s < self._ttl_s:
            return
        self.alone = True
        decided = self._decide(capacity)
        # Who is late is not known any more.
        self._allotment = Allotment(decided.window, self._allotment.jobs, window_tokens=decided.window_tokens)

    def _decide(self, capacity: ReplicaCapacity) -> Allotment:
        decided = allot([capacity], self._shares, self._rule, {self._replica_id: self._allotment.window})
        return decided[self._replica_id]
