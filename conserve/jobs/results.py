"""Finished requests: their lines for the output and error files, and the writer that stores and commits them.

Line format: https://platform.openai.com/docs/guides/batch#5-retrieve-the-results.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from redis.exceptions import RedisError

from conserve.jobs.claims import ResultRef
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.result_id import result_id

_log = structlog.get_logger(__name__)

_COMMITTED_IN_ONE_CALL = 500


def format_output(
    batch_id: str, line: int, custom_id: str, status_code: int, request_id: str, body: Mapping[str, Any]
) -> bytes:
    """Makes the line of a request that the model answered or refused (`status_code` 4xx: for the error file)."""
    response = {"status_code": status_code, "request_id": request_id, "body": body}
    return _format(batch_id, line, custom_id, response, None)


def format_error(batch_id: str, line: int, custom_id: str, code: str, message: str) -> bytes:
    """Makes the line of a request that got no answer at all, for the error file."""
    return _format(batch_id, line, custom_id, None, {"code": code, "message": message})


def _format(
    batch_id: str, line: int, custom_id: str, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None
) -> bytes:
    entry = {"id": result_id(batch_id, line), "custom_id": custom_id, "response": response, "error": error}
    # ASCII only: a body may hold half surrogate pairs, which UTF-8 cannot express and JSON escapes can.
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A request that ended: `content` is its line as it goes to the output or error file, line end included."""

    batch_id: str
    line: int
    fence: str
    kind: Literal["output", "error"]
    content: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class FlushReport:
    """What became of the requests of one flush, by batch. What `failed` is kept and tried at the next flush.

    `refused` lines were claimed by somebody else meanwhile, or their batch takes no more results.
    """

    accepted: dict[str, set[int]] = field(default_factory=dict)
    refused: dict[str, set[int]] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)


class ResultWriter:
    """Gathers finished requests and makes them durable: first one segment for each batch, then the fenced commit.

    `writer_id` names the segments and must be new at each start of a process: letters and digits, random.
    """

    def __init__(self, queue: JobQueue, store: FileStore, writer_id: str) -> None:
        self._queue = queue
        self._store = store
        self._writer_id = writer_id
        self._segments = 0
        self._gathered: dict[str, list[FinishedRequest]] = {}
        self._written: dict[str, list[ResultRef]] = {}
        self._flushing = asyncio.Lock()

    def add(self, finished: FinishedRequest) -> None:
        """Takes a finished request; it counts only once a flush reports it accepted. Keep renewing its lease."""
        self._gathered.setdefault(finished.batch_id, []).append(finished)

    @property
    def pending_count(self) -> int:
        """Finished requests that are not committed yet; a caller that sees it grow should stop claiming."""
        return sum(map(len, self._gathered.values())) + sum(map(len, self._written.values()))

    async def flush(self) -> FlushReport:
        """Stores and commits everything gathered so far. A failure with one batch does not stop the others."""
        report = FlushReport()
        async with self._flushing:
            for batch_id in list(self._gathered.keys() | self._written.keys()):
                try:
                    await self._write(batch_id)
                    await self._commit(batch_id, report)
                except (OSError, RedisError) as error:
                    _log.warning("results not committed yet", batch_id=batch_id, reason=str(error))
                    report.failed[batch_id] = error
        return report

    async def _write(self, batch_id: str) -> None:
        finished = self._gathered.pop(batch_id, [])
        if not finished:
            return
        self._segments += 1
        segment = f"{self._writer_id}-{self._segments}"
        try:
            await self._store.write_segment(batch_id, segment, b"".join(one.content for one in finished))
        except BaseException:
            self._gathered.setdefault(batch_id, [])[:0] = finished
            raise
        written = self._written.setdefault(batch_id, [])
        offset = 0
        for one in finished:
            length = len(one.content)
            tokens = (one.prompt_tokens, one.completion_tokens)
            written.append(ResultRef(one.line, one.fence, one.kind, segment, offset, length, *tokens))
            offset += length

    async def _commit(self, batch_id: str, report: FlushReport) -> None:
        written = self._written.get(batch_id, [])
        while written:
            part = written[:_COMMITTED_IN_ONE_CALL]
            accepted = await self._queue.commit(batch_id, part)
            del written[: len(part)]
            report.accepted.setdefault(batch_id, set()).update(accepted)
            if refused := {one.line for one in part} - accepted:
                report.refused.setdefault(batch_id, set()).update(refused)
        self._written.pop(batch_id, None)
