"""What Redis holds, by what it is for."""

from __future__ import annotations

from typing import Any, Final

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.jobs.connection import connect
from conserve.jobs.link import OUTAGES
from loadtests.soak.sampling import MIB, QueueSample

KEYS_AT_A_TIME: Final = 1_000


class QueueSampler:
    """Looks into Redis.

    Args:
        settings: Of the application, with the URL of its Redis.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis: Any = None

    async def sample(self) -> QueueSample | None:
        """A look; None while Redis does not answer."""
        try:
            if self._redis is None:
                self._redis = await connect(self._settings)
            return await self._look()
        except OUTAGES:
            return None

    async def close(self) -> None:
        """Ends its connection."""
        if self._redis is not None:
            await self._redis.aclose()

    async def _look(self) -> QueueSample:
        jobs = self._settings.jobs
        kept_prefixes = tuple(f"{jobs.namespace}:{name}:" for name in ("batch", "file", "{index}"))
        batch_prefix = f"{jobs.namespace}:batch:"
        keys = [str(key) async for key in self._redis.scan_iter(match=f"{jobs.namespace}:*", count=KEYS_AT_A_TIME)]
        kept = [key for key in keys if key.startswith(kept_prefixes)]
        kept_bytes = 0
        for place in range(0, len(kept), KEYS_AT_A_TIME):
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in kept[place : place + KEYS_AT_A_TIME]:
                    pipe.memory_usage(key)
                kept_bytes += sum(size or 0 for size in await pipe.execute())
        memory = await self._redis.info("memory")
        board = CapacityBoard(self._redis, jobs.namespace, self._settings.harvest.allotment_ttl_ms)
        reports = await board.read_reports()
        return QueueSample(
            keys=len(keys),
            kept_keys=len(kept),
            memory_mib=int(memory["used_memory"]) / MIB,
            kept_memory_mib=kept_bytes / MIB,
            batches=sum(key.startswith(batch_prefix) and key.endswith("}") for key in kept),
            kv_usage=sum(report.kv_usage for report in reports) / len(reports) if reports else 0.0,
        )
