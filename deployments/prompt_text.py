"""The text of a request, as far as it has to be computed before its first token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from conserve.policy.prefix_memory import Prompt, measure_prompt


def measure_request(request: Any) -> Prompt:
    """What a router has to know of the prompt of a chat, completion or embedding request."""
    if (messages := getattr(request, "messages", None)) is not None:
        return measure_prompt(_list_message_texts(messages))
    prompt = getattr(request, "prompt", None) or getattr(request, "input", None)
    texts: list[str] = []
    token_count = 0
    for piece in [prompt] if isinstance(prompt, str) else prompt or ():
        if isinstance(piece, str):
            texts.append(piece)
        elif isinstance(piece, Sequence):
            token_count += len(piece)
        else:
            token_count += 1  # A prompt may be given as tokens.
    return measure_prompt(texts, token_count)


def _list_message_texts(messages: Sequence[Any]) -> Iterator[str]:
    for message in messages:
        if not isinstance(message, dict):
            continue
        yield str(message.get("role", ""))
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and isinstance(text := part.get("text"), str):
                    yield text
