"""Adds up how much work the requests of an input file ask for. Pure; bodies are as clients wrote them, unchecked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conserve.jobs.batch import BatchEndpoint
from conserve.policy.batch_work import InputSize

_COMPLETION_LIMIT: Final = 16
"""Tokens of an answer of `/v1/completions` without `max_tokens`, as in OpenAI's API and in vLLM."""
MOST_TOKENS: Final = 1_000_000
"""Of one answer, whatever a request says: Redis adds up no more than 64 bits."""
_MOST_ANSWERS: Final = 128
"""Of one request: the model refuses it long before."""
_NO_TEXT: Final = frozenset({"image_url", "input_audio", "file", "role", "type"})
"""Parts of messages that are no prompt text; what images and sounds take is not counted."""


class SizeCounter:
    """Counts requests one by one."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._requests = 0
        self._prompt_bytes = 0
        self._prompt_tokens = 0
        self._output_limit = 0
        self._unlimited = 0

    def add(self, body: Mapping[str, Any]) -> None:
        """Counts a request by its body."""
        self._requests += 1
        if self._endpoint == BatchEndpoint.CHAT_COMPLETIONS:
            self._prompt_bytes += _count_bytes(body.get("messages")) + _count_bytes(body.get("tools"))
            self._add_limit(_find_limit(body), answers=1)
        elif self._endpoint == BatchEndpoint.COMPLETIONS:
            self._add_limit(_find_limit(body) or _COMPLETION_LIMIT, answers=self._add_prompts(body.get("prompt")))
        else:
            self._add_prompts(body.get("input"))
            self._prompt_bytes += _count_bytes(body.get("messages"))

    def to_size(self, file_bytes: int) -> InputSize:
        """All of it, of a file of so many bytes."""
        return InputSize(
            file_bytes,
            self._requests,
            self._prompt_bytes,
            self._prompt_tokens,
            self._output_limit,
            self._unlimited,
        )

    def _add_limit(self, limit: int | None, answers: int) -> None:
        if limit is None:
            self._unlimited += 1
        else:
            self._output_limit += limit * answers

    def _add_prompts(self, value: object) -> int:
        """Counts prompts, given as text or as tokens, one or several; returns how many they are."""
        prompts = value if isinstance(value, list) and any(not _is_token(one) for one in value) else [value]
        for prompt in prompts:
            if isinstance(prompt, list) and all(_is_token(one) for one in prompt):
                self._prompt_tokens += len(prompt)
            else:
                self._prompt_bytes += _count_bytes(prompt)
        return len(prompts)


def _find_limit(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if _is_token(body.get(name)):
            count = body.get("n")
            answers = min(count, _MOST_ANSWERS) if isinstance(count, int) and count > 0 else 1
            return min(int(body[name]), MOST_TOKENS) * answers
    return None


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _count_bytes(value: object) -> int:
    """Length of all text in a value, as UTF-8."""
    total = 0
    left = [value]  # Not by recursion: a line may be nested as deeply as its client likes.
    while left:
        one = left.pop()
        if isinstance(one, str):
            total += len(one) if one.isascii() else len(one.encode("utf-8", "surrogatepass"))
        elif isinstance(one, list):
            left.extend(one)
        elif isinstance(one, dict):
            left.extend(part for name, part in one.items() if name not in _NO_TEXT)
    return total
