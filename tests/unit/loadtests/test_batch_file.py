from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.batch_file import (
    BatchFileError,
    ResultLine,
    TokenCount,
    count_tokens,
    find_id_problems,
    make_lines,
    read_result_lines,
    write_batch_file,
)
from loadtests.documents import Document

DOCUMENTS = [Document("one", "The first text."), Document("two", "The second text, ünïcode.")]


def result(custom_id: str, usage: tuple[int, int] | None = (10, 2)) -> ResultLine:
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": "A summary."}}]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return ResultLine.model_validate(
        {"id": "r", "custom_id": custom_id, "response": {"status_code": 200, "request_id": "q", "body": body}}
    )


def test_lines_are_what_the_batch_api_takes(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    write_batch_file(path, make_lines(DOCUMENTS, 5, "smol", 48))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({line["custom_id"] for line in lines}) == 5
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    for line in lines:
        assert set(line) == {"custom_id", "method", "url", "body"}
        assert set(line["body"]) == {"model", "messages", "max_tokens", "temperature"}
        assert (line["body"]["model"], line["body"]["max_tokens"], line["body"]["temperature"]) == ("smol", 48, 0)
    assert DOCUMENTS[1].text in lines[1]["body"]["messages"][-1]["content"]


def test_a_document_used_again_gets_another_task() -> None:
    questions = [line["body"]["messages"][-1]["content"] for line in make_lines(DOCUMENTS, 8, "smol", 48)]
    assert len(set(questions)) == 8


@pytest.mark.parametrize(("documents", "requests", "max_tokens"), [([], 1, 1), (DOCUMENTS, 0, 1), (DOCUMENTS, 1, 0)])
def test_nothing_to_do_is_an_error(documents: list[Document], requests: int, max_tokens: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        make_lines(documents, requests, "smol", max_tokens)


def test_results_are_read() -> None:
    content = (result("a").model_dump_json() + "\n").encode()
    failed = b'{"custom_id": "b", "response": null, "error": {"code": "x", "message": "too long"}}\n'
    lines = read_result_lines(content + failed)
    assert [line.text for line in lines] == ["A summary.", None]
    assert count_tokens(lines) == TokenCount(prompt=10, output=2)


def test_a_broken_result_file_is_named_by_line() -> None:
    with pytest.raises(BatchFileError, match="result line 2: custom_id: Field required"):
        read_result_lines(b'{"custom_id": "a"}\n{"response": null}\n')


def test_tokens_that_are_not_all_known_are_not_given() -> None:
    assert count_tokens([result("a"), result("b", usage=None)]) is None
    assert count_tokens([]) is None


def test_every_id_exactly_once() -> None:
    assert find_id_problems(["a", "b"], [result("b"), result("a")]) == []
    assert find_id_problems(["a", "b"], [result("a"), result("a"), result("c")]) == [
        "1 custom_id without a result: b",
        "1 custom_id with more than one result: a",
        "1 custom_id never asked for: c",
    ]
