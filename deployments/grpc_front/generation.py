"""Requests to the model and its answers: messages as the HTTP API's JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from conserve.jobs.answers import invalid
from conserve.jobs.batch import BatchEndpoint
from conserve.jobs.flex import TIER
from deployments.protos import conserve_pb2 as pb

Generation = pb.GenerateRequest | pb.GenerateStreamRequest


def to_body(
    request: Generation, default_model: str | None, *, stream: bool = False
) -> tuple[BatchEndpoint, dict[str, Any]]:
    """The endpoint of the HTTP API that answers a request, and the JSON that it takes.

    Args:
        request: What a client has sent.
        default_model: For a request that names none.
        stream: Whether the answer comes in pieces.

    Raises:
        ApiError: 400, there is nothing to answer, or a schema that is no JSON. All else is checked by the endpoint.
    """
    kind = request.WhichOneof("input")
    if kind is None:
        raise invalid("Set one of 'chat' and 'prompt'.", "chat", "missing_required_parameter")
    body: dict[str, Any] = {}
    if model := request.model or default_model:
        body["model"] = model
    if kind == "chat":
        body["messages"] = [{"role": one.role, "content": one.content} for one in request.chat.messages]
    else:
        body["prompt"] = request.prompt
    body |= _to_fields(request.sampling, is_chat=kind == "chat")
    if request.slo_class:
        body["slo_class"] = request.slo_class
    if request.service_tier == pb.SERVICE_TIER_FLEX:
        body["service_tier"] = TIER
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return (BatchEndpoint.CHAT_COMPLETIONS if kind == "chat" else BatchEndpoint.COMPLETIONS), body


def _to_fields(sampling: pb.Sampling, *, is_chat: bool) -> dict[str, Any]:
    """What is set of it."""
    fields: dict[str, Any] = {}
    for field, value in sampling.ListFields():
        if isinstance(value, Mapping):
            fields[field.name] = {str(key): one for key, one in value.items()}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            fields[field.name] = list(value)
        else:
            fields[field.name] = value
    if is_chat and "logprobs" in fields:
        fields |= {"logprobs": True, "top_logprobs": fields["logprobs"]}
    if (schema := fields.pop("json_schema", None)) is not None:
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": _parse_schema(schema)},
        }
    return fields


def _parse_schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise invalid("'json_schema' must be a JSON object.", "json_schema")
    return schema


def read_answer(answer: Mapping[str, Any]) -> pb.GenerateResponse:
    """The message of a whole answer of either endpoint."""
    return pb.GenerateResponse(
        id=answer["id"],
        model=answer["model"],
        choices=[_read_choice(choice) for choice in answer["choices"]],
        usage=_read_usage(answer.get("usage")),
    )


def read_piece(chunk: Mapping[str, Any]) -> pb.GenerateStreamResponse | None:
    """The message of a piece of an answer; None if there is nothing in it, such as a first one with the role alone."""
    choices = [_read_choice(choice) for choice in chunk["choices"]]
    choices = [choice for choice in choices if choice.text or choice.finish_reason or choice.logprobs]
    usage = _read_usage(chunk.get("usage"))
    if not choices and usage is None:
        return None
    return pb.GenerateStreamResponse(id=chunk["id"], model=chunk["model"], choices=choices, usage=usage)


def _read_choice(choice: Mapping[str, Any]) -> pb.Choice:
    said = choice.get("message") or choice.get("delta") or {}
    return pb.Choice(
        index=choice["index"],
        text=choice.get("text") or said.get("content") or "",
        finish_reason=choice.get("finish_reason") or "",
        logprobs=_read_logprobs(choice.get("logprobs")),
    )


def _read_logprobs(logprobs: Mapping[str, Any] | None) -> Iterable[pb.TokenLogprob]:
    """Those of a chat are a list of tokens, those of a completion one list for each of their fields."""
    if not logprobs:
        return []
    if "content" in logprobs:
        return [
            pb.TokenLogprob(
                token=one["token"],
                logprob=one["logprob"],
                alternatives=[
                    pb.TokenLogprob(token=other["token"], logprob=other["logprob"])
                    for other in one.get("top_logprobs") or ()
                ],
            )
            for one in logprobs["content"] or ()
        ]
    alternatives = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        pb.TokenLogprob(
            token=token,
            logprob=logprob or 0.0,  # The first token of an echoed prompt has none.
            alternatives=[pb.TokenLogprob(token=name, logprob=value) for name, value in (others or {}).items()],
        )
        for token, logprob, others in zip(logprobs["tokens"], logprobs["token_logprobs"], alternatives, strict=True)
    ]


def _read_usage(usage: Mapping[str, Any] | None) -> pb.Usage | None:
    if not usage:
        return None
    return pb.Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage.get("completion_tokens") or 0)
