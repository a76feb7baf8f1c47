"""Sends a request to an ASGI application, as a server would that has read it, and bounds how long its answer takes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from fastapi import FastAPI

ANSWER_LIMIT_S: Final = 60.0
"""To the end of an answer that is no stream, on a machine that does something else as well."""
LEAVE_LIMIT_S: Final = 60.0
"""From when the client has gone to when nothing goes on any more."""
STREAM_PATIENCE_S: Final = 0.05
"""For how long a stream is read that may never end; then its client goes."""
_STREAMS: Final = ("text/event-stream", "application/jsonl")


@dataclass(frozen=True)
class Request:
    """What a server has read from a client.

    Attributes:
        method, target: As in the first line of a request; the target is in ASCII.
        headers: By lower-case names; a name may come several times.
        body: All of it.
        piece_bytes: The body comes in pieces of this length.
    """

    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    piece_bytes: int = 1 << 16

    def __str__(self) -> str:
        headers = ", ".join(f"{name!r}: {value!r}" for name, value in self.headers)
        return f"{self.method} {self.target} {{{headers}}} {self.body!r}"


@dataclass
class Answer:
    """What has come back.

    Attributes:
        status: None if the application ended without one.
        body: What was read of it.
        is_whole: False where the client has gone before its end.
        is_stuck: Whether the application went on after its client had gone.
        error: What the application has raised, past its own handlers.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False
    is_stuck: bool = False
    error: BaseException | None = None

    @property
    def is_stream(self) -> bool:
        """Whether it may take as long as it likes."""
        return self.headers.get("content-type", "").startswith(_STREAMS)


async def ask(app: FastAPI, request: Request) -> Answer:
    """Sends a request and reads the answer; leaves a stream that does not end."""
    answer = Answer()
    begun, gone = asyncio.Event(), asyncio.Event()
    pieces = [request.body[at : at + request.piece_bytes] for at in range(0, len(request.body), request.piece_bytes)]
    waiting = iter([*pieces[:-1], (pieces or [b""])[-1]])
    left = max(len(pieces), 1)

    async def receive() -> dict[str, Any]:
        nonlocal left
        if left:
            left -= 1
            return {"type": "http.request", "body": next(waiting), "more_body": left > 0}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            begun.set()
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
            answer.is_whole = not message.get("more_body", False)

    path, _, query = request.target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [*request.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    task = asyncio.create_task(app(scope, receive, send))
    starting = asyncio.create_task(begun.wait())
    try:
        await asyncio.wait([task, starting], timeout=ANSWER_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        answer.is_stuck = not begun.is_set() and not task.done()
        await asyncio.wait([task], timeout=STREAM_PATIENCE_S if answer.is_stream else ANSWER_LIMIT_S)
        gone.set()
        done, _ = await asyncio.wait([task], timeout=LEAVE_LIMIT_S)
        answer.is_stuck |= not done
        if done and not task.cancelled():
            answer.error = task.exception()
    finally:
        starting.cancel()
        task.cancel()
    return answer
