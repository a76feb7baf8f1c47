from __future__ import annotations

from typing import Any

import pytest

from conserve.engine.chunk_assembly import ChunkAssembly, read_events


def assemble(*choices: list[dict[str, Any]], kind: str = "chat.completion.chunk") -> dict[str, Any]:
    assembly = ChunkAssembly()
    assert assembly.is_empty
    for one in choices:
        assembly.add({"id": "x", "object": kind, "created": 1, "model": "m", "choices": one})
    assembly.add({"id": "x", "object": kind, "created": 1, "model": "m", "choices": [], "usage": {"total_tokens": 3}})
    assert not assembly.is_empty
    return assembly.body()


def test_events_are_read_from_text() -> None:
    text = 'data: {"a": 1}\n\ndata: {"b": "\u2028\x85"}\n\n: comment\n\ndata: [DONE]\n\n'
    assert list(read_events(text)) == [{"a": 1}, {"b": "\u2028\x85"}]


def test_a_chat_is_put_together() -> None:
    body = assemble(
        [{"index": 0, "delta": {"role": "assistant", "content": ""}}, {"index": 1, "delta": {"role": "assistant"}}],
        [{"index": 0, "delta": {"reasoning": "h", "content": None}}, {"index": 1, "delta": {"content": "x"}}],
        [{"index": 0, "delta": {"content": "a", "reasoning": "m"}, "logprobs": {"content": [1]}}],
        [{"index": 0, "delta": {"content": "b"}, "logprobs": {"content": [2]}, "finish_reason": "length"}],
    )
    assert {name: body[name] for name in ("id", "object", "created", "model", "usage")} == {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "usage": {"total_tokens": 3},
    }
    first, second = body["choices"]
    assert first["message"] == {"role": "assistant", "content": "ab", "reasoning": "hm"}
    assert (first["finish_reason"], first["logprobs"]) == ("length", {"content": [1, 2]})
    assert second["message"] == {"role": "assistant", "content": "x"}


def test_calls_of_tools_are_put_together() -> None:
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 1, "id": "d", "function": {"name": "g", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]
    body = assemble(*([{"index": 0, "delta": {"tool_calls": [part]}}] for part in parts))
    calls = body["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("c", "f", '{"a": 1}'),
        ("d", "g", "{}"),
    ]


@pytest.mark.parametrize("stop", [None, 7])
def test_a_completion_is_put_together(stop: int | None) -> None:
    body = assemble(
        [{"index": 0, "text": "a"}],
        [{"index": 0, "text": "b", "finish_reason": "stop", "stop_reason": stop}],
        kind="text_completion",
    )
    (choice,) = body["choices"]
    assert (body["object"], choice["text"], choice["finish_reason"]) == ("text_completion", "ab", "stop")
    assert choice.get("stop_reason") == stop
