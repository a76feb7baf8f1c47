"""Server-sent events, in which the HTTP API's streams come, read back."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any, Final

from conserve.jobs.errors import ApiError
from deployments.replica_loss import LOST_CODE

_DONE: Final = "[DONE]"
_STATUSES: Final = {"invalid_request_error": 400, "rate_limit_error": 429}


async def read_events(parts: AsyncIterable[str | bytes | memoryview]) -> AsyncGenerator[dict[str, Any], None]:
    """The objects of a stream, up to its end. Comments, which keep a stream alive, are left out.

    Args:
        parts: The stream, cut anywhere between characters.

    Raises:
        ApiError: what an error event says, or 502, the stream ends before its end.
    """
    pending = ""
    async for part in parts:
        pending += part if isinstance(part, str) else bytes(part).decode()
        *events, pending = pending.split("\n\n")
        for event in events:
            if not event.startswith("data: "):
                continue
            text = event.removeprefix("data: ")
            if text == _DONE:
                return
            value: dict[str, Any] = json.loads(text)
            if (error := value.get("error")) is not None:
                raise _to_error(error)
            yield value
    raise ApiError(502, "The stream broke off. Try again.", error_type="server_error", code="stream_broken")


def _to_error(error: dict[str, Any]) -> ApiError:
    """The error of an event, with the status that it would have had before the stream began."""
    code, kind = error.get("code"), str(error.get("type"))
    if isinstance(code, int):  # vLLM's are.
        status, code = code, None
    else:
        status = 503 if code == LOST_CODE else _STATUSES.get(kind, 500)
    return ApiError(status, str(error.get("message")), error_type=kind, code=code, param=error.get("param"))
