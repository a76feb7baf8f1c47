from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.batch_work import (
    LEAST_SEEN,
    UNKNOWN_OUTPUT_TOKENS,
    BatchWork,
    InputSize,
    SeenUsage,
    estimate_work,
    find_tokens_left,
    guess_work,
)

SEEN = SeenUsage(requests=100, file_bytes=50_000, prompt_bytes=40_000, prompt_tokens=8_000, output_tokens=2_000)


def test_a_file_is_taken_for_what_others_of_its_length_took() -> None:
    assert guess_work(25_000, SEEN) == BatchWork(4_000, 1_000)
    assert guess_work(8_000, SeenUsage()) == BatchWork(1_000, 0)


def test_what_was_read_is_taken_for_its_text_and_for_answers_as_long_as_others() -> None:
    size = InputSize(requests=10, prompt_bytes=5_000, prompt_tokens=7, output_limit=1_000)
    assert estimate_work(size, SEEN) == BatchWork(7 + 1_000, 200)
    assert estimate_work(InputSize(requests=10, prompt_bytes=4_000, output_limit=50), SEEN).output_tokens == 50
    assert estimate_work(InputSize(requests=10, unlimited=10), SEEN).output_tokens == 200


@pytest.mark.parametrize("seen", [SeenUsage(), SeenUsage(LEAST_SEEN - 1, 1, 1, 1, 1)])
def test_where_little_was_seen_answers_are_as_long_as_allowed(seen: SeenUsage) -> None:
    size = InputSize(requests=3, prompt_bytes=400, output_limit=128, unlimited=1)
    assert estimate_work(size, seen) == BatchWork(100, 128 + UNKNOWN_OUTPUT_TOKENS)


def test_older_requests_count_for_no_more_than_the_memory() -> None:
    both = SEEN.add(SeenUsage(requests=50, output_tokens=5_000), memory=50)
    assert (both.requests, both.output_tokens) == (100, 6_000)
    assert SeenUsage().add(SEEN, memory=50) == SEEN


def test_an_estimate_is_corrected_by_what_is_done() -> None:
    assert find_tokens_left(0, 0, 1_000, 0) == 1_000
    assert find_tokens_left(100, 0, 1_000, 0) == pytest.approx(1_000)
    assert find_tokens_left(100, 50, 1_000, 50 * 30) == pytest.approx(50 * (80 + 1_500) / 58)
    assert find_tokens_left(100, 100, 1_000, 7) == 0


@given(
    total=st.integers(1, 10_000),
    share=st.floats(0, 1),
    work=st.floats(0, 1e9),
    used=st.floats(0, 1e9),
)
def test_what_is_left_is_never_negative(total: int, share: float, work: float, used: float) -> None:
    assert find_tokens_left(total, round(share * total), work, used) >= 0
