from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress

from conserve.config import load_settings
from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.contract import EngineDied, EngineGone
from conserve.engine.engine import CoServeEngine
from conserve.engine.engine_outlook import EngineSizes
from conserve.policy.priority import ONLINE_PRIORITY
from conserve.telemetry.metric import NO_RECORDER
from deployments import replica
from deployments.errors import install_error_handlers
from deployments.online_metrics import OnlineMetrics
from deployments.overload import OverloadGuard, raise_overload
from deployments.ray_compat import RawRequestInfo
from deployments.replica import ConServeReplica, bind_cpu_threads
from deployments.routing_report import MARK_HEADER, Mark, Received, RoutingReport

BIND = "VLLM_CPU_OMP_THREADS_BIND"
SIZES = EngineSizes(max_num_seqs=16, max_num_batched_tokens=512, kv_tokens=10_000, tbt_slo_ms=100.0)
SETTINGS = load_settings(
    {"slo": {"ttft_slo_ms": 500, "classes": {"fast": {"ttft_slo_ms": 1_000, "tbt_slo_ms": 100}}}}, {}
)
METHODS = ["chat", "completions", "embeddings"]


class Asked(NamedTuple):
    priority: int
    headers: dict[str, str] | None


class UnstartedReplica(ConServeReplica):
    """A replica without an engine: there is nothing to stop."""

    def __del__(self) -> None:
        pass


@pytest.fixture
def asked() -> list[Asked]:
    """What has come to the `LLMServer` below the replica."""
    return []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, asked: list[Asked]) -> ConServeReplica:
    async def answer(
        self: Any, request: Any, raw_request_info: RawRequestInfo | None = None
    ) -> AsyncGenerator[str, None]:
        asked.append(Asked(request.priority, raw_request_info.headers if raw_request_info else None))

        async def stream() -> AsyncGenerator[str, None]:
            yield "hello"

        return stream()

    for method in METHODS:
        monkeypatch.setattr(LLMServer, method, answer)
    server = object.__new__(UnstartedReplica)
    engine: Any = None
    server._co_engine = CoServeEngine(engine, {"default": 500.0, "fast": 100.0})
    server._settings = load_settings({}, {})
    server._online = OnlineMetrics(NO_RECORDER, server._settings.slo)
    server._guard = OverloadGuard(SETTINGS, server._co_engine, server._find_conditions, server._online)
    server._sizes, server._received, server._reports = SIZES, Received(), 0
    return server


@pytest.mark.parametrize("method", METHODS)
async def test_the_engine_never_sees_a_client_s_priority(
    server: ConServeReplica, asked: list[Asked], method: str
) -> None:
    headers = {"x-vllm-priority": "-7", "X-Vllm-Priority": "-8", "x-request-id": "1"}
    stream = await getattr(server, method)(SimpleNamespace(priority=-7), RawRequestInfo(headers))
    assert [item async for item in stream] == ["hello"]
    assert asked == [Asked(ONLINE_PRIORITY, {"x-request-id": "1"})]
    assert server._co_engine.stats().online_requests == 1
    assert len(headers) == 3


