"""Every private or unstable name of Ray that this project uses, in one place.

Tested with Ray 2.60; `tests/unit/deployments/test_ray_compat.py` says which one is gone when they move.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorInfo,
    ErrorResponse,
    ModelCard,
    ModelList,
    OpenAIHTTPException,
    to_model_metadata,
)
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

__all__ = [
    "BackPressureError",
    "CallbackBase",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "CompletionRequest",
    "CompletionResponse",
    "DeploymentUnavailableError",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "ErrorInfo",
    "ErrorResponse",
    "ModelCard",
    "ModelList",
    "OpenAIHTTPException",
    "PowerOfTwoChoicesRequestRouter",
    "RawRequestInfo",
    "VLLMEngine",
    "find_client",
    "find_engine",
    "has_died",
    "to_model_metadata",
]


def find_engine(server: Any) -> Any:
    """The engine object of an `LLMServer`: its OpenAI layer over vLLM's `AsyncLLM`."""
    return server.engine


def find_client(engine: Any) -> Any:
    """The `AsyncLLM` of an engine object that was started."""
    return engine._engine_client


def has_died(engine: Any) -> bool:
    """Whether the `AsyncLLM` of an engine object has ended; it stays so until the replica is replaced."""
    client = engine._engine_client
    return client is not None and bool(client.errored)
