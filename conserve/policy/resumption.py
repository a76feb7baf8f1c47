"""Whether an interrupted request may go on after the tokens it has produced, or must begin anew.

It may where the rest of the answer follows from the tokens before it alone, however they came about: greedily, and with
nothing in the request that looks at where the prompt ends. What is not known to be like that begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Obstacle(StrEnum):
    """Why a request begins anew."""

    ENDPOINT = "endpoint"  # It produces no tokens.
    SAMPLING = "sampling"  # Tokens are drawn at random: `temperature` is not 0.
    PENALTY = "penalty"  # What was produced counts other than the prompt: penalties, bad words.
    LOGPROBS = "logprobs"  # The answer holds probabilities, which are not journaled.
    STRUCTURED = "structured"  # A grammar or a tool's schema stands at some place of it.
    SEVERAL = "several"  # Several answers, or prompts.
    FIELD = "field"  # The body has something that nobody has looked at.
    ENGINE = "engine"  # The engine adds something of its own to the request, or its prompt is more than tokens.
    REVISION = "revision"  # The tokens are those of another model, or of another build of the engine.
    TOKENS = "tokens"  # The tokens cannot be those of this request: they go on behind its end.
    STREAM = "stream"  # Its client has had the beginning already, in chunks that stand somewhere else.
    OFF = "off"  # Nothing is journaled here.


_ENDPOINTS = ("/v1/chat/completions", "/v1/completions")

_HARMLESS = frozenset(
    {
        # What the prompt is made from, each time in the same way.
        *("model", "messages", "prompt", "chat_template", "chat_template_kwargs", "documents", "add_special_tokens"),
        *("add_generation_prompt", "continue_final_message", "truncate_prompt_tokens", "truncation_side"),
        # Counted from the beginning of the answer, whatever engine it was made on.
        *("max_tokens", "max_completion_tokens", "min_tokens"),
        # Looked for in the whole answer.
        *("stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
        *("skip_special_tokens", "spaces_between_special_tokens", "return_token_ids"),
        # The same at each token, or without a meaning where nothing is random.
        *("logit_bias", "allowed_token_ids", "top_p", "top_k", "min_p", "seed"),
        # Not about the answer.
        *("user", "metadata", "store", "service_tier", "priority", "slo_class", "stream", "stream_options"),
        *("cache_salt", "session_id", "request_id"),
    }
)
"""Fields of a body that a request may have, with any value."""

_NEUTRAL: Mapping[str, tuple[Obstacle, tuple[Any, ...]]] = {
    "temperature": (Obstacle.SAMPLING, (0,)),
    "use_beam_search": (Obstacle.SAMPLING, (False,)),
    "presence_penalty": (Obstacle.PENALTY, (0,)),
    "frequency_penalty": (Obstacle.PENALTY, (0,)),
    "repetition_penalty": (Obstacle.PENALTY, (1,)),
    "bad_words": (Obstacle.PENALTY, ([],)),
    "logprobs": (Obstacle.LOGPROBS, (False,)),
    "top_logprobs": (Obstacle.LOGPROBS, (0,)),
    "prompt_logprobs": (Obstacle.LOGPROBS, ()),
    "logprob_token_ids": (Obstacle.LOGPROBS, ([],)),
    "response_format": (Obstacle.STRUCTURED, ({"type": "text"},)),
    "structured_outputs": (Obstacle.STRUCTURED, ()),
    "tools": (Obstacle.STRUCTURED, ([],)),
    "tool_choice": (Obstacle.STRUCTURED, ("none",)),
    "n": (Obstacle.SEVERAL, (1,)),
    "echo": (Obstacle.FIELD, (False,)),
}
"""Fields with the values that are as good as none; another one is the obstacle. `null` is as good as none."""


def find_obstacle(endpoint: str, body: Mapping[str, Any]) -> Obstacle | None:
    """Why a request cannot be continued after its first tokens; None where it can.

    Args:
        endpoint: Path of the API, as in the input file.
        body: The request's body. The temperature has to be in it: what the model's own default is, is not known here.
    """
    if endpoint not in _ENDPOINTS:
        return Obstacle.ENDPOINT
    for name, value in body.items():
        if name in _HARMLESS or value is None:
            continue
        if name not in _NEUTRAL:
            return Obstacle.FIELD
        obstacle, neutral = _NEUTRAL[name]
        if not any(_is_same(value, one) for one in neutral):
            return obstacle
    if body.get("temperature") is None:
        return Obstacle.SAMPLING
    prompt = body.get("prompt")
    # A list of token ids is one prompt.
    if isinstance(prompt, list) and any(not isinstance(token_id, int) for token_id in prompt):
        return Obstacle.SEVERAL
    return None


def _is_same(value: Any, other: Any) -> bool:
    # For Python 0 and False are equal, for the API `logprobs: 0` asks for something and `logprobs: false` does not.
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ends: `finish_reason` as the API calls it, `stop_reason` as vLLM does."""

    finish_reason: str
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class EndRule:
    """Where an answer ends, stop strings left aside.

    Attributes:
        most_tokens: An answer has no more.
        eos_token_id: The end-of-sequence token, where it ends an answer.
        stop_token_ids: Further tokens that end it.
    """

    most_tokens: int
    eos_token_id: int | None = None
    stop_token_ids: Collection[int] = ()

    def find_ending(self, token_ids: Sequence[int]) -> Ending | None:
        """How an answer of these tokens ends; None where it goes on.

        In the order of vLLM 0.32 (`check_stop`): the end-of-sequence token, stop tokens, the length. That a token ends
        an answer before `min_tokens` does not happen: those are not produced until then.

        Raises:
            ValueError: The answer has ended before the last of the tokens.
        """
        ends = {*self.stop_token_ids, self.eos_token_id}
        if len(token_ids) > self.most_tokens or not ends.isdisjoint(token_ids[:-1]):
            raise ValueError("the tokens go on behind the end of the answer")
        last = token_ids[-1] if token_ids else None
        if last is not None and last == self.eos_token_id:
            return Ending("stop")
        if last is not None and last in self.stop_token_ids:
            return Ending("stop", last)
        return Ending("length") if len(token_ids) == self.most_tokens else None
