"""VLLM's OpenAI layer over an engine of the tests, as `ray.serve.llm` puts it there."""

from __future__ import annotations

import argparse
import math
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import State
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import FrontendArgs

from conserve.config import EngineSettings
from conserve.engine.direct import DirectEngine, DirectEngineConfig, build_engine_args
from conserve.engine.options import Objective
from conserve.engine.vllm_compat import AsyncEngineArgs

EXTRA = {"skip_tokenizer_init": False}
"""Arguments of an engine for this layer, beside those of `make_settings`."""


class OpenAILayer:
    """What `CoServeEngine` takes as its `serving`."""

    def __init__(self, state: State) -> None:
        self._state = state

    @classmethod
    async def start(cls, engine: DirectEngine, model: str, settings: EngineSettings) -> OpenAILayer:
        config = DirectEngineConfig(model, settings, Objective(ttft_slo_ms=math.inf, tbt_slo_ms=math.inf))
        engine_args = AsyncEngineArgs(**build_engine_args(config))
        args = argparse.Namespace(**(vars(FrontendArgs()) | vars(engine_args)))
        state = State()
        tasks = await engine._llm.get_supported_tasks()
        await init_app_state(engine._llm, state=state, args=args, supported_tasks=tasks)
        return cls(state)

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        yield await self._state.openai_serving_chat.create_chat_completion(request)

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        yield await self._state.openai_serving_completion.create_completion(request)

    async def embeddings(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        raise NotImplementedError("of a model that answers chats only")
        yield
