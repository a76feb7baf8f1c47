"""Keeps what offline requests produce where another replica finds it, for all of them together, a few times a second.

Redis away: nothing is lost as long as the replica lives; what is new meanwhile is written when Redis is back.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from conserve.config import JobsSettings
from conserve.engine.contract import TokenRecord
from conserve.harvest.held_work import HeldWork
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.journal import MOST_TOKENS, JournalEntry, can_pack
from conserve.jobs.queue import JobQueue
from conserve.policy.resumption import Obstacle

log = structlog.get_logger(__name__)

MOST_PIECE, PIECES = 8, 8
"""The engine tells of new tokens that many at a time, or so many times within `jobs.journal_tokens` if that is more
often: each time costs it something."""
REST_S = 0.02
"""Between two writes, at least."""


@dataclass
class JournalCounts:
    """Totals since the replica started.

    Attributes:
        journaled_tokens: Written to the journal.
        resumed_requests: Claimed here and continued after tokens of an earlier attempt.
        reused_tokens: Of those attempts, and not generated again.
        restarts: Requests that had begun elsewhere, as far as is known, and began anew; by reason.
    """

    journaled_tokens: int = 0
    resumed_requests: int = 0
    reused_tokens: int = 0
    restarts: dict[str, int] = field(default_factory=dict)

    def add_restart(self, reason: str) -> None:
        """Counts a request that began anew."""
        self.restarts[reason] = self.restarts.get(reason, 0) + 1


class Journaling:
    """The journal of one replica.

    Args:
        queue: Has the journals.
        held: What is held on this replica, with records.
        settings: How often to write.
        revision: Of the model served here; tokens of another one are not continued. None: it is not known, and
            nothing is journaled.
    """

    def __init__(self, queue: JobQueue, held: HeldWork, settings: JobsSettings, revision: str | None) -> None:
        self._queue = queue
        self._held = held
        self._revision = revision
        self._tokens = settings.journal_tokens if revision is not None else 0
        self._period_s = settings.journal_period_s or None
        self._piece = max(1, min(self._tokens // PIECES, MOST_PIECE))
        self._due = asyncio.Event()
        self._writing = asyncio.Lock()
        self.counts = JournalCounts()

    def open(self, claimed: ClaimedRequest) -> TokenRecord | None:
        """The record of a request that has just been claimed, with what its earlier attempts have produced.

        None where nothing is journaled.
        """
        journal = claimed.journal
        if not self._tokens:
            if journal is not None:
                self.counts.add_restart(Obstacle.OFF)
            return None
        record = TokenRecord(piece=self._piece)
        record.on_tokens = lambda: self._look(record)
        if journal is not None and journal.revision == self._revision:
            record.token_ids = list(journal.token_ids)
            record.journaled = len(record.token_ids)
        elif journal is not None:
            record.begin_anew(Obstacle.REVISION)
        return record

    def count(self, claimed: ClaimedRequest, record: TokenRecord | None) -> None:
        """Counts an attempt that has ended, however it did."""
        if record is None:
            return
        if record.reused:
            self.counts.resumed_requests += 1
            self.counts.reused_tokens += record.reused
        elif record.restarted and (claimed.journal is not None or claimed.attempt > 1):
            self.counts.add_restart(record.restarted)

    async def step(self) -> None:
        """Waits until a request has enough that is new, or the period is over, and writes.

        Raises:
            RedisError: Redis is away; what was not written is written later.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._period_s):
                await self._due.wait()
        await self.write()

    async def write(self) -> None:
        """Writes what is new, in one call for each batch.

        Raises:
            RedisError: As above.
        """
        if self._revision is None:
            return
        async with self._writing:
            self._due.clear()
            try:
                for batch_id in self._held.batch_ids():
                    await self._write_batch(batch_id, self._revision)
            except (RedisError, OSError):
                self._due.set()  # Whether more comes or not.
                raise

    async def flush(self) -> None:
        """As `write`, before requests are given back; without Redis what is new will be generated again."""
        try:
            await self.write()
        except (RedisError, OSError) as error:
            log.warning("tokens not journaled", reason=str(error))

    async def _write_batch(self, batch_id: str, revision: str) -> None:
        records: dict[int, TokenRecord] = {}
        entries: list[JournalEntry] = []
        for claimed, record in self._held.records(batch_id):
            if not record.new_count:
                continue
            new = record.token_ids[record.journaled : MOST_TOKENS]
            if not new or not can_pack(new):
                record.close()  # What comes after this would be generated again.
                continue
            records[claimed.line] = record
            entries.append(JournalEntry(claimed.line, claimed.fence, record.journaled, new))
        if not entries:
            return
        counts = await self._queue.journal(batch_id, revision, entries)
        for entry in entries:
            record, count = records[entry.line], counts.get(entry.line)
            if count is None:
                record.close()  # The renewal of its lease will say so, too.
            else:
                record.journaled = min(count, len(record.token_ids))
                self.counts.journaled_tokens += max(0, record.journaled - entry.start)

    def _look(self, record: TokenRecord) -> None:
        # One piece less: the next one may be almost complete in the engine.
        if record.new_count >= max(1, self._tokens - self._piece):
            self._due.set()
