"""The results of a batch as they come: each line once, in the order in which they were committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import takewhile

from conserve.jobs.batch import Batch
from conserve.jobs.claims import StoredResult
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.final_results import FinalResults
from conserve.jobs.input_lines import InputLines
from conserve.jobs.queue import JobQueue
from conserve.jobs.results import format_error
from conserve.jobs.segments import SegmentReader

LONGEST_FOLLOW_S = 3_600.0
"""A stream ends after so long without a result; who wants more opens another one where it ended."""
KEEP_ALIVE_S = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
_LINES_AT_ONCE = 500
_PIECE_BYTES = 1 << 20


class ResultFeed:
    """Streams of result lines, as they stand in the output and error files.

    Committed results come first, in the order of their commits; then, once the batch has ended, what never ran. So the
    number of lines that a client has is the place where its next stream goes on, whatever happened meanwhile, but for a
    failover of Redis to an older state. The order is kept for a week after the end of the batch.
    """

    def __init__(self, queue: JobQueue, store: FileStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._store = store
        self._clock = clock

    async def stream(self, batch_id: str, after: int, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Yields an empty piece once the stream is open, then pieces of whole lines; blank ones to keep it alive.

        Args:
            batch_id: A batch that is there.
            after: How many lines to leave out.
            follow: Whether to wait for more until the batch has ended, in place of ending with what is there.

        Raises:
            ApiError: 410, what the batch has left behind is not there any more.
            redis.exceptions.RedisError: Redis is away.
            OSError: The storage is away.
        """
        position = after
        opened = False
        pause_s = _FIRST_PAUSE_S
        ends_s, blank_s = self._clock() + LONGEST_FOLLOW_S, self._clock() + KEEP_ALIVE_S
        inputs: InputLines | None = None
        while (batch := await self._queue.get(batch_id)) is not None:
            if batch.status.ended:
                final = await self._find_final(batch, position)
                if not opened:
                    yield b""
                while piece := await asyncio.to_thread(final.read, _PIECE_BYTES):
                    yield piece
                return
            if not opened:
                opened = True
                yield b""
            inputs = inputs or InputLines(self._store, batch.input_file_id)
            try:
                piece, lines = await self._read_committed(batch, position, inputs)
            except FileNotFoundError:
                again = await self._queue.get(batch_id)
                if again is not None and again.status.ended:  # Its segments are gone, and its files are there.
                    continue
                raise
            now_s = self._clock()
            if lines:
                position += lines
                pause_s, ends_s, blank_s = _FIRST_PAUSE_S, now_s + LONGEST_FOLLOW_S, now_s + KEEP_ALIVE_S
                yield piece
                continue
            if not follow or now_s >= ends_s:
                return
            if now_s >= blank_s:
                blank_s = now_s + KEEP_ALIVE_S
                yield b"\n"
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _read_committed(self, batch: Batch, position: int, inputs: InputLines) -> tuple[bytes, int]:
        """Lines from a position on and how many they are; none when there are no more at the moment."""
        lines = await self._queue.settled(batch.id, position, _LINES_AT_ONCE)
        found = await self._queue.results_of(batch.id, lines)
        results = [(line, found[line]) for line in takewhile(found.__contains__, lines)]
        return await asyncio.to_thread(self._load, batch.id, results, inputs) if results else (b"", 0)

    def _load(
        self, batch_id: str, results: Sequence[tuple[int, StoredResult]], inputs: InputLines
    ) -> tuple[bytes, int]:
        piece, lines = bytearray(), 0
        with SegmentReader(self._store, batch_id) as segments:
            for line, result in results:
                if result.segment is not None:
                    piece += segments.read(result.segment, result.offset, result.length)
                else:
                    piece += format_error(batch_id, line, inputs.custom_id(line), result.code, result.message)
                lines += 1
                if len(piece) >= _PIECE_BYTES:
                    break
        return bytes(piece), lines

    async def _find_final(self, batch: Batch, position: int) -> FinalResults:
        settled = await self._queue.settled(batch.id)
        if position and len(settled) < await self._queue.settled_count(batch.id):
            raise _gone(f"The order of the results of batch {batch.id} is not kept any more: read its files.", "after")
        file_ids = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id is not None]
        try:
            return await asyncio.to_thread(FinalResults, self._store, batch.id, file_ids, settled, position)
        except FileNotFoundError:
            raise _gone(f"A file of batch {batch.id} was deleted or has expired.", "batch_id") from None


def _gone(message: str, param: str) -> ApiError:
    return ApiError(410, message, param=param, code="results_gone")
