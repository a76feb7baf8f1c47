"""Chunks of a streamed answer, put together from several attempts and the committed result. Pure.

Chunks are those of the OpenAI API: https://platform.openai.com/docs/api-reference/chat-streaming. An attempt that was
broken off is followed by one that begins anew; what it produces again is left out, as long as it is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_Place = tuple[int, str]  # Index of the choice, name of the field.


class DivergedError(RuntimeError):
    """Another attempt has produced something else than what was sent."""


class ChunkMerge:
    """What was sent to the client, and what is to be sent for each further chunk.

    Args:
        tier: What the answer says as `service_tier`.
        with_usage: Whether the client has asked for the usage in a last chunk (`stream_options.include_usage`).
    """

    def __init__(self, tier: str, *, with_usage: bool) -> None:
        self._tier = tier
        self._with_usage = with_usage
        self._envelope: dict[str, Any] = {}
        self._sent: dict[_Place, str] = {}
        self._heard: dict[str, dict[_Place, str]] = {}
        self._roles: set[int] = set()
        self._first_fence: str | None = None
        self._expected: dict[str, int] = {}

    def add(self, fence: str, number: int, chunk: Mapping[str, Any]) -> dict[str, Any] | None:
        """What to send for a chunk; None: nothing. How the answer ends is left to `finish`.

        Args:
            fence: Of the claim that has produced it.
            number: Of the chunk, from 0. After a gap nothing more of this claim is sent; one that comes twice is not.
            chunk: As the HTTP API would send it.

        Raises:
            DivergedError: nothing that fits what was sent.
        """
        if number != self._expected.get(fence, 0):
            return None
        self._expected[fence] = number + 1
        if self._first_fence is None:
            self._first_fence = fence
            self._remember(chunk)
        choices = [self._continue(fence, choice) for choice in chunk.get("choices", ())]
        if not any(choices):
            return None
        return self._envelope | {"choices": [choice for choice in choices if choice]}

    def finish(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What is left to send once the result is there: text that was not sent yet, how it ended, the usage.

        Raises:
            DivergedError: the result does not fit what was sent.
        """
        if self._first_fence is None:
            self._remember(body)
        choices = []
        for choice in body.get("choices", ()):
            index = choice["index"]
            message = choice.get("message")
            delta: dict[str, Any] = {}
            for name, text in (_texts(message) if message is not None else {"text": choice.get("text") or ""}).items():
                if rest := self._rest((index, name), text):
                    delta[name] = rest
                if self._sent.get((index, name), "") != text:
                    raise DivergedError("more was sent than the result has")
            if message is not None and index not in self._roles:
                delta["role"] = message.get("role", "assistant")
            if message is not None and self._first_fence is None and message.get("tool_calls"):
                delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(message["tool_calls"])]
            ending = {"index": index, "finish_reason": choice.get("finish_reason"), "logprobs": None}
            choices.append(ending | ({"delta": delta} if message is not None else {"text": delta.get("text", "")}))
        yield self._envelope | {"choices": choices}
        if self._with_usage:
            yield self._envelope | {"choices": [], "usage": body.get("usage")}

    def _remember(self, source: Mapping[str, Any]) -> None:
        kind = str(source.get("object", ""))
        if kind == "chat.completion":
            kind = "chat.completion.chunk"
        named = {name: source.get(name) for name in ("id", "created", "model")}
        self._envelope = named | {"object": kind, "service_tier": self._tier}

    def _continue(self, fence: str, choice: Mapping[str, Any]) -> dict[str, Any] | None:
        index = choice["index"]
        heard = self._heard.setdefault(fence, {})
        is_chat = choice.get("delta") is not None
        delta: Mapping[str, Any] = choice["delta"] if is_chat else {"text": choice.get("text") or ""}
        new: dict[str, Any] = {}
        for name, text in _texts(delta).items():
            place = (index, name)
            # Mostly there is one attempt only, and what it has produced is what was sent.
            whole = heard[place] = heard.get(place, "") + text
            if rest := self._rest(place, whole):
                new[name] = rest
        if is_chat and delta.get("role") and index not in self._roles:
            self._roles.add(index)
            new = {"role": delta["role"], "content": "", **new}
        if is_chat and delta.get("tool_calls"):
            if fence != self._first_fence:
                raise DivergedError("calls of tools cannot be continued by another attempt")
            new["tool_calls"] = delta["tool_calls"]
        if not new:
            return None
        logprobs = choice.get("logprobs") if fence == self._first_fence else None
        common = {"index": index, "finish_reason": None, "logprobs": logprobs}
        return common | ({"delta": new} if is_chat else {"text": new["text"]})

    def _rest(self, place: _Place, whole: str) -> str:
        before = self._sent.get(place, "")
        if whole.startswith(before):
            self._sent[place] = whole
            return whole[len(before) :]
        if before.startswith(whole):
            return ""
        raise DivergedError("another attempt at the request has produced something else")


def _texts(delta: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a delta, or of a message, that grow by text: the content, and what models call their reasoning."""
    return {name: text for name, text in delta.items() if isinstance(text, str) and text and name != "role"}
