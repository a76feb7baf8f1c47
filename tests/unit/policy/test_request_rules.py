"""What is refused of a request before anything reads more of it than its JSON."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.refused_field import RefusedField
from conserve.policy.request_rules import FORBIDDEN, MOST_OF, MOST_STOPS, RequestRules

RULES = RequestRules()
OPEN = RequestRules(media_domains={"images.example.org"})
TEXT = {"type": "text", "text": "What is this?"}


def chat(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts) or "hello"}], **more}


def refuse(body: dict[str, Any], rules: RequestRules = RULES) -> RefusedField:
    with pytest.raises(RefusedField) as caught:
        rules.check(body)
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        {},
        chat(),
        chat(TEXT, TEXT),
        chat(n=8, stop=["\n", "END"], logit_bias={"5": 1.0}, tools=[{"type": "function", "function": {"name": "f"}}]),
        chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        chat(chat_template_kwargs={"enable_thinking": False}, chat_template=None),
        {"prompt": "hello"},
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2, 3] * 1_000},
        {"input": ["text"] * 2_000},
        # Of a wrong type: who reads them says so.
        {"messages": 5, "n": "many", "stop": 7, "prompt": {}, "tools": "x"},
        {"messages": [None, {"content": [None, 1]}]},
    ],
)
def test_what_is_usual_passes(body: dict[str, Any]) -> None:
    RULES.check(body)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_reaches_further_than_the_model_is_refused_by_name(name: str) -> None:
    error = refuse(chat(**{name: {"a": 1}}))
    assert error.param == name
    assert name in str(error)


def test_a_template_is_refused_among_the_arguments_of_templates_too() -> None:
    assert refuse(chat(chat_template_kwargs={"chat_template": "{{ x }}"})).param == "chat_template_kwargs"


ADDRESSES = [
    "http://127.0.0.1:8265/api/jobs/",
    "https://169.254.169.254/latest/meta-data/",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "/etc/passwd",
    "../../etc/passwd",
    "ftp://images.example.org/a.png",
    "http://images.example.org/a.png",
    "https://images.example.org.evil.org/a.png",
    "https://evil.org/images.example.org",
    "https://images.example.org@evil.org/a.png",
    "https://evil.org\\@images.example.org/a.png",
    "https://images.example.org\t.evil.org/a.png",
    "https://[::1/a.png",
    " data:image/png;base64,AAAA",
    "",
]
PARTS = [
    ("image_url", lambda url: {"type": "image_url", "image_url": {"url": url}}),
    ("image_url", lambda url: {"type": "image_url", "image_url": url}),
    ("image_url", lambda url: {"image_url": url}),
    ("input_image", lambda url: {"type": "input_image", "input_image": {"image_url": url}}),
    ("image_url", lambda url: {"type": "input_image", "image_url": url}),
    ("audio_url", lambda url: {"type": "audio_url", "audio_url": {"url": url}}),
    ("video_url", lambda url: {"type": "video_url", "video_url": {"url": url}}),
    ("file", lambda url: {"type": "file", "file": {"file_data": url}}),
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("rules", [RULES, OPEN], ids=["none named", "one named"])
def test_files_and_addresses_are_refused(address: str, rules: RequestRules) -> None:
    for name, make in PARTS:
        error = refuse(chat(TEXT, make(address)), rules)
        assert error.param == f"messages.0.content.1.{name}"
        assert "data:" in str(error)


def test_a_host_that_was_named_is_allowed_by_https() -> None:
    for _, make in PARTS:
        OPEN.check(chat(make("https://images.example.org/a.png?b=c")))
    assert "images.example.org" in str(refuse(chat(PARTS[0][1]("https://example.org/a.png")), OPEN))


@pytest.mark.parametrize("name", ["image_embeds", "audio_embeds", "video_embeds", "image_pil"])
def test_tensors_are_refused(name: str) -> None:
    assert refuse(chat({"type": name, name: "AAAA"})).param == "messages.0.content.0"
    assert refuse(chat({"type": "text", name: {"a": "AAAA"}})).param == "messages.0.content.0"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat(n=129), "n"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 43, "n": 3}, "n"),
        ({"prompt": [[1, 2]] * 129}, "prompt"),
        (chat(stop=["x"] * (MOST_STOPS + 1)), "stop"),
        (chat(stop="x" * 1_001), "stop"),
        (chat(logit_bias={str(number): 1 for number in range(5_000)}), "logit_bias"),
        (chat(bad_words=["x"] * 257), "bad_words"),
    ],
)
def test_what_multiplies_work_is_bounded(body: dict[str, Any], param: str) -> None:
    assert refuse(body).param == param


@pytest.mark.parametrize("name", MOST_OF)
def test_each_list_has_its_bound(name: str) -> None:
    assert str(MOST_OF[name]) in str(refuse({name: [0] * (MOST_OF[name] + 1)}))
    RULES.check({name: [0] * 8})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat(max_tokens=101), "max_tokens"),
        (chat(max_completion_tokens=101), "max_completion_tokens"),
        ({"prompt": [1] * 51}, "prompt"),
        ({"prompt": ["a", "x" * 900]}, "prompt"),
        ({"input": [[1] * 51]}, "input"),
        (chat({"type": "text", "text": "ü" * 450}), "messages"),
        ({"messages": [{"role": "user", "content": "x" * 801}]}, "messages"),
    ],
)
def test_tokens_are_bounded_where_the_operator_says_so(body: dict[str, Any], param: str) -> None:
    RULES.check(body)
    assert refuse(body, RequestRules(max_prompt_tokens=50, max_output_tokens=100)).param == param


def test_depth_is_bounded() -> None:
    def nest(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    RULES.check({"a": nest(63)})
    assert "64 levels" in str(refuse({"a": nest(64)}))
    assert "64 levels" in str(refuse({"a": nest(100_000)}))


NAMES = st.sampled_from(
    [
        "messages",
        "content",
        "type",
        "image_url",
        "url",
        "prompt",
        "n",
        "stop",
        "response_format",
        "schema",
        "pattern",
        "tools",
        "items",
        "maxItems",
        "$ref",
        "text",
        "structured_outputs",
        "chat_template_kwargs",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(NAMES, JSON, max_size=6))
def test_whatever_comes_is_refused_or_not_and_nothing_else(body: dict[str, Any]) -> None:
    with suppress(RefusedField):
        RequestRules(10, 10, 4, 16).check(body)
