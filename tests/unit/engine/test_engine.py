from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from conserve.engine.arrival_board import SLOTS, ArrivalBoard
from conserve.engine.contract import AttemptTimeout, EngineDied, EngineFault, EngineGone, InvalidRequest
from conserve.engine.engine import CoServeEngine
from conserve.engine.page import Counters, EnginePage, Knobs
from conserve.engine.pass_control import ANNOUNCEMENT
from conserve.engine.vllm_compat import ChatCompletionRequest, CompletionRequest, EngineDeadError
from conserve.policy.harvest_rate import IterationCosts
from conserve.policy.priority import OFFLINE_PRIORITY, ONLINE_PRIORITY

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
BODIES = {CHAT: BODY, COMPLETIONS: {"model": "m", "prompt": ["once", "twice"]}}


class Answer(BaseModel):
    id: str = "chatcmpl-1"
    usage: dict[str, int] = {"prompt_tokens": 5, "completion_tokens": 7}


class Refusal(BaseModel):
    error: dict[str, Any]


class FakeServing:
    """Stands for the OpenAI layer; like vLLM 0.32 it answers a cancelled call with an error body."""

    def __init__(self, answer: Any = None, fault: Exception | None = None, hangs: bool = False) -> None:
        self.answer = answer or Answer()
        self.fault = fault
        self.hangs = hangs
        self.requests: list[Any] = []
        self.asked = asyncio.Event()
        self.let_go = 0

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        self.requests.append(request)
        self.asked.set()
        if self.fault:
            raise self.fault
        if self.hangs:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.let_go += 1
                yield Refusal(error={"message": "Client disconnected", "code": 400})
                return
        yield self.answer

    completions = embeddings = chat


async def test_offline_request_gets_its_priority_whatever_the_line_says() -> None:
    serving = FakeServing()
    engine = CoServeEngine(serving)
    result = await engine.offline(CHAT, {**BODY, "priority": -5, "stream": True}, 10)
    assert result.status_code == 200
    assert (result.prompt_tokens, result.output_tokens) == (5, 7)
    (request,) = serving.requests
    assert request.priority == OFFLINE_PRIORITY > ONLINE_PRIORITY
    assert request.stream is False
    stats = engine.stats()
    assert (stats.offline_requests, stats.offline_prompt_tokens, stats.offline_output_tokens) == (1, 5, 7)
    assert stats.offline_running == 0


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "extra",
    [
        {"priority": -5},
        {"priority": "first"},
        {"slo_class": "interactive"},
        {"slo_class": ["no", "class"]},
        {"service_tier": "priority"},
        {"vllm_xargs": {"priority": -5, "slo_class": "interactive"}},
        {"extra_body": {"priority": -5}, "Priority": -5, "X-Vllm-Priority": "-5"},
        {"n": 3, "priority": -5},
    ],
)
async def test_nothing_in_a_line_raises_its_priority(endpoint: str, extra: dict[str, Any]) -> None:
    serving = FakeServing()
    engine = CoServeEngine(serving, dict.fromkeys(["default", "interactive"], 500.0))
    result = await engine.offline(endpoint, {**BODIES[endpoint], **extra}, 10)
    assert result.status_code == 200
    (request,) = serving.requests
    assert request.priority == OFFLINE_PRIORITY
    assert not hasattr(request, "slo_class")


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
async def test_beam_search_would_run_at_online_priority_and_is_refused(endpoint: str) -> None:
    serving = FakeServing()
    result = await CoServeEngine(serving).offline(endpoint, {**BODIES[endpoint], "use_beam_search": True, "n": 2}, 10)
    assert (result.status_code, result.body["error"]["param"]) == (400, "use_beam_search")
    assert serving.requests == []


async def test_completions_go_their_own_way() -> None:
    serving = FakeServing()
    await CoServeEngine(serving).offline("/v1/completions", {"model": "m", "prompt": "once"}, 10)
    assert serving.requests[0].prompt == "once"


@pytest.mark.parametrize("content", [{"input": ["once", "twice"]}, {"messages": BODY["messages"]}])
async def test_embeddings_go_their_own_way(content: dict[str, Any]) -> None:
    serving = FakeServing(Answer(usage={"prompt_tokens": 4, "total_tokens": 4}))
    body = {"model": "m", **content, "priority": -5, "stream": False, "slo_class": "x"}
    result = await CoServeEngine(serving).offline("/v1/embeddings", body, 10)
    assert (result.status_code, result.prompt_tokens, result.output_tokens) == (200, 4, 0)
    (request,) = serving.requests
    assert request.priority == OFFLINE_PRIORITY
    assert not request.model_extra
    assert request.model_dump(include=set(content), exclude_unset=True) == content


