from __future__ import annotations

from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.llm.deployment import LLMServer

from conserve.config import load_settings
from conserve.engine.engine import CoServeEngine
from conserve.policy.priority import ONLINE_PRIORITY
from deployments import replica
from deployments.replica import ConServeReplica, bind_cpu_threads

BIND = "VLLM_CPU_OMP_THREADS_BIND"


@pytest.mark.parametrize("method", ["chat", "completions"])
async def test_the_engine_never_sees_a_client_s_priority(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    seen: list[int] = []

    async def answer(self: Any, request: Any, raw_request_info: Any = None) -> AsyncGenerator[str, None]:
        seen.append(request.priority)

        async def stream() -> AsyncGenerator[str, None]:
            yield "hello"

        return stream()

    # There is nothing to stop: `__del__` belongs to a replica that Serve has started.
    monkeypatch.setattr(ConServeReplica, "__del__", lambda self: None)
    monkeypatch.setattr(LLMServer, method, answer)
    server = object.__new__(ConServeReplica)
    engine: Any = None
    server._co_engine = CoServeEngine(engine)
    stream = await getattr(server, method)(SimpleNamespace(priority=-7))
    assert [item async for item in stream] == ["hello"]
    assert seen == [ONLINE_PRIORITY]
    assert server._co_engine.stats().online_requests == 1


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
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "unset")
    context = SimpleNamespace(rank=SimpleNamespace(local_rank=rank))
    monkeypatch.setattr(replica.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(replica.psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: cores))
    bind_cpu_threads(load_settings(settings, {}))
    assert replica.os.environ[BIND] == bound
    assert replica.os.environ["VLLM_CPU_KVCACHE_SPACE"] == "1"
