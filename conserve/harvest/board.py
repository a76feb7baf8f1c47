"""Where capacity reports and allotments hang: one small expiring entry per replica, written and read in bulk.

All keys share one hash tag, so that a Redis cluster reads them in one call. Entries expire by server time; a reader
never compares clocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from pydantic import ValidationError
from redis.asyncio import Redis

from conserve.harvest.messages import AllotmentMessage, CapacityReport
from conserve.policy.allotment import Allotment

log = structlog.get_logger(__name__)

EXTRA_TTL_MS = 60_000
"""Replicas take long to start: what is wanted for deadlines stands while a controller comes back."""


class CapacityBoard:
    """Reports and allotments of one deployment.

    Args:
        redis: a client with `decode_responses=True`.
        namespace: prefix of every key.
        ttl_ms: entries older than this are gone.
    """

    def __init__(self, redis: Redis, namespace: str, ttl_ms: int) -> None:
        self._redis = redis
        self._ttl_ms = ttl_ms
        self._prefix = f"{namespace}:{{capacity}}"
        self._replicas_key = f"{self._prefix}:replicas"

    async def publish_report(self, report: CapacityReport) -> None:
        """Puts up what a replica says about itself."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._report_key(report.replica_id), report.model_dump_json(), px=self._ttl_ms)
            pipe.sadd(self._replicas_key, report.replica_id)
            await pipe.execute()

    async def read_reports(self) -> list[CapacityReport]:
        """The reports that have not expired, by replica id. Forgets replicas whose report has."""
        replica_ids = sorted(str(replica_id) for replica_id in await self._redis.smembers(self._replicas_key))
        if not replica_ids:
            return []
        entries = await self._redis.mget([self._report_key(replica_id) for replica_id in replica_ids])
        gone = [replica_id for replica_id, entry in zip(replica_ids, entries, strict=True) if entry is None]
        if gone:
            await self._redis.srem(self._replicas_key, *gone)
        reports = []
        for replica_id, entry in zip(replica_ids, entries, strict=True):
            if entry is None:
                continue
            try:
                reports.append(CapacityReport.model_validate_json(entry))
            except ValidationError as error:
                log.warning("capacity report not understood", replica_id=replica_id, error=str(error))
        return reports

    async def remove_report(self, replica_id: str) -> None:
        """Takes a replica that leaves off the board."""
        await self._redis.delete(self._report_key(replica_id), self._allotment_key(replica_id))
        await self._redis.srem(self._replicas_key, replica_id)

    async def publish_allotments(self, allotments: Mapping[str, Allotment]) -> None:
        """Puts up the allotments of all replicas, by replica id."""
        if not allotments:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for replica_id, allotment in allotments.items():
                message = AllotmentMessage.of(allotment).model_dump_json()
                pipe.set(self._allotment_key(replica_id), message, px=self._ttl_ms)
            await pipe.execute()

    async def read_allotment(self, replica_id: str) -> Allotment | None:
        """The allotment of a replica, or None when there is none or it has expired."""
        entry = await self._redis.get(self._allotment_key(replica_id))
        if entry is None:
            return None
        try:
            return AllotmentMessage.model_validate_json(entry).to_allotment()
        except ValidationError as error:
            log.warning("allotment not understood", replica_id=replica_id, error=str(error))
            return None

    async def publish_extra_replicas(self, model: str, count: int) -> None:
        """Says how many replicas of a model are wanted beyond those for online load."""
        await self._redis.set(self._extra_key(model), count, px=EXTRA_TTL_MS)

    async def read_extra_replicas(self, model: str) -> int:
        """How many are wanted; 0 where nobody has said so lately."""
        return int(await self._redis.get(self._extra_key(model)) or 0)

    def _extra_key(self, model: str) -> str:
        return f"{self._prefix}:extra:{model}"

    def _report_key(self, replica_id: str) -> str:
        return f"{self._prefix}:report:{replica_id}"

    def _allotment_key(self, replica_id: str) -> str:
        return f"{self._prefix}:allotment:{replica_id}"