@pytest.mark.parametrize("method", ["chat", "completions"])
async def test_the_announcement_of_a_request_that_the_engine_refuses_is_taken_back(
    server: ConServeReplica, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    board = ArrivalBoard.create()
    try:
        server._co_engine = CoServeEngine(server._co_engine._serving, board=board)

        async def refuse(self: Any, request: Any, raw_request_info: Any = None) -> Any:
            assert board.pending() is not None
            raise ValueError("no")

        monkeypatch.setattr(LLMServer, method, refuse)
        with pytest.raises(ValueError, match="no"):
            await getattr(server, method)(SimpleNamespace(priority=0, vllm_xargs=None))
        assert board.pending() is None
    finally:
        board.remove()


async def test_what_is_on_the_way_is_reported_until_its_first_token(
    server: ConServeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        def routing_stats(self) -> dict[str, Any]:
            return {"of Ray": 1}

    async def answer(self: Any, request: Any, raw_request_info: Any = None) -> AsyncGenerator[str, None]:
        async def stream() -> AsyncGenerator[str, None]:
            yield "hello"
            await asyncio.Event().wait()

        return stream()

    monkeypatch.setattr(LLMServer, "chat", answer)
    monkeypatch.setattr(replica, "count_queued_tokens", lambda client: 0)
    monkeypatch.setattr(replica, "find_client", lambda engine: None)
    server.engine = Engine()
    header = {MARK_HEADER: Mark("front", 7, 300.0).to_header()}
    stream = await server.chat(SimpleNamespace(priority=0), RawRequestInfo(header))

    async def report() -> RoutingReport:
        stats = await server.record_routing_stats()
        assert stats["of Ray"] == 1
        found = RoutingReport.read(stats)
        assert found is not None
        return found

    first = await report()
    assert (first.received, first.prompt_tokens) == ({"front": 7}, 0.0)
    assert await anext(stream) == "hello"
    second = await report()
    assert (second.number, second.prompt_tokens, second.free_slots) == (first.number + 1, 0.0, SIZES.max_num_seqs - 1)
    await stream.aclose()
    assert (await report()).free_slots == SIZES.max_num_seqs


async def test_a_replica_whose_engine_has_ended_answers_nothing_and_says_nothing(
    server: ConServeReplica, asked: list[Asked]
) -> None:
    server._co_engine = CoServeEngine(server._co_engine._serving, has_died=lambda: True)
    server.engine = SimpleNamespace(routing_stats=dict)
    with pytest.raises(EngineGone):
        await server.chat(SimpleNamespace(priority=0))
    assert asked == []
    assert await server.record_routing_stats() == {}


@pytest.mark.parametrize("parts", [[], ["hello"]])
async def test_an_error_of_an_engine_that_has_ended_is_no_answer(
    server: ConServeReplica, monkeypatch: pytest.MonkeyPatch, parts: list[str]
) -> None:
    died = False

    async def fail(self: Any, request: Any, raw_request_info: Any = None) -> AsyncGenerator[str, None]:
        async def stream() -> AsyncGenerator[str, None]:
            nonlocal died
            for part in parts:
                yield part
            died = True
            yield 'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n'

        return stream()

    monkeypatch.setattr(LLMServer, "chat", fail)
    server._co_engine = CoServeEngine(server._co_engine._serving, has_died=lambda: died)
    answer = await server.chat(SimpleNamespace(priority=0))
    assert [await anext(answer) for _ in parts] == parts
    with pytest.raises(EngineDied):
        await anext(answer)


@pytest.mark.parametrize("method", METHODS)
async def test_class_is_a_priority(server: ConServeReplica, asked: list[Asked], method: str) -> None:
    await getattr(server, method)(SimpleNamespace(priority=0, slo_class="fast"))
    assert asked == [Asked(ONLINE_PRIORITY + 1, None)]


@pytest.mark.parametrize("method", METHODS)
async def test_unknown_class_is_answered_by_the_front_with_400(
    server: ConServeReplica, asked: list[Asked], method: str
) -> None:
    request = SimpleNamespace(priority=0, slo_class="none")
    response = await ask_through_front(await getattr(server, method)(request))
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["type"]) == ("slo_class", "invalid_request_error")
    assert "'default', 'fast'" in error["message"]
    assert asked == []
    assert server._co_engine.stats().online_requests == 0


async def test_one_too_many_is_answered_by_the_front_with_429(server: ConServeReplica, asked: list[Asked]) -> None:
    settings = load_settings({"overload": {"refuse": False, "max_waiting_requests": 2}}, {})
    server._guard = OverloadGuard(settings, server._co_engine, server._find_conditions, server._online)
    answers = [await server.chat(SimpleNamespace(priority=0)) for _ in range(2)]
    response = await ask_through_front(raise_overload(await server.chat(SimpleNamespace(priority=0))))
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert (response.json()["error"]["code"], response.json()["error"]["type"]) == ("overloaded", "rate_limit_error")
    assert len(asked) == 2
    assert [item async for item in answers[0]] == ["hello"]
    assert await anext(answers[1]) == "hello"
    for _ in range(2):
        assert await anext(await server.chat(SimpleNamespace(priority=0))) == "hello"


async def ask_through_front(stream: AsyncGenerator[Any, None]) -> httpx.Response:
    """What a client gets when a replica answers so."""
    ingress: Any = SimpleNamespace(_get_response=lambda **_: stream)
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/chat")
    async def chat() -> Any:
        body: Any = None
        return await OpenAiIngress._process_llm_request(ingress, body, "chat")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get("/chat")


@pytest.mark.parametrize(
    ("rank", "settings", "cores", "bound"),
    [
        (0, {"replicas": 2}, [0, 1], "0"),
        (1, {"replicas": 2}, [0, 1], "1"),
        (1, {"replicas": 2}, [4, 5, 6, 7], "6,7"),
        (2, {"replicas": 3}, [0, 1], "0"),  # more replicas than cores: they have to share
        (0, {"replicas": 1}, [0, 1], "unset"),
        (0, {"replicas": 2, "engine": {"cpu_threads_bind": "0-3"}}, [0, 1], "0-3"),
    ],
)
def test_replicas_of_a_node_get_cores_of_their_own(
    monkeypatch: pytest.MonkeyPatch, rank: int, settings: dict[str, Any], cores: list[int], bound: str
) -> None:
    monkeypatch.setenv(BIND, "unset")
    context = SimpleNamespace(rank=SimpleNamespace(local_rank=rank))
    monkeypatch.setattr(replica.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(replica.psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: cores))
    bind_cpu_threads(load_settings(settings, {}))
    assert replica.os.environ[BIND] == bound