async def test_a_wrong_embedding_names_its_field() -> None:
    result = await CoServeEngine(FakeServing()).offline("/v1/embeddings", {"model": "m", "input": {"a": 1}}, 10)
    assert result.status_code == 400
    assert "input" in result.body["error"]["message"]


async def test_wrong_body_is_answered_not_raised() -> None:
    result = await CoServeEngine(FakeServing()).offline(CHAT, {"model": "m", "messages": "x"}, 10)
    assert result.status_code == 400
    assert "messages" in result.body["error"]["message"]


@pytest.mark.parametrize(
    "extra", [{"stream_options": {"include_usage": True}}, {"top_logprobs": 3}, {"structured_outputs": 5}]
)
async def test_body_that_the_engine_s_validators_refuse_is_answered_too(extra: dict[str, Any]) -> None:
    serving = FakeServing()
    result = await CoServeEngine(serving).offline(CHAT, {**BODY, **extra}, 10)
    assert result.status_code == 400
    assert serving.requests == []


async def test_refusal_of_the_engine_is_an_answer() -> None:
    serving = FakeServing(Refusal(error={"message": "prompt too long", "code": 400}))
    result = await CoServeEngine(serving).offline(CHAT, BODY, 10)
    assert (result.status_code, result.body["error"]["message"]) == (400, "prompt too long")


@pytest.mark.parametrize(
    "serving",
    [
        FakeServing(fault=RuntimeError("engine died")),
        FakeServing(Refusal(error={"message": "engine died", "code": 500})),
    ],
)
async def test_fault_of_the_engine_may_be_tried_again(serving: FakeServing) -> None:
    with pytest.raises(EngineFault, match="engine died"):
        await CoServeEngine(serving).offline(CHAT, BODY, 10)


async def test_only_what_an_engine_worked_on_may_have_ended_it() -> None:
    serving = FakeServing(fault=EngineDeadError())
    engine = CoServeEngine(serving)
    with pytest.raises(EngineDied):
        await engine.offline(CHAT, BODY, 10)
    for known in (engine, CoServeEngine(serving, has_died=lambda: True)):
        with pytest.raises(EngineGone):
            await known.offline(CHAT, BODY, 10)
    assert len(serving.requests) == 1


async def test_time_is_bounded() -> None:
    serving = FakeServing(hangs=True)
    engine = CoServeEngine(serving)
    with pytest.raises(AttemptTimeout, match=r"0\.01 s"):
        await engine.offline(CHAT, BODY, 0.01)
    assert serving.let_go == 1
    assert engine.stats().offline_running == 0


async def test_cancellation_comes_through_though_the_engine_swallows_it() -> None:
    serving = FakeServing(hangs=True)
    engine = CoServeEngine(serving)
    task = asyncio.create_task(engine.offline(CHAT, BODY, 60))
    await serving.asked.wait()
    assert engine.stats().offline_running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert serving.let_go == 1
    assert engine.stats().offline_running == 0


async def test_online_requests_are_counted_until_they_end() -> None:
    engine = CoServeEngine(FakeServing())
    gate = asyncio.Event()

    async def answer() -> AsyncGenerator[str, None]:
        await gate.wait()
        yield "a"
        yield "b"

    stream = engine.online(answer())
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert (engine.stats().online_waiting, engine.stats().online_running) == (1, 0)
    gate.set()
    assert await first == "a"
    assert (engine.stats().online_waiting, engine.stats().online_running) == (0, 1)
    await stream.aclose()
    stats = engine.stats()
    assert (stats.online_waiting, stats.online_running, stats.online_requests) == (0, 0, 1)
    assert stats.online_busy_s > 0


async def test_client_that_leaves_closes_the_engine_s_stream() -> None:
    closed = False

    async def answer() -> AsyncGenerator[str, None]:
        nonlocal closed
        try:
            while True:
                yield "a"
        finally:
            closed = True

    stream = CoServeEngine(FakeServing()).online(answer())
    assert await anext(stream) == "a"
    await stream.aclose()
    assert closed


