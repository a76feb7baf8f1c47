"""A replica without an engine: it reports what it is told to, and ends when a prompt says so."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from ray import serve

from conserve.config import Settings
from conserve.policy.outlook import Outlook
from conserve.telemetry.spans import QUEUE_TIME, REQUEST_SPAN
from deployments.online_trace import trace_engine
from deployments.pulse import beat
from deployments.ray_compat import ChatCompletionResponse
from deployments.routing_report import MARK_HEADER, Mark, Received, RoutingReport
from deployments.tracing import start_tracing, stop_tracing

DIE_FIRST = "die before the first token"
DIE_MIDDLE = "die in the middle"
ARRIVED = "arrived"
"""With the prompt the file that says that a client has got the first part."""
LIMIT_S = 60.0
DIE_ALWAYS = "die whoever is asked"
STOP_FIRST = "stop before the first token"
STOP_MIDDLE = "stop in the middle"
END_MIDDLE = {DIE_MIDDLE: signal.SIGKILL, STOP_MIDDLE: signal.SIGSTOP}
PAUSE = "pause"
"""For longer than a replica may say nothing."""
GO_ON = "go on"
"""Until it is cancelled, which a file of the name `STOPPED` then says."""
STOPPED = "stopped"


class LightReplica:
    """Answers with its own name.

    Args:
        folder: What all replicas know of each other: which of them reports what, and which prompts have killed one.
        settings: ConServe's.
    """

    def __init__(self, folder: str, settings: Settings) -> None:
        start_tracing(settings)
        self._folder = Path(folder)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._silence_s = settings.http.replica_silence_s
        self._received = Received()
        self._reports = 0
        (self._folder / "replicas").mkdir(exist_ok=True)
        (self._folder / "replicas" / self._name).touch()

    async def answers(self) -> bool:
        return True

    async def chat(self, body: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """As `ConServeReplica.chat`."""

        async def answer(info: Any) -> AsyncGenerator[Any, None]:
            return self._answer(body, info)

        traced = await trace_engine("chat", body, raw_request_info, answer)
        return beat(traced, self._silence_s)

    async def _answer(self, body: Any, raw_request_info: Any) -> AsyncGenerator[Any, None]:
        REQUEST_SPAN.get().set(QUEUE_TIME, 0.0)
        mark = Mark.read(raw_request_info.headers.get(MARK_HEADER))
        if mark is not None:
            self._received.note(mark)
        prompt = body.messages[-1]["content"]
        killed = self._folder / f"killed-{prompt.replace(' ', '-')}"
        if prompt == DIE_ALWAYS or (prompt == DIE_FIRST and not killed.exists()):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt == STOP_FIRST and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if not body.stream:
            yield await self._answer_whole(body, prompt)
            return
        for number, text in enumerate([self._name, " done"]):
            if prompt in END_MIDDLE and number:
                async with asyncio.timeout(LIMIT_S):
                    while not (self._folder / f"{ARRIVED} {prompt}").exists():
                        await asyncio.sleep(0.02)
                os.kill(os.getpid(), END_MIDDLE[prompt])
            if prompt == PAUSE and number:
                await asyncio.sleep(2 * self._silence_s)
            yield to_event(body, {"delta": {"content": text}})
            if prompt == GO_ON:
                await self._go_on()
        yield to_event(body, {"delta": {}, "finish_reason": "stop"})
        yield "data: [DONE]\n\n"

    async def _answer_whole(self, body: Any, prompt: str) -> Any:
        if prompt == GO_ON:
            await self._go_on()
        if prompt == PAUSE:
            await asyncio.sleep(2 * self._silence_s)
        choice = {"index": 0, "message": {"role": "assistant", "content": self._name}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        return ChatCompletionResponse(id="light", model=body.model, choices=[choice], usage=usage)

    async def _go_on(self) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            (self._folder / STOPPED).touch()
            raise

    async def __del__(self) -> None:
        await stop_tracing()

    async def record_routing_stats(self) -> dict[str, Any]:
        """As told in a file: how long a request would wait here; nothing if that is silence."""
        try:
            waits = json.loads((self._folder / "waits.json").read_text())
        except FileNotFoundError:
            waits = {}
        if waits.get("silent"):
            return {}
        self._reports += 1
        outlook = Outlook(waits.get(self._name, 0.0), 0.0, 5.0, 0.1, 512.0, 64.0, 1e6)
        return RoutingReport.of(outlook, self._reports, self._received.numbers).to_stats()


def to_event(body: Any, choice: dict[str, Any]) -> str:
    chunk = {"id": "light", "model": body.model, "choices": [{"index": 0, **choice}]}
    return f"data: {json.dumps(chunk)}\n\n"
