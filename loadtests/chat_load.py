"""Interactive load: streaming chats sent at given times, however long earlier answers take (open loop).

Latency counts from the time at which a request was meant to be sent. A client that falls behind therefore shows as
latency and is not hidden ("coordinated omission").
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from openai import AsyncOpenAI

from loadtests.chat_prompts import ChatPrompt
from loadtests.chat_record import ChatRecord

__all__ = ["ChatLoad", "ChatRecord"]


@dataclass
class _Answer:
    content_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class ChatLoad:
    """Sends chats and keeps a record of each.

    Args:
        client: Its retries are switched off here: a retried request would hide an error.
        model: Sent as `model`.
        request_timeout_s: Bound of one request, from its sending to the end of its answer.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        *,
        request_timeout_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client.with_options(max_retries=0, timeout=request_timeout_s)
        self._model = model
        self._request_timeout_s = request_timeout_s
        self._clock = clock

    async def run(
        self,
        arrivals_s: Iterable[float],
        prompts: Iterator[ChatPrompt],
        *,
        stop: asyncio.Event | None = None,
        on_record: Callable[[ChatRecord], None] | None = None,
    ) -> list[ChatRecord]:
        """Sends one prompt at each arrival, until the arrivals end or `stop` is set, and waits for all answers.

        Args:
            arrivals_s: Seconds from now, ascending.
            prompts: Taken one at each arrival.
            stop: Nothing is sent any more once it is set; what was sent is waited for.
            on_record: Called with each record as it is complete.

        Returns:
            All records in the order in which the requests were meant to be sent. Errors are in the records.
        """
        stop = stop or asyncio.Event()
        start_s = self._clock()
        records: list[ChatRecord] = []

        async def send(intended_s: float, prompt: ChatPrompt) -> None:
            record = await self.send(prompt, intended_s)
            records.append(record)
            if on_record is not None:
                on_record(record)

        async with asyncio.TaskGroup() as group:
            for arrival_s in arrivals_s:
                intended_s = start_s + arrival_s
                if await self._is_set_by(stop, intended_s):
                    break
                group.create_task(send(intended_s, next(prompts)))
        return sorted(records, key=lambda record: record.intended_s)

    async def send(self, prompt: ChatPrompt, intended_s: float | None = None) -> ChatRecord:
        """Sends one chat now and returns its record; `intended_s` is now by default."""
        sent_s = self._clock()
        answer = _Answer()
        error = None
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._stream(prompt, answer)
        except TimeoutError:
            error = f"no complete answer within {self._request_timeout_s:g} s"
        # Whatever goes wrong is a result of the measurement; the client and its transport raise many types.
        except Exception as failure:  # noqa: BLE001 - it is in the record
            error = f"{type(failure).__name__}: {failure}"
        return ChatRecord(
            intended_s=sent_s if intended_s is None else intended_s,
            sent_s=sent_s,
            content_s=tuple(answer.content_s),
            ended_s=self._clock(),
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            error=error,
        )

    async def _stream(self, prompt: ChatPrompt, answer: _Answer) -> None:
        finish_reason: str | None = None
        stream = await self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": prompt.text}],
            max_tokens=prompt.max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    answer.prompt_tokens = chunk.usage.prompt_tokens
                    answer.output_tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    if choice.delta.content:
                        answer.content_s.append(self._clock())
                    finish_reason = choice.finish_reason or finish_reason
        if finish_reason is None:
            raise EOFError("the stream ended before the answer did")

    async def _is_set_by(self, stop: asyncio.Event, time_s: float) -> bool:
        """Sleeps until `time_s`; True as soon as `stop` is set."""
        try:
            await asyncio.wait_for(stop.wait(), timeout=max(0.0, time_s - self._clock()))
        except TimeoutError:
            return stop.is_set()
        return True
