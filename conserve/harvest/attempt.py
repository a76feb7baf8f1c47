"""One attempt at a leased request: read from the input file, run by the engine, made into a line of a result file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from redis.exceptions import RedisError

from conserve.engine.contract import (
    AttemptTimeout,
    EngineDied,
    EngineFault,
    EngineGone,
    EngineStats,
    OfflineResult,
    OnChunk,
    TokenRecord,
)
from conserve.jobs.batch import Batch, FlexKind
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.files import FileStore
from conserve.jobs.results import FinishedRequest, format_error, format_output
from conserve.policy.resumption import Obstacle, find_obstacle
from conserve.policy.retry import FaultKind


class OfflineEngine(Protocol):
    """The part of `conserve.engine.engine.CoServeEngine` that harvesting needs."""

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        """Runs one request, goes on after the tokens in `record`, and adds new ones to it.

        Raises EngineFault when another attempt may succeed.
        """

    def stats(self) -> EngineStats:
        """What the engine is doing now."""

    def grant_floor(self, share: float) -> None:
        """Gives offline requests a share of the time beside online ones, whatever the objectives of those; 0: none."""


class ChunkSink(Protocol):
    """Where the chunks of streamed requests go, as `conserve.jobs.flex_stream.ChunkWriter`."""

    def begin(self, claimed: ClaimedRequest) -> OnChunk:
        """Begins an attempt; what it gives takes each chunk of it."""

    async def flush(self) -> None:
        """Writes them. Raises RedisError."""


class UnusableLineError(ValueError):
    """The line is not what validation has seen."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt ended without a result.

    No `kind`: the request was not tried, or not `had_room` beside online work, and nothing is held against it. With
    `engine_ended` there is no engine any more.
    """

    kind: FaultKind | None
    reason: str
    engine_ended: bool = False
    had_room: bool = True

    @property
    def needs_pause(self) -> bool:
        """Whether it may come again at once where more is begun; not so with a line that is wrong, or without room."""
        return self.kind is not FaultKind.UNUSABLE and self.had_room


class AttemptRunner:
    """Makes attempts.

    Args:
        engine: Runs the requests.
        store: Has the input files.
        timeout_s: Of one attempt in the engine.
        chunks: Hears of what streamed requests produce; None: nobody does.
    """

    def __init__(
        self, engine: OfflineEngine, store: FileStore, timeout_s: float, chunks: ChunkSink | None = None
    ) -> None:
        self._engine = engine
        self._store = store
        self._timeout_s = timeout_s
        self._chunks = chunks

    async def run(self, claimed: ClaimedRequest, batch: Batch, record: TokenRecord | None = None) -> FinishedRequest:
        """Makes one. What it raises, `find_fault` explains.

        Args:
            claimed: The request.
            batch: Its batch.
            record: What it has produced before, to which new tokens are added; closed where it cannot be continued.
        """
        raw = await self._store.read_range(batch.input_file_id, claimed.offset, claimed.length)
        custom_id, body = _read(raw)
        place = (claimed.batch_id, claimed.line, custom_id)
        streamed = batch.flex is FlexKind.STREAMED
        if record is not None and (obstacle := Obstacle.STREAM if streamed else find_obstacle(batch.endpoint, body)):
            record.begin_anew(obstacle)
            record.close()
        kept = record if record is not None and record.open else None
        result = await self._ask(claimed, batch, body, kept)
        request_id = str(result.body.get("id") or f"req-{claimed.batch_id}-{claimed.line}")
        try:
            content = format_output(*place, result.status_code, request_id, result.body)
        except ValueError as error:
            content = format_error(*place, "unserializable_response", f"The answer is no JSON: {error}")
            return FinishedRequest(claimed.batch_id, claimed.line, claimed.fence, "error", content)
        return FinishedRequest(
            batch_id=claimed.batch_id,
            line=claimed.line,
            fence=claimed.fence,
            kind="output" if result.status_code == 200 else "error",
            content=content,
            prompt_tokens=result.prompt_tokens,
            completion_tokens=result.output_tokens,
        )

    async def _ask(
        self, claimed: ClaimedRequest, batch: Batch, body: Mapping[str, Any], record: TokenRecord | None
    ) -> OfflineResult:
        chunks = self._chunks
        if batch.flex is not FlexKind.STREAMED or chunks is None:
            return await self._engine.offline(batch.endpoint, body, self._timeout_s, record)
        result = await self._engine.offline(batch.endpoint, body, self._timeout_s, on_chunk=chunks.begin(claimed))
        with suppress(RedisError, OSError):
            await chunks.flush()  # Before the result, which makes up for what does not get there.
        return result


def find_fault(error: Exception) -> Fault:
    """Why an attempt that raised this has failed."""
    match error:
        case EngineGone():
            return Fault(None, str(error), engine_ended=True)
        case EngineDied():
            return Fault(FaultKind.ENGINE_DIED, str(error), engine_ended=True)
        case AttemptTimeout():
            return Fault(FaultKind.TIMEOUT, str(error))
        case EngineFault():
            return Fault(FaultKind.ENGINE_FAULT, str(error))
        case UnusableLineError():
            return Fault(FaultKind.UNUSABLE, str(error))
        case OSError() | EOFError():
            return Fault(None, f"its input could not be read: {error}")
        case RedisError():
            return Fault(None, f"redis is away: {error}")
        case _:
            return Fault(FaultKind.REPLICA_FAULT, f"{type(error).__name__}: {error}")


def _read(raw: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(raw)
        custom_id, body = str(request["custom_id"]), request["body"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise UnusableLineError(f"the line has changed since it was validated: {error}") from error
    if not isinstance(body, dict):
        raise UnusableLineError("the line has changed since it was validated: its body is no object")
    return custom_id, body
