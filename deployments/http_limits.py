"""What the HTTP front takes in of a request: headers, a body that is not too large, not packed, and not too slow.

Stands before the routes, so nothing of a request that is refused was parsed. Uploads have limits of their own
(`jobs.max_file_bytes`, `jobs.max_uploads`, the silence of a client), and headers the proxy's before these.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conserve.config import HttpSettings
from conserve.jobs.errors import ApiError

log = structlog.get_logger(__name__)

UPLOADS: Final = frozenset({("POST", "/v1/files")})
"""Routes whose bodies are files."""
CLOSE: Final = {"Connection": "close"}
"""What is left of the body is not read, so nothing can follow it."""


class RequestLimits:
    """Middleware of the front.

    Args:
        app: What it stands before.
        settings: The limits.
        clock: Seconds, monotonic.
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._settings = settings
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._check_head(scope)
        if refused is not None:
            response = JSONResponse(refused.body(), status_code=refused.status, headers=refused.headers() | CLOSE)
            await response(scope, receive, send)
            return
        if (scope["method"], scope["path"]) not in UPLOADS:
            receive = _Body(receive, self._settings, self._clock).receive
        await self._app(scope, receive, send)

    def _check_head(self, scope: Scope) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        most = self._settings.max_header_bytes
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size + sum([len(name) + len(value) for name, value in headers]) > most:
            return ApiError(431, f"The address and the headers of a request may have {most} bytes together.")
        for name, value in headers:
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                return ApiError(
                    415,
                    "Bodies must not be compressed: leave the header 'Content-Encoding' out.",
                    param="Content-Encoding",
                    code="unsupported_content_encoding",
                )
            if name == b"content-length" and (scope["method"], scope["path"]) not in UPLOADS:
                try:
                    length = int(value)
                except ValueError:
                    return ApiError(400, "'Content-Length' must be a number of bytes.", param="Content-Length")
                if length > self._settings.max_body_bytes:
                    return _too_large(self._settings.max_body_bytes)
        return None


class _Body:
    """The body of one request, as it comes."""

    def __init__(self, receive: Receive, settings: HttpSettings, clock: Callable[[], float]) -> None:
        self._receive = receive
        self._settings = settings
        self._clock = clock
        self._bytes = 0
        self._left_s = settings.body_timeout_s
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: 413, there is more than is taken; 408, it does not come.
        """
        if self._is_complete:  # What follows says that the client has left, whenever it does.
            return await self._receive()
        began_s = self._clock()
        try:
            async with asyncio.timeout(max(0.0, self._left_s)):
                message = await self._receive()
        except TimeoutError:
            text = f"The body did not come within {self._settings.body_timeout_s:g} s of waiting for it."
            raise HTTPException(408, text, CLOSE) from None
        self._left_s -= self._clock() - began_s
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
            if self._bytes > self._settings.max_body_bytes:
                raise HTTPException(413, _too_large(self._settings.max_body_bytes).message, CLOSE)
        else:
            self._is_complete = True
        return message


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body of a request may have {most} bytes (`http.max_body_bytes`).", code="body_too_large")
