from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.jobs.validation import MAX_PROBLEMS, InputValidator, RequestRange, split_lines

URL = "/v1/chat/completions"


def line_of(custom_id: Any = "a", **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body} | changes


def without(name: str) -> dict[str, Any]:
    line = line_of()
    del line[name]
    return line


def check(content: bytes, **limits: Any) -> tuple[InputValidator, list[RequestRange]]:
    validator = InputValidator(URL, ["m", "n"], **({"max_requests": 1000, "max_line_bytes": 10_000} | limits))
    return validator, list(validator.check([content]))


def encode(*lines: Any) -> bytes:
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"


@given(
    st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b"")), max_size=10),
    st.integers(1, 7),
    st.booleans(),
)
def test_lines_are_found_however_the_stream_is_cut(lines: list[bytes], step: int, ended: bool) -> None:
    content = b"\n".join(lines) + (b"\n" if ended else b"")
    chunks = [content[i : i + step] for i in range(0, len(content), step)]
    found = list(split_lines(chunks, 20))
    expected = content.removesuffix(b"\n").split(b"\n") if content.strip(b"\n") or content.count(b"\n") else []
    if content and not content.endswith(b"\n"):
        expected = content.split(b"\n")
    elif content:
        expected = content[:-1].split(b"\n")
    assert [raw.place.line for raw in found] == list(range(1, len(found) + 1))
    assert [content[r.place.offset : r.place.offset + r.place.length] for r in found] == expected
    for raw, text in zip(found, expected, strict=True):
        assert raw.text == (text if len(text) <= 20 else None)


def test_a_valid_file_gives_its_byte_ranges() -> None:
    content = encode(line_of("a"), line_of("ü")) + b"\n  \r\n\n"
    validator, ranges = check(content)
    assert validator.problems == []
    assert (validator.total, validator.model) == (2, "m")
    texts = [json.loads(content[r.offset : r.offset + r.length]) for r in ranges]
    assert [text["custom_id"] for text in texts] == ["a", "ü"]
    assert [r.line for r in ranges] == [1, 2]


def test_crlf_and_a_missing_last_line_end_are_fine() -> None:
    content = json.dumps(line_of("a")).encode() + b"\r\n" + json.dumps(line_of("b")).encode()
    validator, ranges = check(content)
    assert validator.problems == []
    assert len(ranges) == 2


BAD_LINES: list[tuple[Any, str, str | None]] = [
    (b'{"custom_id": ', "invalid_json_line", None),
    (b'{"custom_id": NaN}', "invalid_json_line", None),
    (b"[" * 5_000 + b"]" * 5_000, "invalid_json_line", None),
    (b'\xef\xbb\xbf{"custom_id": "x"}', "invalid_json_line", None),
    (b'{"custom_id": "\xff"}', "invalid_encoding", None),
    ([1], "invalid_request", None),
    (without("custom_id"), "missing_required_parameter", "custom_id"),
    (line_of(7), "invalid_custom_id", "custom_id"),
    (line_of(""), "invalid_custom_id", "custom_id"),
    (line_of("x" * 513), "invalid_custom_id", "custom_id"),
    (line_of("\ud800"), "invalid_custom_id", "custom_id"),
    (line_of("first"), "duplicate_custom_id", "custom_id"),
    (without("method"), "missing_required_parameter", "method"),
    (line_of(method="GET"), "invalid_method", "method"),
    (without("url"), "missing_required_parameter", "url"),
    (line_of(url="/v1/completions"), "invalid_url", "url"),
    (without("body"), "missing_required_parameter", "body"),
    (line_of(body="text"), "invalid_body", "body"),
    (line_of(body={"model": "m", "stream": True}), "stream_not_supported", "body.stream"),
    (line_of(body={}), "missing_required_parameter", "body.model"),
    (line_of(body={"model": "other"}), "model_not_found", "body.model"),
    (line_of(body={"model": ["m"]}), "model_not_found", "body.model"),
    (line_of(body={"model": "n"}), "mismatched_model", "body.model"),
    (line_of(body={"model": "m", "text": "x" * 10_000}), "line_too_long", None),
]


@pytest.mark.parametrize(("bad", "code", "param"), BAD_LINES, ids=[f"{i}-{bad[1]}" for i, bad in enumerate(BAD_LINES)])
def test_a_bad_line_is_named(bad: Any, code: str, param: str | None) -> None:
    limit = 10_001 if code != "line_too_long" else 5_000
    validator, ranges = check(encode(line_of("first"), bad, line_of("last")), max_line_bytes=limit)
    (problem,) = validator.problems
    assert (problem.code, problem.param, problem.line) == (code, param, 2)
    assert problem.message
    assert [r.line for r in ranges] == [1, 3]


def test_a_blank_line_between_requests_is_named() -> None:
    validator, _ = check(encode(line_of("a"), b"", line_of("b")))
    assert [(p.code, p.line) for p in validator.problems] == [("invalid_json_line", 2)]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \n"])
def test_an_empty_file_is_refused(content: bytes) -> None:
    validator, _ = check(content)
    assert [(p.code, p.line) for p in validator.problems] == [("empty_file", None)]


def test_too_many_lines_are_refused() -> None:
    validator, _ = check(encode(*(line_of(str(i)) for i in range(5))), max_requests=4)
    assert [(p.code, p.line) for p in validator.problems] == [("too_many_tasks", 5)]
    validator, _ = check(encode(*(line_of(str(i)) for i in range(4))), max_requests=4)
    assert validator.problems == []


def embeddings_of(*inputs: Any) -> bytes:
    return encode(
        *(line_of(str(i), url="/v1/embeddings", body={"model": "m", "input": one}) for i, one in enumerate(inputs))
    )


def test_too_many_inputs_to_embed_are_refused() -> None:
    for content, expected in (
        (embeddings_of("a", ["a", "b"], [1, 2, 3, 4], [[1, 2], [3]]), []),
        (embeddings_of("a", ["a", "b"], "c", [[1, 2], [3]], "d"), [("too_many_inputs", "body.input", 5)]),
    ):
        validator = InputValidator("/v1/embeddings", ["m"], 6, 10_000)
        list(validator.check([content]))
        assert [(p.code, p.param, p.line) for p in validator.problems] == expected


def test_reports_end_at_a_limit() -> None:
    validator, _ = check(b"x\n" * 500)
    assert len(validator.problems) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"chat_template": "{{ x }}"}, "body.chat_template"),
        ({"n": 1_000}, "body.n"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x/"}}}},
            "response_format",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
            "body.messages.0.content.0.image_url",
        ),
    ],
)
def test_lines_keep_to_the_rules_of_online_requests(more: dict[str, Any], param: str) -> None:
    line = line_of()
    line["body"] |= more
    validator, ranges = check(encode(line_of("other"), line))
    assert len(ranges) == 1
    (problem,) = validator.problems
    assert (problem.code, problem.line) == ("not_allowed", 2)
    assert param in str(problem.param)
