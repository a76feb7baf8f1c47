"""One streamed chat, timed as it is read. Latency counts from the time at which it was meant to be sent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from loadtests.chat_record import ChatRecord
from loadtests.front.calls import CallError, Calls

CHAT_PATH = "/v1/chat/completions"


class BrokenStreamError(Exception):
    """The stream is not what the API promises; the message says what is wrong."""


@dataclass
class StreamReading:
    """What came of a stream so far."""

    content_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None

    def read(self, lines: Iterable[bytes], clock: Callable[[], float]) -> None:
        """Takes server-sent events until the last one.

        Raises:
            BrokenStreamError: an event is an error or no JSON, or the stream ends before the answer does.
        """
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            came_s = clock()
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            self._take(data, came_s)
        if self.finish_reason is None:
            raise BrokenStreamError("the stream ended before the answer did")

    def _take(self, data: bytes, came_s: float) -> None:
        try:
            event: dict[str, Any] = json.loads(data)
        except ValueError:
            raise BrokenStreamError(f"an event is no JSON: {data[:80]!r}") from None
        if "error" in event:
            raise BrokenStreamError(f"the stream ended in an error: {event['error']}")
        usage = event.get("usage")
        if usage:
            self.prompt_tokens, self.output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        for choice in event.get("choices") or []:
            if choice.get("delta", {}).get("content"):
                self.content_s.append(came_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


def make_chat(model: str, text: str, output_tokens: int, *, exact: bool = True) -> dict[str, Any]:
    """The body of a greedy chat; an `exact` one has so many tokens of output, which only vLLM's servers can do."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return {**body, "ignore_eos": True} if exact else body


def stream_chat(
    calls: Calls,
    body: dict[str, Any],
    intended_s: float | None = None,
    *,
    timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> ChatRecord:
    """Sends a chat now, and returns what happened to it; whatever goes wrong is in the record.

    Args:
        calls: The server.
        body: As of `make_chat`.
        intended_s: When it was meant to be sent, by `clock`; now by default.
        timeout_s: From now to the end of the answer.
        clock: Seconds, monotonic.
    """
    sent_s = clock()
    reading = StreamReading()
    error = None
    try:
        with calls.stream(CHAT_PATH, body, timeout_s) as lines:
            reading.read(lines, clock)
    except (CallError, BrokenStreamError, TimeoutError) as problem:
        error = str(problem)
    return ChatRecord(
        intended_s=sent_s if intended_s is None else intended_s,
        sent_s=sent_s,
        content_s=tuple(reading.content_s),
        ended_s=clock(),
        prompt_tokens=reading.prompt_tokens,
        output_tokens=reading.output_tokens,
        error=error,
    )
