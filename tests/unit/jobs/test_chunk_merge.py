from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.jobs.chunk_merge import ChunkMerge, DivergedError


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | more


def delta(text: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text} | more, "finish_reason": None}


def whole(text: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text} | more
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "y", "object": "chat.completion", "created": 2, "model": "m", "choices": [choice], "usage": {"t": 1}}


def text_of(chunks: list[dict[str, Any] | None]) -> str:
    return "".join(choice["delta"].get("content", "") for one in chunks if one is not None for choice in one["choices"])


def test_a_stream_that_is_not_disturbed_passes_as_it_is() -> None:
    merge = ChunkMerge("flex", with_usage=True)
    first = merge.add("1", 0, chunk({"index": 0, "delta": {"role": "assistant", "content": ""}}))
    assert first is not None
    assert first["choices"] == [
        {"index": 0, "finish_reason": None, "logprobs": None, "delta": {"role": "assistant", "content": ""}}
    ]
    second = merge.add("1", 1, chunk(delta("ab") | {"logprobs": {"content": [1]}}))
    assert second is not None
    assert second["choices"][0]["delta"] == {"content": "ab"}
    assert second["choices"][0]["logprobs"] == {"content": [1]}
    assert merge.add("1", 2, chunk(usage={"t": 1})) is None
    last, usage = merge.finish(whole("ab"))
    assert last["choices"] == [{"index": 0, "finish_reason": "stop", "logprobs": None, "delta": {}}]
    assert (usage["choices"], usage["usage"]) == ([], {"t": 1})
    assert {(one["id"], one["object"], one["service_tier"]) for one in (first, second, last, usage)} == {
        ("x", "chat.completion.chunk", "flex")
    }


def test_what_comes_again_is_left_out() -> None:
    merge = ChunkMerge("flex", with_usage=False)
    sent = [merge.add("1", number, chunk(delta(text))) for number, text in enumerate(("one", " two"))]
    again = [merge.add("2", number, chunk(delta(text))) for number, text in enumerate(("on", "e two th", "ree"))]
    assert again[0] is None
    assert text_of([*sent, *again]) == "one two three"
    assert text_of(list(merge.finish(whole("one two three four")))) == " four"


def test_an_attempt_that_goes_another_way_ends_the_stream() -> None:
    merge = ChunkMerge("flex", with_usage=False)
    merge.add("1", 0, chunk(delta("one")))
    with pytest.raises(DivergedError):
        merge.add("2", 0, chunk(delta("two")))
    for text in ("two", "on"):
        with pytest.raises(DivergedError):
            list(merge.finish(whole(text)))


def test_after_a_gap_the_rest_comes_from_the_result() -> None:
    merge = ChunkMerge("flex", with_usage=False)
    sent = [merge.add("1", number, chunk(delta(str(number)))) for number in (0, 1, 1, 3, 4)]
    assert text_of(sent) == "01"
    assert text_of(list(merge.finish(whole("01234")))) == "234"


def test_calls_of_tools_pass_in_the_first_attempt_only() -> None:
    merge = ChunkMerge("flex", with_usage=False)
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}
    sent = merge.add("1", 0, chunk({"index": 0, "delta": {"tool_calls": [call]}}))
    assert sent is not None
    assert sent["choices"][0]["delta"]["tool_calls"] == [call]
    with pytest.raises(DivergedError):
        merge.add("2", 0, chunk({"index": 0, "delta": {"tool_calls": [call]}}))


def test_a_result_alone_is_a_stream_of_one_chunk() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    (only,) = ChunkMerge("flex", with_usage=False).finish(whole("ab", tool_calls=[call], reasoning="hm"))
    assert (only["id"], only["object"]) == ("y", "chat.completion.chunk")
    assert only["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "ab",
        "reasoning": "hm",
        "tool_calls": [{"index": 0, **call}],
    }


def test_completions_have_text_in_place_of_deltas() -> None:
    merge = ChunkMerge("flex", with_usage=False)
    plain = {"id": "x", "object": "text_completion", "created": 1, "model": "m"}
    sent = merge.add("1", 0, plain | {"choices": [{"index": 1, "text": "ab", "finish_reason": None}]})
    assert sent is not None
    assert sent["choices"] == [{"index": 1, "finish_reason": None, "logprobs": None, "text": "ab"}]
    choices = [
        {"index": 0, "text": "xy", "finish_reason": "stop"},
        {"index": 1, "text": "abc", "finish_reason": "length"},
    ]
    (last,) = merge.finish(plain | {"choices": choices})
    assert [(one["text"], one["finish_reason"]) for one in last["choices"]] == [("xy", "stop"), ("c", "length")]
    assert last["object"] == "text_completion"


@given(
    st.text(max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 7)), max_size=5),
)
def test_whatever_breaks_off_the_text_comes_once(text: str, attempts: list[tuple[int, int]]) -> None:
    merge = ChunkMerge("flex", with_usage=False)
    sent: list[dict[str, Any] | None] = []
    for fence, (length, step) in enumerate(attempts):
        for number, start in enumerate(range(0, min(length, len(text)), step)):
            sent.append(merge.add(str(fence), number, chunk(delta(text[start : start + step]))))
    sent += merge.finish(whole(text))
    assert text_of(sent) == text
