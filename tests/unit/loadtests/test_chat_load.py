"""What is counted, against a scripted stream and a clock that only the script moves."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from openai import AsyncOpenAI

from loadtests.chat_load import ChatLoad, ChatRecord
from loadtests.chat_prompts import SUBJECTS, TEMPLATES, ChatPrompt, draw_prompts

PROMPT = ChatPrompt("Hello?", 3)


def chunk(content: str | None = None, finish: str | None = None, usage: tuple[int, int] | None = None) -> Any:
    choices = [SimpleNamespace(delta=SimpleNamespace(content=content), finish_reason=finish)] if usage is None else []
    counts = SimpleNamespace(prompt_tokens=usage[0], completion_tokens=usage[1]) if usage is not None else None
    return SimpleNamespace(choices=choices, usage=counts)


ANSWER = [(0.0, chunk("")), (0.5, chunk("a")), (0.1, chunk("b")), (0.3, chunk("c")), (0.0, chunk(None, "stop"))]


class FakeClient:
    """Plays one script of (seconds that pass, chunk or exception) for every chat."""

    def __init__(self, script: list[tuple[float, Any]]) -> None:
        self.now_s = 100.0
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.chat = SimpleNamespace(completions=self)

    def with_options(self, **options: Any) -> FakeClient:
        self.options = options
        return self

    async def create(self, **request: Any) -> FakeStream:
        self.requests.append(request)
        return FakeStream(self)

    def load(self, request_timeout_s: float = 5.0) -> ChatLoad:
        client = cast(AsyncOpenAI, self)
        return ChatLoad(client, "smol", request_timeout_s=request_timeout_s, clock=lambda: self.now_s)


class FakeStream:
    def __init__(self, client: FakeClient) -> None:
        self._client = client

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def __aiter__(self) -> AsyncIterator[Any]:
        for seconds, event in self._client.script:
            self._client.now_s += seconds
            if isinstance(event, Exception):
                raise event
            if event == "hang":
                await asyncio.Event().wait()
            yield event


def send(script: list[tuple[float, Any]], **options: Any) -> ChatRecord:
    client = FakeClient(script)
    return asyncio.run(client.load(**options).send(PROMPT, intended_s=98.0))


def test_latency_counts_from_the_intended_time() -> None:
    record = send([*ANSWER, (0.2, chunk(usage=(7, 3)))])
    assert record.error is None
    assert record.send_lag_ms == pytest.approx(2_000)
    assert record.ttft_ms == pytest.approx(2_500)
    assert record.tbt_ms == pytest.approx((100, 300))
    assert (record.prompt_tokens, record.output_tokens) == (7, 3)
    assert record.ended_s == pytest.approx(101.1)


def test_tokens_that_the_server_does_not_count_are_unknown() -> None:
    record = send(ANSWER)
    assert record.error is None
    assert record.output_tokens is None


def test_an_answer_without_words_has_no_latency_and_is_no_error() -> None:
    record = send([(0.1, chunk("")), (0.0, chunk(None, "stop"))])
    assert (record.error, record.ttft_ms, record.tbt_ms) == (None, None, ())


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (ANSWER[:-1], "EOFError: the stream ended before the answer did"),
        ([*ANSWER[:2], (0.0, ConnectionError("reset"))], "ConnectionError: reset"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(script: list[tuple[float, Any]], error: str) -> None:
    assert send(script).error == error


def test_an_answer_that_hangs_is_given_up() -> None:
    assert send([*ANSWER[:2], (0.0, "hang")], request_timeout_s=0.05).error == "no complete answer within 0.05 s"


def test_arrivals_that_are_overdue_are_sent_and_keep_their_times() -> None:
    client = FakeClient(ANSWER)
    seen: list[ChatRecord] = []
    # The clock stands at the start until a stream moves it, so arrivals up to now are due at once.
    records = asyncio.run(client.load().run([-3.0, -2.0, -1.0], itertools.repeat(PROMPT), on_record=seen.append))
    assert [record.intended_s for record in records] == [97.0, 98.0, 99.0]
    assert all(record.ttft_ms is not None and record.ttft_ms >= 1_500 for record in records)
    assert len(seen) == 3
    assert client.options["max_retries"] == 0
    assert client.requests[0]["stream"] is True
    assert client.requests[0]["stream_options"] == {"include_usage": True}


def test_nothing_is_sent_after_the_stop() -> None:
    client = FakeClient(ANSWER)

    async def run() -> list[ChatRecord]:
        stop = asyncio.Event()
        return await client.load().run([0.0, 1e6], itertools.repeat(PROMPT), stop=stop, on_record=lambda _: stop.set())

    assert len(asyncio.run(run())) == 1


def test_prompts_differ_from_their_beginning() -> None:
    prompts = list(itertools.islice(draw_prompts(seed=1), 2 * len(TEMPLATES) * len(SUBJECTS)))
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert {prompt.max_tokens for prompt in prompts} == set(range(24, 33))
    assert prompts == list(itertools.islice(draw_prompts(seed=1), len(prompts)))