def test_online_priority_wins_over_the_client_s() -> None:
    request = ChatCompletionRequest.model_validate({**BODY, "priority": -7})
    CoServeEngine(FakeServing()).claim_online(request)
    assert request.priority == ONLINE_PRIORITY


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("extra", "priority"),
    [({}, 0), ({"slo_class": None}, 0), ({"slo_class": "default"}, 0), ({"slo_class": "b", "priority": -1}, 2)],
)
def test_online_class_is_a_priority(endpoint: str, extra: dict[str, Any], priority: int) -> None:
    kind = ChatCompletionRequest if endpoint == CHAT else CompletionRequest
    request = kind.model_validate({**BODIES[endpoint], **extra})
    CoServeEngine(FakeServing(), dict.fromkeys(["default", "a", "b"], 500.0)).claim_online(request)
    assert request.priority == ONLINE_PRIORITY + priority


@pytest.mark.parametrize("name", ["c", "", 1, True, ["a"], {"a": 1}])
def test_unknown_class_is_refused_with_those_that_are(name: Any) -> None:
    request = ChatCompletionRequest.model_validate({**BODY, "slo_class": name})
    with pytest.raises(InvalidRequest, match="'default', 'a'") as caught:
        CoServeEngine(FakeServing(), dict.fromkeys(["default", "a"], 500.0)).claim_online(request)
    assert caught.value.param == "slo_class"


@pytest.fixture
def board() -> Iterator[ArrivalBoard]:
    board = ArrivalBoard.create()
    yield board
    board.remove()


def claim(engine: CoServeEngine, endpoint: str = CHAT, **extra: Any) -> tuple[Any, int]:
    kind = ChatCompletionRequest if endpoint == CHAT else CompletionRequest
    request = kind.model_validate({**BODIES[endpoint], **extra})
    return request, engine.claim_online(request)


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_an_online_request_is_announced_and_carries_its_number(board: ArrivalBoard, endpoint: str) -> None:
    engine = CoServeEngine(FakeServing(), {"default": 500.0, "fast": 100.0}, board=board)
    _, first = claim(engine, endpoint)
    before_s = time.monotonic()
    request, number = claim(engine, endpoint, slo_class="fast", n=4, vllm_xargs={"mine": 1, ANNOUNCEMENT: first})
    assert request.vllm_xargs == {"mine": 1, ANNOUNCEMENT: number}
    params = request.to_sampling_params(10, {})
    assert params.extra_args[ANNOUNCEMENT] == number
    assert params.clone().extra_args[ANNOUNCEMENT] == number, "each of several requests has it"
    board.settle(first)
    pending = board.pending()
    assert pending is not None
    assert before_s + 0.1 <= pending.due_s <= time.monotonic() + 0.1


async def test_an_announcement_ends_with_the_first_answer(board: ArrivalBoard) -> None:
    async def answer() -> AsyncGenerator[str, None]:
        yield "a"
        yield "b"

    engine = CoServeEngine(FakeServing(), board=board)
    _, number = claim(engine)
    stream = engine.online(answer(), number)
    assert board.pending() is not None
    await anext(stream)
    assert board.pending() is None
    await stream.aclose()


async def test_an_announcement_ends_with_a_client_that_leaves_and_with_a_request_that_fails(
    board: ArrivalBoard,
) -> None:
    async def hang() -> AsyncGenerator[str, None]:
        await asyncio.Event().wait()
        yield "never"

    async def fail() -> AsyncGenerator[str, None]:
        raise ValueError("no")
        yield "never"

    engine = CoServeEngine(FakeServing(), board=board)
    for _ in range(3):
        task = asyncio.ensure_future(anext(engine.online(hang(), claim(engine)[1])))
        await asyncio.sleep(0)
        assert board.pending() is not None
        task.cancel()
        await asyncio.wait([task])
        assert board.pending() is None
    with pytest.raises(ValueError, match="no"):
        await anext(engine.online(fail(), claim(engine)[1]))
    assert board.pending() is None


async def test_many_refused_requests_leave_nothing_behind(board: ArrivalBoard) -> None:
    engine = CoServeEngine(FakeServing(), board=board)
    for _ in range(3 * SLOTS):
        engine.withdraw(claim(engine)[1])
    assert board.pending() is None
    assert claim(engine)[1] > 0
    assert board.pending() is not None


def test_nobody_is_announced_to_an_engine_without_safepoints() -> None:
    request, number = claim(CoServeEngine(FakeServing()))
    assert (number, request.vllm_xargs) == (0, None)


