from __future__ import annotations

from typing import Any

import pytest

from conserve.policy.resumption import Ending, EndRule, Obstacle, find_obstacle

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0},
    COMPLETIONS: {"model": "m", "prompt": "once", "temperature": 0.0},
}


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"max_tokens": 100, "min_tokens": 5, "seed": 7, "user": "u", "top_p": 0.5, "top_k": 3, "min_p": 0.1},
        {"stop": ["\n", "END"], "stop_token_ids": [3], "ignore_eos": True, "include_stop_str_in_output": True},
        {"logit_bias": {"5": 2.0}, "allowed_token_ids": [1, 2], "skip_special_tokens": False},
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1, "bad_words": []},
        {"logprobs": None, "prompt_logprobs": None, "tools": None, "future_field": None},
        {"response_format": {"type": "text"}, "stream": True, "stream_options": {}, "priority": -5, "slo_class": "x"},
    ],
)
def test_greedy_requests_go_on(endpoint: str, extra: dict[str, Any]) -> None:
    assert find_obstacle(endpoint, BODIES[endpoint] | extra) is None


@pytest.mark.parametrize("endpoint", BODIES)
@pytest.mark.parametrize(
    ("extra", "obstacle"),
    [
        ({"temperature": 0.7}, Obstacle.SAMPLING),
        ({"temperature": 0.001}, Obstacle.SAMPLING),
        ({"temperature": 1}, Obstacle.SAMPLING),
        ({"temperature": None}, Obstacle.SAMPLING),
        ({"temperature": False}, Obstacle.SAMPLING),
        ({"temperature": "0"}, Obstacle.SAMPLING),
        ({"use_beam_search": True}, Obstacle.SAMPLING),
        ({"presence_penalty": 0.1}, Obstacle.PENALTY),
        ({"frequency_penalty": -1}, Obstacle.PENALTY),
        ({"repetition_penalty": 1.1}, Obstacle.PENALTY),
        ({"bad_words": ["no"]}, Obstacle.PENALTY),
        ({"logprobs": 0}, Obstacle.LOGPROBS),
        ({"logprobs": True}, Obstacle.LOGPROBS),
        ({"logprobs": 3}, Obstacle.LOGPROBS),
        ({"prompt_logprobs": 0}, Obstacle.LOGPROBS),
        ({"logprob_token_ids": [1]}, Obstacle.LOGPROBS),
        ({"response_format": {"type": "json_object"}}, Obstacle.STRUCTURED),
        ({"structured_outputs": {"choice": ["a"]}}, Obstacle.STRUCTURED),
        ({"tools": [{"type": "function"}]}, Obstacle.STRUCTURED),
        ({"tool_choice": "required"}, Obstacle.STRUCTURED),
        ({"n": 2}, Obstacle.SEVERAL),
        ({"echo": True}, Obstacle.FIELD),
        ({"vllm_xargs": {"a": 1}}, Obstacle.FIELD),
        ({"thinking_token_budget": 5}, Obstacle.FIELD),
        ({"repetition_detection": {"min_count": 2}}, Obstacle.FIELD),
        ({"future_field": 0}, Obstacle.FIELD),
    ],
)
def test_others_begin_anew(endpoint: str, extra: dict[str, Any], obstacle: Obstacle) -> None:
    assert find_obstacle(endpoint, BODIES[endpoint] | extra) is obstacle


def test_the_temperature_must_be_in_the_body() -> None:
    body = {name: value for name, value in BODIES[CHAT].items() if name != "temperature"}
    assert find_obstacle(CHAT, body) is Obstacle.SAMPLING


@pytest.mark.parametrize(
    ("prompt", "obstacle"),
    [
        ([1, 2, 3], None),
        (["once"], Obstacle.SEVERAL),
        (["once", "twice"], Obstacle.SEVERAL),
        ([[1, 2], [3]], Obstacle.SEVERAL),
    ],
)
def test_one_prompt_only(prompt: Any, obstacle: Obstacle | None) -> None:
    assert find_obstacle(COMPLETIONS, BODIES[COMPLETIONS] | {"prompt": prompt}) is obstacle


def test_embeddings_have_no_tokens() -> None:
    assert find_obstacle("/v1/embeddings", {"model": "m", "input": "x"}) is Obstacle.ENDPOINT


@pytest.mark.parametrize(
    ("token_ids", "ending"),
    [
        ([], None),
        ([5], None),
        ([5, 6, 7], None),
        ([5, 6, 7, 8], Ending("length")),
        ([5, 2], Ending("stop")),
        ([5, 9], Ending("stop", 9)),
        ([5, 6, 7, 2], Ending("stop")),
        ([5, 6, 7, 9], Ending("stop", 9)),
    ],
)
def test_an_answer_ends_as_the_engine_would_end_it(token_ids: list[int], ending: Ending | None) -> None:
    assert EndRule(4, eos_token_id=2, stop_token_ids={9}).find_ending(token_ids) == ending


def test_an_end_token_that_is_ignored_ends_nothing() -> None:
    assert EndRule(4, eos_token_id=None).find_ending([2, 2]) is None


@pytest.mark.parametrize("token_ids", [[2, 5], [9, 5, 6], [5, 6, 7, 8, 10]])
def test_tokens_behind_the_end_are_not_this_request_s(token_ids: list[int]) -> None:
    with pytest.raises(ValueError, match="behind the end"):
        EndRule(4, eos_token_id=2, stop_token_ids={9}).find_ending(token_ids)
