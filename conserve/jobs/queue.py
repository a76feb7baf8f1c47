"""The requests of batches: put into the queue, leased to claimers under fences, committed once.

Delivery is at least once, the effect exactly once: a request may run twice when a lease runs out, but only the newest
claim of it can commit, and only one commit counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from conserve.jobs.batch import ClaimedRequest, RenewResult, ResultRef, StoredResult
from conserve.jobs.errors import ValidatorReplacedError
from conserve.jobs.registry import BatchRegistry
from conserve.jobs.validation import RequestRange

_SHORTEST_VALIDATOR_MS = 2_000
_REAPED_IN_ONE_CALL = 500
_REASON_LENGTH = 300
_COUNTERS = {"output": "completed", "error": "failed"}


class JobQueue(BatchRegistry):
    """Batches and their requests in Redis.

    Every method may be repeated after a lost answer. Errors of Redis come through as `redis.exceptions.RedisError`.
    """

    async def claim(self, batch_id: str, count: int, lease_ms: int, epoch: str) -> list[ClaimedRequest]:
        """Leases up to `count` requests of a batch in progress; fewer or none when there are no more.

        `epoch` is a random string of the claimer, new at each of its starts: with it a fence stays unique even after
        a failover of Redis to a state with an older fence counter.
        """
        keys = self._keys.batch(batch_id)
        found = await self._scripts.run("claim", keys, [count, lease_ms, epoch])
        claimed = []
        for entry, fence in zip(found[::2], found[1::2], strict=True):
            line, offset, length, attempts = (int(part) for part in entry.split(":"))
            claimed.append(ClaimedRequest(batch_id, line, offset, length, fence, attempts + 1))
        return claimed

    async def renew(self, batch_id: str, fences: Mapping[int, str], lease_ms: int) -> RenewResult:
        """Prolongs leases (line -> fence) to `lease_ms` from now."""
        args: list[str | int] = [lease_ms, *_pairs(fences)]
        ended, *lost = await self._scripts.run("renew", self._keys.batch(batch_id), args)
        return RenewResult(lost=frozenset(int(line) for line in lost), cancelled=bool(ended))

    async def release(self, batch_id: str, fences: Mapping[int, str], *, count_attempt: bool, reason: str) -> int:
        """Gives leased requests (line -> fence) back to the front of the queue; returns how many were the caller's.

        With `count_attempt` this attempt counts: after `max_attempts` the request fails with `max_attempts_exceeded`
        and `reason` in its message. Without it (a replica that makes room) it does not.
        """
        flag = 1 if count_attempt else 0
        args: list[str | int] = [flag, self._settings.max_attempts, reason[:_REASON_LENGTH], *_pairs(fences)]
        return int(await self._scripts.run("release", self._keys.batch(batch_id), args))

    async def commit(self, batch_id: str, results: Sequence[ResultRef]) -> set[int]:
        """Commits finished requests, all in one script; the segments they point to must be stored already.

        Returns the lines whose committed result is now the one given. A line is refused when it was claimed again
        since, when another result of it is committed, or when the results of the batch are frozen. The last missing
        commit moves the batch to `finalizing`.
        """
        args: list[str | int] = []
        for result in results:
            packed = f"{result.kind}|{result.segment}|{result.offset}|{result.length}"
            args += [result.line, result.fence, packed, _COUNTERS[result.kind]]
            args += [result.prompt_tokens, result.completion_tokens]
        return {int(line) for line in await self._scripts.run("commit", self._keys.batch(batch_id), args)}

    async def reap(self, batch_id: str) -> int:
        """Puts requests whose lease ran out back into the queue, attempt counted; returns how many."""
        reason = "its lease ran out (the replica stopped or hung)."
        args: list[str | int] = [self._settings.max_attempts, _REAPED_IN_ONE_CALL, reason]
        total = 0
        for _ in range(1 + self._settings.max_batch_requests // _REAPED_IN_ONE_CALL):
            taken = int(await self._scripts.run("reap", self._keys.batch(batch_id), args))
            total += taken
            if taken < _REAPED_IN_ONE_CALL:
                break
        return total

    async def begin_enqueue(self, batch_id: str, token: str) -> bool:
        """Makes the caller (by a random token) the validator of a batch, its queue empty; False: another one is at it.

        The token holds for two lease periods (2 seconds at least) from the last call with it.

        Raises:
            ValidatorReplacedError: the batch is not to be validated (any more).
        """
        answer = int(await self._scripts.run("enqueue_begin", self._keys.batch(batch_id), [token, self._validator_ms]))
        if answer < 0:
            raise ValidatorReplacedError(f"Batch {batch_id} is not to be validated any more.")
        return answer == 1

    async def enqueue(self, batch_id: str, token: str, queued: int, ranges: Sequence[RequestRange]) -> int:
        """Appends requests to a queue that holds `queued` of them; returns how many it holds then.

        Raises:
            ValidatorReplacedError: the token ran out, or the queue is not as the caller left it.
        """
        entries = [f"{part.line}:{part.offset}:{part.length}" for part in ranges]
        args: list[str | int] = [token, self._validator_ms, queued, *entries]
        answer = int(await self._scripts.run("enqueue_chunk", self._keys.batch(batch_id), args))
        if answer < 0:
            raise ValidatorReplacedError(f"Batch {batch_id} is validated by another process (or this one was slow).")
        return answer

    @property
    def _validator_ms(self) -> int:
        return max(2 * self._settings.lease_ms, _SHORTEST_VALIDATOR_MS)

    async def results(self, batch_id: str) -> dict[int, StoredResult]:
        """All committed results of a batch by line; meant for a batch whose results are frozen."""
        found: dict[int, StoredResult] = {}
        async for line, packed in self._redis.hscan_iter(self._keys.batch(batch_id).results, count=1_000):
            found[int(line)] = _unpack(packed)
        return found

    async def settled(self, batch_id: str, start: int = 0, count: int | None = None) -> list[int]:
        """Lines of a batch in the order in which their results were committed, from the `start`-th (from 0) on."""
        end = -1 if count is None else start + count - 1
        return [int(line) for line in await self._redis.lrange(self._keys.batch(batch_id).settled, start, end)]

    async def settled_count(self, batch_id: str) -> int:
        """How many results of a batch that has ended were committed; 0 of one that has not."""
        return int(await self._redis.hget(self._keys.batch(batch_id).batch, "settled") or 0)

    async def results_of(self, batch_id: str, lines: Sequence[int]) -> dict[int, StoredResult]:
        """The committed results of some lines; without those that have none (any more)."""
        found = await self._redis.hmget(self._keys.batch(batch_id).results, list(lines)) if lines else []
        return {line: _unpack(packed) for line, packed in zip(lines, found, strict=True) if packed is not None}


def _pairs(fences: Mapping[int, str]) -> list[str | int]:
    return [part for pair in fences.items() for part in pair]


def _unpack(packed: str) -> StoredResult:
    head, segment, third, fourth = packed.split("|", 3)
    kind: Literal["output", "error"] = "output" if head == "output" else "error"
    if not segment:
        return StoredResult(kind, None, code=third, message=fourth)
    return StoredResult(kind, segment, int(third), int(fourth))
