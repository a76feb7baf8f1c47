"""The console over HTTP: its page with what belongs to it, and the stream of its events."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib import resources
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from conserve.jobs.errors import ApiError
from deployments.api_errors import describe_errors
from deployments.console.feed import ConsoleFeed
from deployments.tenancy import find_peer, is_local

MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE: Final = "console.html"
HEADERS: Final = {
    # Nothing but what comes from here, nothing within the page's text, no frame around it.
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # Asked for again, and answered with 304.
}


class EventStream(StreamingResponse):
    """Gives its place back when the page has gone, wherever the stream was at that moment."""

    def __init__(self, events: AsyncGenerator[str, None], **more: Any) -> None:
        super().__init__(events, **more)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, as ASGI wants it."""
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


def build_console_router(get_feed: Callable[[], ConsoleFeed]) -> APIRouter:
    """Makes the routes. `get_feed` is called for each stream, so the feed may be made after the routes."""
    router = APIRouter(tags=["console"])
    files = _read_files()

    @router.get("/console", include_in_schema=False)
    async def get_page(request: Request) -> Response:
        return _answer(request, PAGE, files[PAGE])

    @router.get("/console/{name}", include_in_schema=False)
    async def get_part(request: Request, name: str) -> Response:
        if name not in files or name == PAGE:
            raise ApiError(404, "The console has no such file.", code="not_found")
        return _answer(request, name, files[name])

    @router.get(
        "/conserve/v1/events",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Events `hello`, `replicas`, `batches` and `away`, each with an object of JSON.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **describe_errors(429),
        },
    )
    async def stream_events(request: Request) -> StreamingResponse:
        """What the console shows, as server-sent events."""
        events = await get_feed().open(request.headers.get("authorization"), is_local=is_local(find_peer(request)))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return EventStream(events, media_type="text/event-stream", headers=headers)

    return router


def _read_files() -> dict[str, bytes]:
    folder = resources.files("deployments.console") / "page"
    return {one.name: one.read_bytes() for one in folder.iterdir() if _suffix(one.name) in MEDIA_TYPES}


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]


def _answer(request: Request, name: str, content: bytes) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=MEDIA_TYPES[_suffix(name)], headers=headers)
