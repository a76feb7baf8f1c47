from __future__ import annotations

from conserve.policy.request_size import (
    EXPECTED_OUTPUT_TOKENS,
    UNKNOWN_REQUEST_TOKENS,
    guess_request_tokens,
    mean_request_tokens,
)


def test_a_guess_comes_from_the_length_of_lines() -> None:
    assert guess_request_tokens(10, 40_000) == 1_000 + EXPECTED_OUTPUT_TOKENS
    assert guess_request_tokens(0, 40_000) == UNKNOWN_REQUEST_TOKENS


def test_what_was_seen_soon_counts_more_than_the_guess() -> None:
    assert mean_request_tokens(1_000, 0, 0) == 1_000
    assert mean_request_tokens(1_000, 4, 400) == 550
    assert round(mean_request_tokens(1_000, 4_000, 400_000)) == 101
    assert mean_request_tokens(0, 5, 0) == 1
