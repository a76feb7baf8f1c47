"""Requests of batches as the OpenAI layer takes them, and its answers to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from conserve.engine.chunk_assembly import ChunkAssembly, read_events
from conserve.engine.contract import OfflineResult, OnChunk
from conserve.engine.vllm_compat import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingChatRequest,
    EmbeddingCompletionRequest,
)
from conserve.policy.priority import OFFLINE_PRIORITY

EMBEDDINGS: Final = "/v1/embeddings"
CLASS_FIELD: Final = "slo_class"
"""The field of an online request's body that names its class; not one of OpenAI's."""

_REQUEST_TYPES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    EMBEDDINGS: EmbeddingCompletionRequest,
}


def parse_request(endpoint: str, body: Mapping[str, Any], *, streamed: bool) -> Any:
    """The request of a body, behind all online ones; an `OfflineResult` that refuses it where the body is at fault.

    Args:
        endpoint: Path of the API.
        body: As the HTTP API takes it. `priority` and `stream` are overwritten, a class of online requests is ignored.
        streamed: Whether its answer is to come in chunks; not for embeddings.
    """
    offline_body = {name: value for name, value in body.items() if name not in (CLASS_FIELD, "stream")}
    offline_body["priority"] = OFFLINE_PRIORITY
    if endpoint != EMBEDDINGS:
        offline_body["stream"] = streamed
    if streamed:
        offline_body["stream_options"] = {"include_usage": True}
    try:
        request: Any = _find_type(endpoint, offline_body).model_validate(offline_body)
    except ValidationError as error:
        return _refuse(_explain(error))
    except Exception as error:  # noqa: BLE001 - vLLM 0.32's validators let all kinds through; the body is at fault
        return _refuse(str(error) or type(error).__name__)
    if getattr(request, "use_beam_search", False):
        # vLLM 0.32 hands the priority of a request on to everything but the steps of a beam search.
        return _refuse("use_beam_search: not available in a batch", param="use_beam_search")
    return request


async def read_answer(responses: AsyncGenerator[Any, None], on_chunk: OnChunk | None) -> dict[str, Any]:
    """The body of an answer, or of an error; chunks are put together, and passed on as they come."""
    assembly = ChunkAssembly()
    async for response in responses:
        if not isinstance(response, str):
            body: dict[str, Any] = response.model_dump(mode="json")
            return body
        for chunk in read_events(response):
            if "error" in chunk:
                return chunk
            assembly.add(chunk)
            if on_chunk is not None:
                on_chunk(chunk)
    if assembly.is_empty:
        raise RuntimeError("the engine has answered nothing")
    return assembly.body()


def _find_type(endpoint: str, body: Mapping[str, Any]) -> type[BaseModel]:
    # Of the kinds that vLLM tries one after the other, so that errors are those of the one that is meant.
    if endpoint == EMBEDDINGS and "messages" in body:
        return EmbeddingChatRequest  # type: ignore[no-any-return] # vLLM's types are not followed
    return _REQUEST_TYPES[endpoint]


def _refuse(message: str, param: str | None = None) -> OfflineResult:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": 400}
    return OfflineResult(400, {"error": error})


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'body'}: {problem['msg']}"
        for problem in error.errors()[:5]
    )
