"""From the text chunks of a streamed answer to the chunks as objects, and to the answer as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

_DATA: Final = "data:"
_DONE: Final = "[DONE]"


def read_events(text: str) -> Iterator[dict[str, Any]]:
    """The objects in a piece of an event stream, as vLLM makes it: whole lines, one object each."""
    for line in text.split("\n"):  # Not `splitlines`: strings may hold other line ends as they are.
        if line.startswith(_DATA) and (payload := line[len(_DATA) :].strip()) != _DONE:
            yield json.loads(payload)


class ChunkAssembly:
    """Puts the answer together that would have come without `stream`. Fields that grow are appended to each other."""

    def __init__(self) -> None:
        self._body: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there was no chunk yet."""
        return not self._body

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Takes the next chunk."""
        if not self._body:
            kind = str(chunk.get("object", "")).removesuffix(".chunk")
            self._body = {name: chunk.get(name) for name in ("id", "created", "model")} | {"object": kind}
        if chunk.get("usage"):
            self._body["usage"] = chunk["usage"]
        for choice in chunk.get("choices", ()):
            self._extend(choice)

    def body(self) -> dict[str, Any]:
        """The answer so far."""
        return self._body | {"choices": [self._choices[index] for index in sorted(self._choices)]}

    def _extend(self, choice: Mapping[str, Any]) -> None:
        index = choice["index"]
        whole = self._choices.setdefault(index, {"index": index, "finish_reason": None, "logprobs": None})
        if "delta" in choice:
            _extend_message(whole.setdefault("message", {"role": "assistant", "content": None}), choice["delta"])
        else:
            whole["text"] = whole.get("text", "") + (choice.get("text") or "")
        for name in ("finish_reason", "stop_reason"):
            if choice.get(name) is not None:
                whole[name] = choice[name]
        if choice.get("logprobs"):
            whole["logprobs"] = _join_logprobs(whole["logprobs"], choice["logprobs"])


def _extend_message(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if name == "role":
            message["role"] = value or message["role"]
        elif name == "tool_calls":
            for call in value or ():
                _extend_call(message.setdefault("tool_calls", []), call)
        elif isinstance(value, str):
            message[name] = (message.get(name) or "") + value


def _extend_call(calls: list[dict[str, Any]], part: Mapping[str, Any]) -> None:
    index = part.get("index", 0)
    while len(calls) <= index:
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""


def _join_logprobs(before: dict[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    if before is None:
        return dict(more)
    joined = dict(before)
    for name, values in more.items():
        if isinstance(values, list):
            joined[name] = [*(joined.get(name) or []), *values]
    return joined
