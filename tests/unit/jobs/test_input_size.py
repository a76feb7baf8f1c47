from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.jobs.input_size import SizeCounter
from conserve.policy.batch_work import InputSize

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def count(endpoint: str, *bodies: dict[str, Any]) -> InputSize:
    counter = SizeCounter(endpoint)
    for body in bodies:
        counter.add(body)
    return counter.to_size(file_bytes=99)


def test_chats_count_the_text_of_their_messages() -> None:
    parts = [{"type": "text", "text": "four"}, {"type": "image_url", "image_url": {"url": "data:" + 1_000 * "x"}}]
    messages = [{"role": "system", "content": "grüße"}, {"role": "user", "content": parts}]
    size = count(CHAT, {"messages": messages, "max_tokens": 8, "n": 2}, {"messages": [], "max_completion_tokens": 5})
    assert size == InputSize(99, requests=2, prompt_bytes=7 + 4, output_limit=16 + 5)


def test_chats_without_a_limit_are_counted() -> None:
    assert count(CHAT, {"messages": "x"}, {"messages": [], "max_tokens": None}).unlimited == 2


@pytest.mark.parametrize(
    ("prompt", "text_bytes", "tokens", "answers"),
    [
        ("four", 4, 0, 1),
        (["four", "five!"], 9, 0, 2),
        ([1, 2, 3], 0, 3, 1),
        ([[1, 2], [3]], 0, 3, 2),
        (None, 0, 0, 1),
    ],
)
def test_completions_may_have_several_prompts(prompt: Any, text_bytes: int, tokens: int, answers: int) -> None:
    size = count(TEXT, {"prompt": prompt, "max_tokens": 10})
    assert size == InputSize(99, 1, text_bytes, tokens, 10 * answers)
    assert count(TEXT, {"prompt": prompt}).output_limit == 16 * answers


def test_embeddings_have_no_answers() -> None:
    assert count(EMBEDDINGS, {"input": ["four", "five!"]}) == InputSize(99, 1, 9)
    assert count(EMBEDDINGS, {"input": [7, 8]}).prompt_tokens == 2


def test_what_no_model_would_take_is_bounded() -> None:
    size = count(CHAT, {"messages": [], "max_tokens": 10**400, "n": 10**400})
    assert size.output_limit < 10**9
    nested: Any = "four"
    for _ in range(100_000):
        nested = [nested]
    assert count(CHAT, {"messages": nested}).prompt_bytes == 4


TEXTS = st.sampled_from(["", "a", "type", "grüße", "\ud800"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["messages", "prompt", "input", "max_tokens", "max_completion_tokens", "n", "tools"])


@given(st.sampled_from([CHAT, TEXT, EMBEDDINGS]), st.dictionaries(NAMES, VALUES))
def test_whatever_a_client_writes_can_be_counted(endpoint: str, body: dict[str, Any]) -> None:
    size = count(endpoint, body)
    assert size.requests == 1
    assert min(size.prompt_bytes, size.prompt_tokens, size.output_limit, size.unlimited) >= 0
