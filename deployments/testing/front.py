"""The front in this process, without Serve: its routes and methods as the application has them, over light replicas."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi import FastAPI

from conserve.config import Settings
from deployments.app import build_fastapi_app
from deployments.ingress import ENDPOINTS, ConServeIngress
from deployments.ray_compat import ChatCompletionResponse, CompletionResponse, EmbeddingResponse, ModelCard

_USAGE: Final = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
ANSWER: Final = "done"


class LightReplicas:
    """Takes the place of a handle: answers every request at once and in the same way, without an engine."""

    def options(self, **_options: Any) -> LightReplicas:
        """As a handle, with whatever options."""
        return self

    @property
    def chat(self) -> _Method:
        """Answers a chat."""
        return _Method("chat")

    @property
    def completions(self) -> _Method:
        """Answers a completion."""
        return _Method("completions")

    @property
    def embeddings(self) -> _Method:
        """Answers with embeddings."""
        return _Method("embeddings")

    def broadcast(self, _method: str) -> _Broadcast:
        """Every replica is there."""
        return _Broadcast()


class _Broadcast:
    async def results_async(self, **_options: Any) -> list[bool]:
        return [True]


class _Method:
    def __init__(self, name: str) -> None:
        self._name = name

    async def remote(self, body: Any, _info: Any) -> AsyncGenerator[Any, None]:
        model = str(body.model or "")
        if self._name == "embeddings":
            data = [{"index": 0, "object": "embedding", "embedding": [0.0, 1.0]}]
            yield EmbeddingResponse(model=model, data=data, usage=_USAGE)
        elif body.stream:
            for said in ({"content": ANSWER}, {}):
                choice: dict[str, Any] = {"index": 0, "finish_reason": None if said else "stop"}
                choice |= {"delta": said} if self._name == "chat" else {"text": said.get("content", "")}
                yield f"data: {json.dumps({'id': 'light', 'model': model, 'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"
        elif self._name == "chat":
            choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
            yield ChatCompletionResponse(model=model, choices=[choice], usage=_USAGE)
        else:
            choice = {"index": 0, "text": ANSWER, "finish_reason": "stop"}
            yield CompletionResponse(model=model, choices=[choice], usage=_USAGE)


class LightFront(ConServeIngress):
    """The front, made and ended by this process. Has to be made in a running loop."""

    def __init__(self, settings: Settings) -> None:
        name = settings.model.served_name
        replicas = cast(Any, LightReplicas())
        card = ModelCard(id=name, object="model", owned_by="us", permission=[], metadata={})
        super().__init__({name: replicas}, {name: card}, settings, controller=replicas)

    @property
    def is_connected(self) -> bool:
        """Whether the offline queue is there."""
        return self._jobs is not None

    async def close(self) -> None:
        """Ends it, as Serve does."""
        await super().__del__()

    if not TYPE_CHECKING:  # Serve awaits it, and Python, which calls it as well, does not.

        def __del__(self) -> None:
            """Nothing: see `close`."""

    def build_app(self) -> FastAPI:
        """The HTTP application with all routes."""
        app = build_fastapi_app(self._settings, lambda: self.jobs, lambda: self.console)
        for name, add in ENDPOINTS.items():
            add(app)(getattr(self, name))
        return app
