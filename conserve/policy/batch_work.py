"""How much work a batch is: tokens of its prompts and of its answers, estimated before and corrected while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BYTES_PER_TOKEN: Final = 4.0
"""Of text in a prompt (UTF-8), where nothing was seen yet; about that of English with the tokenizers of 2025."""
FILE_BYTES_PER_TOKEN: Final = 8.0
"""The same for an input file with all that is around the text."""
UNKNOWN_OUTPUT_TOKENS: Final = 512
"""Of an answer whose request sets no limit, where nothing was seen yet."""
LEAST_SEEN: Final = 20
"""Requests that have to be done before what they took says anything about others."""
OWN_MEMORY: Final = 8.0
"""Requests of a batch that its estimate counts for, beside those that are done."""


@dataclass(frozen=True)
class InputSize:
    """What is known of an input file when it has been read.

    Attributes:
        file_bytes: Of all of it.
        requests: How many there are.
        prompt_bytes: Text of their prompts, as UTF-8.
        prompt_tokens: Of prompts that are given as tokens.
        output_limit: Sum of the limits that requests set to their answers, in tokens.
        unlimited: Requests that set none.
    """

    file_bytes: int = 0
    requests: int = 0
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    output_limit: int = 0
    unlimited: int = 0


@dataclass(frozen=True)
class SeenUsage:
    """What finished requests of an endpoint were and took.

    Attributes:
        requests: How many there were.
        file_bytes, prompt_bytes: Their part of the input files, and of that the text of prompts.
        prompt_tokens, output_tokens: What they took.
    """

    requests: float = 0.0
    file_bytes: float = 0.0
    prompt_bytes: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0

    @property
    def says_something(self) -> bool:
        """Whether there were enough of them."""
        return self.requests >= LEAST_SEEN and self.prompt_tokens > 0

    def add(self, other: SeenUsage, memory: float) -> SeenUsage:
        """With further requests; of those before, no more than `memory` count."""
        share = min(1.0, memory / self.requests) if self.requests > 0 else 1.0
        return SeenUsage(
            self.requests * share + other.requests,
            self.file_bytes * share + other.file_bytes,
            self.prompt_bytes * share + other.prompt_bytes,
            self.prompt_tokens * share + other.prompt_tokens,
            self.output_tokens * share + other.output_tokens,
        )


@dataclass(frozen=True)
class BatchWork:
    """Tokens of a batch."""

    prompt_tokens: float
    output_tokens: float

    @property
    def tokens(self) -> float:
        """All of them."""
        return self.prompt_tokens + self.output_tokens


def guess_work(file_bytes: int, seen: SeenUsage) -> BatchWork:
    """The work of a batch of which no more is known than how long its file is.

    By what earlier files of the endpoint took for their length. Without them only the prompts are counted, and not all
    of what is in the file for those: it is too little rather than too much.
    """
    if seen.says_something and seen.file_bytes > 0:
        share = file_bytes / seen.file_bytes
        return BatchWork(share * seen.prompt_tokens, share * seen.output_tokens)
    return BatchWork(file_bytes / FILE_BYTES_PER_TOKEN, 0.0)


def estimate_work(size: InputSize, seen: SeenUsage) -> BatchWork:
    """The work of a batch whose file has been read.

    Answers are as long as those of the endpoint were on average, but no longer than all of their limits; without any
    that were seen they are as long as allowed.
    """
    bytes_per_token = BYTES_PER_TOKEN
    if seen.says_something and seen.prompt_bytes > 0:
        bytes_per_token = seen.prompt_bytes / seen.prompt_tokens
    prompt_tokens = size.prompt_tokens + size.prompt_bytes / bytes_per_token
    limited = size.requests - size.unlimited
    if seen.says_something:
        mean = seen.output_tokens / seen.requests
        return BatchWork(prompt_tokens, min(float(size.output_limit), mean * limited) + mean * size.unlimited)
    return BatchWork(prompt_tokens, float(size.output_limit + UNKNOWN_OUTPUT_TOKENS * size.unlimited))


def find_tokens_left(total: int, done: int, work_tokens: float, used_tokens: float) -> float:
    """Tokens that a batch has still to take.

    Its own finished requests correct the estimate the more, the more of them there are.

    Args:
        total: Requests it has; 0 if that is not known yet.
        done: Those that have ended.
        work_tokens: Estimate for all of it.
        used_tokens: What those that have ended took.
    """
    if total <= 0:
        return work_tokens
    mean = (OWN_MEMORY * work_tokens / total + used_tokens) / (OWN_MEMORY + done)
    return max(0, total - done) * mean
