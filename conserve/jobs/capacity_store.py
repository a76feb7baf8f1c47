"""What the replicas of a model could harvest lately, and what finished requests took, as it is kept in Redis.

One hash for each model holds an entry for each five minutes of the latest eight days (2,304 at most). The controller
alone writes it, whole values only, so that a repeated write changes nothing; in one transaction with them goes up to
where the counters of each replica are in it. So a controller that takes over goes on where the last one stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from conserve.jobs.clock import read_server_ms
from conserve.jobs.keys import Keys
from conserve.policy.batch_work import SeenUsage
from conserve.policy.capacity import DAY_S, HISTORY_DAYS, CapacityHistory
from conserve.policy.harvest_rate import Proof

_log = structlog.get_logger(__name__)

_KEPT_S: Final = int((HISTORY_DAYS + 2) * DAY_S)
"""Of a model that is not served any more the hash goes by itself."""
_PROOF, _AT = ".proof", ".at_ms"
_USAGE_MEMORY: Final = 10_000.0
"""Requests that what was seen before counts for."""


@dataclass
class Watched:
    """Up to where the history goes.

    Attributes:
        at_ms: When it was written last, Unix milliseconds; None if it never was.
        tokens: Offline tokens of each replica since its start that are in it, by replica id.
        proof: What the latency model's word has proved to be worth.
    """

    at_ms: int | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    proof: Proof = field(default_factory=Proof)


class CapacityStore:
    """What was seen of models and endpoints. Errors of Redis come through.

    Args:
        redis: A client with `decode_responses=True`.
        namespace: Prefix of every key.
    """

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis: Any = redis
        self._keys = Keys(namespace)

    async def read_now_ms(self) -> int:
        """Unix milliseconds by the clock of the server, which is the one that intervals go by."""
        return await read_server_ms(self._redis)

    async def read_history(self, model: str) -> CapacityHistory:
        """What is known of the capacity of a model."""
        intervals = {}
        for number, packed in (await self._redis.hgetall(self._keys.capacity(model))).items():
            tokens, seconds = packed.split(" ")
            intervals[int(number)] = (float(tokens), float(seconds))
        return CapacityHistory(intervals)

    async def read_watched(self, model: str) -> Watched:
        """Up to where that goes."""
        found = dict(await self._redis.hgetall(self._keys.watched(model)))
        at_ms, proof = found.pop(_AT, None), found.pop(_PROOF, None)
        return Watched(
            at_ms=None if at_ms is None else int(at_ms),
            tokens={replica_id: int(tokens) for replica_id, tokens in found.items()},
            proof=Proof() if proof is None else Proof(*json.loads(proof)),
        )

    async def write(
        self,
        model: str,
        changed: Mapping[int, tuple[float, float]],
        forgotten: Iterable[int],
        watched: Watched,
    ) -> None:
        """Writes what has changed.

        Args:
            model: Of which one.
            changed: Intervals with their tokens and seconds, whole.
            forgotten: Intervals that are not kept any more.
            watched: Up to where all that goes, whole.
        """
        capacity, position = self._keys.capacity(model), self._keys.watched(model)
        fields: dict[str, str | int] = {**watched.tokens, _AT: watched.at_ms or 0}
        fields[_PROOF] = json.dumps(dataclasses.astuple(watched.proof))
        async with self._redis.pipeline(transaction=True) as pipe:
            if changed:
                pipe.hset(
                    capacity,
                    mapping={number: f"{tokens:.1f} {seconds:.3f}" for number, (tokens, seconds) in changed.items()},
                )
                pipe.expire(capacity, _KEPT_S)
            if old := list(forgotten):
                pipe.hdel(capacity, *old)
            pipe.delete(position)
            pipe.hset(position, mapping=fields)
            pipe.expire(position, _KEPT_S)
            await pipe.execute()

    async def read_usage(self, model: str, endpoint: str) -> SeenUsage:
        """What finished requests of an endpoint took; nothing if none is known."""
        packed = await self._redis.hget(self._keys.usage, f"{model} {endpoint}")
        if packed is None:
            return SeenUsage()
        try:
            return SeenUsage(*(float(value) for value in json.loads(packed)))
        except (ValueError, TypeError) as error:
            _log.warning("usage of an endpoint not understood", model=model, endpoint=endpoint, reason=str(error))
            return SeenUsage()

    async def add_usage(self, model: str, endpoint: str, usage: SeenUsage) -> None:
        """Adds requests that have finished. Repeated after a crash it counts them twice, which is little to a mean."""
        known = (await self.read_usage(model, endpoint)).add(usage, _USAGE_MEMORY)
        await self._redis.hset(self._keys.usage, f"{model} {endpoint}", json.dumps(dataclasses.astuple(known)))
