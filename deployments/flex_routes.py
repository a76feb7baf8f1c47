"""How chat and completion requests with `service_tier: flex` are answered over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar

import structlog
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from conserve.jobs.api_keys import Scope
from conserve.jobs.errors import ApiError
from conserve.jobs.flex import TIER, FlexService, guess_tokens
from deployments.tenancy import admit

_log = structlog.get_logger(__name__)

KEEP_ALIVE_S: Final = 15.0
CLIENT_GONE: Final = 499
"""Nobody is there to read it; the number is nginx's."""
_LOOK_FOR_CLIENT_S: Final = 0.5
_KEEP_ALIVE: Final = b": waiting\n\n"
_DONE: Final = b"data: [DONE]\n\n"

Result = TypeVar("Result")


def is_flex(body: Any) -> bool:
    """Whether a parsed request asks for the flex tier."""
    return bool(getattr(body, "service_tier", None) == TIER)


async def answer_flex(service: FlexService, endpoint: str, request: Request) -> Response:
    """Answers a request on harvested capacity; when its client goes, it is let go.

    Raises:
        ApiError: what is wrong with it, 401, 403, 408, 429 or 503. A stream that has begun says so in its last event.
    """
    body = await request.json()
    tenant = admit(service.tenants, request, Scope.OFFLINE, guess_tokens(body, len(await request.body()))).tenant
    if not body.get("stream"):
        answer = await _while_connected(service.answer(tenant, endpoint, body), request)
        return Response(status_code=CLIENT_GONE) if answer is None else JSONResponse(answer)
    chunks = service.stream(tenant, endpoint, body)
    # Up to the first chunk, so that what is refused gets a status of its own.
    first = await _while_connected(_next(chunks), request)
    if first is None:
        return Response(status_code=CLIENT_GONE)
    return StreamingResponse(_to_events(first, chunks), media_type="text/event-stream")


async def _while_connected(work: Coroutine[Any, Any, Result], request: Request) -> Result | None:
    """What comes of the work, which is cancelled when the client goes; then None."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=_LOOK_FOR_CLIENT_S))[0]:
            if await request.is_disconnected():
                return None
        return task.result()
    finally:
        await _stop(task)


async def _to_events(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        chunk: dict[str, Any] | None = first
        try:
            while chunk is not None:
                yield _to_event(chunk)
                coming = asyncio.create_task(_next(rest))
                try:
                    while not (await asyncio.wait([coming], timeout=KEEP_ALIVE_S))[0]:
                        yield _KEEP_ALIVE
                    chunk = coming.result()
                finally:
                    await _stop(coming)
            yield _DONE
        except ApiError as error:
            _log.warning("a flex stream broke off", code=error.code, reason=error.message)
            yield _to_event(error.body())


async def _next(chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
    return await anext(chunks, None)


async def _stop(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _to_event(value: Mapping[str, Any]) -> bytes:
    # ASCII only: half surrogate pairs could not be sent otherwise.
    return b"data: " + json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n\n"
