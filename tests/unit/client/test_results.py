from __future__ import annotations

import json
from typing import Any

import pytest

from conserve.client import BrokenAnswerError, RequestFailedError, Result
from conserve.client.results import parse_result


def make(response: Any = None, error: Any = None) -> Result:
    return parse_result(json.dumps({"id": "r", "custom_id": "c", "response": response, "error": error}).encode())


def answer(body: dict[str, Any], status_code: int = 200) -> Result:
    return make({"status_code": status_code, "request_id": "q", "body": body})


def test_texts_and_embeddings() -> None:
    chat = answer({"choices": [{"message": {"content": "hello"}}], "usage": {"total_tokens": 5, "prompt_tokens": 3}})
    assert (chat.ok, chat.text, chat.usage.total_tokens, chat.reason) == (True, "hello", 5, None)
    assert answer({"choices": [{"text": "hello"}]}).text == "hello"
    assert answer({"choices": [{"message": {"content": None}}]}).text == ""
    assert answer({"data": [{"embedding": [0.5, 1.0]}]}).embedding == [0.5, 1.0]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (answer({"error": {"message": "too long"}}, 400), r"c: too long \(HTTP 400\)"),
        (answer({"message": "too long"}, 400), r"c: too long \(HTTP 400\)"),
        (answer({}, 400), r"c: refused \(HTTP 400\)"),
        (make(error={"code": "batch_expired", "message": "over"}), r"c: over \(batch_expired\)"),
        (make(), "c: no reason given"),
    ],
)
def test_what_has_no_answer_says_why(result: Result, reason: str) -> None:
    assert not result.ok
    for ask in (lambda: result.text, lambda: result.embedding, lambda: result.body):
        with pytest.raises(RequestFailedError, match=reason) as caught:
            ask()
        assert caught.value.result is result
    assert result.usage.total_tokens == 0


def test_an_answer_of_another_kind_is_named() -> None:
    with pytest.raises(RequestFailedError, match="has no text"):
        print(answer({"data": []}).text)
    with pytest.raises(RequestFailedError, match="has no embedding"):
        print(answer({"choices": []}).embedding)
    with pytest.raises(BrokenAnswerError, match="is none"):
        parse_result(b"hello")