def test_scheduler_s_counters_are_read_from_the_page() -> None:
    page = EnginePage.create()
    try:
        engine = CoServeEngine(FakeServing(), page=page)
        assert engine.scheduler_counters() == Counters()
        EnginePage(page.path).write_counters(Counters(iterations=7, schedule_s=0.5))
        assert engine.scheduler_counters() == Counters(iterations=7, schedule_s=0.5)
    finally:
        page.remove()


def test_stock_scheduler_has_no_counters() -> None:
    assert CoServeEngine(FakeServing()).scheduler_counters() is None


class StreamingServing(FakeServing):
    """Answers with the events that it is given."""

    def __init__(self, *events: str | Exception) -> None:
        super().__init__()
        self.events = events

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        self.requests.append(request)
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event

    completions = embeddings = chat


def event(content: str, **more: Any) -> str:
    choices = [{"index": 0, "delta": {"content": content}, "finish_reason": None}]
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | more
    return f"data: {json.dumps(chunk)}\n\n"


async def test_chunks_of_an_offline_request_are_passed_on_and_put_together() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    serving = StreamingServing(event("a"), event("b") + event("", choices=[], usage=usage), "data: [DONE]\n\n")
    heard: list[Any] = []
    engine = CoServeEngine(serving)
    result = await engine.offline(CHAT, {**BODY, "priority": -5}, 10, on_chunk=heard.append)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in heard[:2]] == ["a", "b"]
    assert result.body["choices"][0]["message"]["content"] == "ab"
    assert (result.status_code, result.prompt_tokens, result.output_tokens) == (200, 5, 2)
    (request,) = serving.requests
    assert (request.stream, request.stream_options.include_usage, request.priority) == (True, True, OFFLINE_PRIORITY)


async def test_a_stream_may_end_with_an_error() -> None:
    refusal = 'data: {"error": {"message": "too long", "code": 400}}\n\n'
    result = await CoServeEngine(StreamingServing(event("a"), refusal)).offline(
        CHAT, BODY, 10, on_chunk=lambda chunk: None
    )
    assert result.status_code == 400
    for events in (
        (event("a"), 'data: {"error": {"message": "broken", "code": 500}}\n\n'),
        (event("a"), OSError()),
        (),
    ):
        with pytest.raises(EngineFault):
            await CoServeEngine(StreamingServing(*events)).offline(CHAT, BODY, 10, on_chunk=lambda chunk: None)


def test_costs_of_iterations_are_read_from_the_page_and_a_floor_is_written_to_it() -> None:
    page = EnginePage.create()
    try:
        engine = CoServeEngine(FakeServing(), page=page)
        assert not engine.stats().costs.known
        page.write_counters(Counters(iteration_ms=20.0, prompt_token_ms=0.5, decode_ms=1.0))
        assert engine.stats().costs == IterationCosts(20.0, 0.5, 1.0)
        page.write_knobs(Knobs(safepoints_off=1.0))
        engine.grant_floor(0.25)
        assert page.read_knobs() == Knobs(safepoints_off=1.0, offline_floor=0.25)
        engine.grant_floor(0.0)
        engine.pause_offline(True)
        assert page.read_knobs() == Knobs(safepoints_off=1.0, offline_paused=1.0)
        engine.pause_offline(False)
        assert page.read_knobs() == Knobs(safepoints_off=1.0)
    finally:
        page.remove()


def test_what_the_scheduler_has_done_is_counted_and_unknown_of_the_stock_one() -> None:
    page = EnginePage.create()
    try:
        page.write_counters(
            Counters(
                stops=3,
                resumed_passes=2,
                offline_preemptions=1,
                restored_blocks=10,
                restored_in_vain=4,
                host_block_tokens=16,
                offline_prefill_tokens=100,
                offline_decode_tokens=20,
            )
        )
        stats = CoServeEngine(FakeServing(), page=page).stats()
    finally:
        page.remove()
    assert (stats.stops, stats.resumed_passes, stats.offline_preemptions) == (3, 2, 1)
    assert (stats.restored_tokens, stats.offline_computed_tokens) == (96, 120)
    stock = CoServeEngine(FakeServing()).stats()
    assert (stock.stops, stock.restored_tokens, stock.offline_computed_tokens) == (None, None, None)


def test_stock_scheduler_has_no_floor_and_no_costs() -> None:
    engine = CoServeEngine(FakeServing())
    engine.grant_floor(0.25)
    assert not engine.stats().costs.known
