"""Which cluster's controller is at work: one at a time, where several share a namespace and its files by mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.jobs.keys import Keys
from conserve.jobs.scripts import Scripts

_log = structlog.get_logger(__name__)

LEASE_MS = 5_000
"""For so long a controller that ended without a word keeps those of other clusters waiting, by the server's clock."""

PERIOD_S = 1.0


class Leadership:
    """A lease on the controller's work.

    Restarts within a cluster do not wait for it, as they have the same name. What two controllers do at once for a
    moment does no harm; that they go on like that does: each undoes the allotments of the other.

    Args:
        redis: where the lease is.
        namespace: of the deployment.
        cluster: name of the cluster, which no other has.
        lease_ms: for how long it holds without a word.
        period_s: between looks at it.

    Attributes:
        other: the cluster whose controller is at work instead; None: there is none.
    """

    def __init__(
        self, redis: Redis, namespace: str, cluster: str, lease_ms: int = LEASE_MS, period_s: float = PERIOD_S
    ) -> None:
        self._scripts = Scripts(redis)
        self._key = Keys(namespace).controller
        self._cluster = cluster
        self._lease_ms = lease_ms
        self._period_s = period_s
        self.other: str | None = None

    async def take(self) -> bool:
        """Takes the lease, or prolongs it; False while another cluster has it.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        holder = str(await self._scripts.run("lead", [self._key], [self._cluster, self._lease_ms]))
        other = None if holder == self._cluster else holder
        if other is not None and other != self.other:
            _log.warning(
                "the controller of another cluster is at work in this namespace; this one waits",
                other_cluster=other,
                fix="give each deployment a jobs.namespace of its own",
            )
        elif other is None and self.other is not None:
            _log.info("this controller is at work now", other_cluster=self.other)
        self.other = other
        return other is None

    async def work(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does the work whenever this cluster has the lease, until cancelled; stops it when another one has.

        While Redis is away, who has it cannot be known and the work, which waits then by itself, goes on.

        Raises:
            Exception: what the work raises.
            redis.exceptions.RedisError: Redis is away at the beginning.
        """
        while True:
            if await self.take():
                await self._work_while_leading(work)
            await asyncio.sleep(self._period_s)

    async def _work_while_leading(self, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(work())
        try:
            while not task.done():
                await asyncio.wait([task], timeout=self._period_s)
                with suppress(RedisError, OSError):
                    if not task.done() and not await self.take():
                        return
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
