"""How many tokens a request takes, prompt and output: a guess from its length, until some have been seen."""

from __future__ import annotations

from typing import Final

BYTES_PER_TOKEN: Final = 4.0
EXPECTED_OUTPUT_TOKENS: Final = 256
GUESS_COUNTS_AS: Final = 4
"""So many requests that were done weigh as much as the guess."""
UNKNOWN_REQUEST_TOKENS: Final = 1_024
"""Of a request of which nothing is known."""


def guess_request_tokens(requests: int, input_bytes: int) -> int:
    """Tokens of a request, on average, from the length of its line in the input file.

    Args:
        requests: How many there are.
        input_bytes: Of all their lines.
    """
    if requests <= 0:
        return UNKNOWN_REQUEST_TOKENS
    return max(1, round(input_bytes / BYTES_PER_TOKEN / requests)) + EXPECTED_OUTPUT_TOKENS


def mean_request_tokens(guess: float, done: int, tokens: float) -> float:
    """Tokens of a request, on average, from the guess and what was seen; at least 1.

    Args:
        guess: What `guess_request_tokens` has said.
        done: Requests that were done.
        tokens: That those have taken in all.
    """
    mean = (guess * GUESS_COUNTS_AS + tokens) / (GUESS_COUNTS_AS + done)
    return mean if mean > 1.0 else 1.0
