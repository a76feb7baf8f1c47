"""The requests of batches: put into the queue, leased to claimers under fences, committed once.

Delivery is at least once, the effect exactly once: a request may run twice when a lease runs out, but only the newest
claim of it can commit, and only one commit counts.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Literal

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.attempts import AttemptEnder, unpack
from conserve.jobs.batch import RequestState
from conserve.jobs.claims import ClaimedRequest, RenewResult, ResultRef, StoredResult
from conserve.jobs.errors import ValidatorReplacedError
from conserve.jobs.flex_stream import ChunkWriter
from conserve.jobs.journal import JournalEntry, JournalWriter, read_journal
from conserve.jobs.registry import BatchRegistry
from conserve.jobs.validation import RequestRange
from conserve.policy.retry import FailedAttempt, FaultKind

_SHORTEST_VALIDATOR_MS = 2_000
_COUNTERS = {"output": "completed", "error": "failed"}


class JobQueue(BatchRegistry):
    """Batches and their requests in Redis.

    Every method may be repeated after a lost answer. Errors of Redis come through as `redis.exceptions.RedisError`.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        super().__init__(redis, settings)
        self._attempts = AttemptEnder(self._scripts, settings.jobs)
        self._journals = JournalWriter(self._scripts)

    async def claim(
        self, batch_id: str, count: int, lease_ms: int, epoch: str, token: str | None = None
    ) -> list[ClaimedRequest]:
        """Leases up to `count` requests of a batch in progress; fewer or none when there are no more.

        First those whose delay is over. One that is to run alone comes alone, whatever `count` is.

        Args:
            batch_id: Of which batch.
            count: How many at most.
            lease_ms: Until when unless renewed.
            epoch: A random string of the claimer, new at each of its starts: with it a fence stays unique even after a
                failover of Redis to a state with an older fence counter.
            token: Of this call; a claimer that does not know the outcome of its last claim on this batch asks again
                with the same token and gets the same leases. A new one when it is not given.
        """
        keys = self._keys.batch(batch_id)
        found = await self._scripts.run("claim", keys, [count, lease_ms, epoch, token or secrets.token_hex(4)])
        claimed = []
        for entry, fence, journal in zip(found[::3], found[1::3], found[2::3], strict=True):
            line, offset, length, attempts, *mark = entry.split(":")
            place = (int(line), int(offset), int(length))
            before = read_journal(journal)
            claimed.append(ClaimedRequest(batch_id, *place, fence, int(attempts) + 1, bool(mark), before))
        return claimed

    async def begin(self, request: ClaimedRequest) -> bool:
        """Says that a request to be run alone begins now; False when its lease is not the caller's any more."""
        args: list[str | int] = [request.line, request.fence]
        return bool(await self._scripts.run("begin", self._keys.batch(request.batch_id), args))

    async def renew(self, batch_id: str, fences: Mapping[int, str], lease_ms: int) -> RenewResult:
        """Prolongs leases (line -> fence) to `lease_ms` from now."""
        args: list[str | int] = [lease_ms, *_pairs(fences)]
        ended, *lost = await self._scripts.run("renew", self._keys.batch(batch_id), args)
        return RenewResult(lost=frozenset(int(line) for line in lost), cancelled=bool(ended))

    async def journal(self, batch_id: str, revision: str, entries: Sequence[JournalEntry]) -> dict[int, int]:
        """Adds tokens that requests have produced, so that their next claim gets them; see `JournalWriter.write`."""
        return await self._journals.write(self._keys.batch(batch_id), revision, entries)

    async def release(self, batch_id: str, fences: Mapping[int, str]) -> int:
        """Gives leased requests (line -> fence) back to the front of the queue; returns how many were the caller's.

        It does not count as an attempt: for a replica that makes room, or that could not even begin.
        """
        return int(await self._scripts.run("release", self._keys.batch(batch_id), _pairs(fences)))

    async def retry(self, request: ClaimedRequest, kind: FaultKind, reason: str) -> bool:
        """Ends an attempt that failed; False when the lease is not the caller's any more.

        By the rule of the settings the request can be claimed again after a delay, or it is recorded as an error, with
        the reasons of all its attempts in its message.
        """
        keys = self._keys.batch(request.batch_id)
        return await self._attempts.fail(keys, request.line, request.fence, kind, reason)

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
        """Takes away the leases that have run out; for each it is as if its attempt had failed. Returns how many."""
        reason = "its replica was not heard of any more"
        return await self._attempts.fail_lapsed(self._keys.batch(batch_id), self._settings.max_batch_requests, reason)

    async def failures(self, batch_id: str, line: int) -> list[FailedAttempt]:
        """The failed attempts of a request, oldest first; known until a week after the end of its batch."""
        return unpack(await self._redis.hget(self._keys.batch(batch_id).attempts, line) or "")

    async def states(self, batch_id: str, lines: Sequence[int]) -> dict[int, RequestState]:
        """Where requests of a batch are. Lines that it does not have are not in the answer."""
        found = await self._scripts.run("states", self._keys.batch(batch_id), lines)
        return {line: RequestState(state) for line, state in zip(lines, found, strict=True) if state is not None}

    def make_chunk_writer(self) -> ChunkWriter:
        """What a claimer writes the chunks of streamed flex requests with."""
        return ChunkWriter(self._redis, self._settings.namespace)

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
