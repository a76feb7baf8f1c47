from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conserve.config import EngineSettings, SloSettings
from conserve.engine.arguments import scheduler_arguments
from conserve.engine.continuation import RecordingGenerate
from conserve.engine.executor import SleepingMultiprocExecutor
from conserve.engine.options import SchedulerOptions
from conserve.engine.page import Counters, EnginePage
from conserve.engine.scheduler import create_scheduler
from deployments import serving_engine
from deployments.ray_compat import VLLMEngine
from deployments.serving_engine import ServingEngine


def make_config(mode: Any, **settings: Any) -> Any:
    """The parts of a `VllmConfig` that are looked at."""
    arguments = scheduler_arguments(EngineSettings(mode=mode, **settings), SloSettings(), "cpu")
    worker = arguments.get("worker_cls", "vllm.v1.worker.cpu_worker.CPUWorker")
    return SimpleNamespace(
        parallel_config=SimpleNamespace(distributed_executor_backend="mp", worker_cls=worker),
        additional_config=arguments.get("additional_config", {}),
        scheduler_config=SimpleNamespace(scheduler_cls=arguments.get("scheduler_cls")),
    )


def read_options(config: Any) -> SchedulerOptions:
    """What the scheduler will be told; it is sent to the engine's process."""
    scheduler_cls = pickle.loads(pickle.dumps(config.scheduler_config.scheduler_cls))
    options = scheduler_cls.keywords["options"]
    assert isinstance(options, SchedulerOptions)
    return options


def start(monkeypatch: pytest.MonkeyPatch, config: Any, run: Callable[[Any], Any]) -> ServingEngine:
    """Starts an engine whose AsyncLLM is `run`, called with the configuration."""
    monkeypatch.setattr(VLLMEngine, "_start_async_llm_engine", lambda self, args, config, group: run(config))
    engine = object.__new__(ServingEngine)
    assert engine._start_async_llm_engine(None, config, None) == "client"
    return engine


def test_scheduler_and_front_share_a_page_and_no_file_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSERVE_CACHE", str(tmp_path))
    pages: list[EnginePage] = []

    def run(config: Any) -> str:
        assert config.parallel_config.distributed_executor_backend is SleepingMultiprocExecutor
        assert config.additional_config == {}, "what differs from start to start is no part of the configuration's hash"
        assert config.scheduler_config.scheduler_cls.func is create_scheduler
        options = read_options(config)
        assert options.objectives[0].ttft_slo_ms == SloSettings().ttft_slo_ms
        assert options.profile_dir == tmp_path / "profiles"
        assert options.page is not None
        pages.append(EnginePage(options.page))  # as the scheduler does, in its process
        return "client"

    engine = start(monkeypatch, make_config("conserve"), run)
    assert not pages[0].path.exists()
    assert engine.page is not None
    pages[0].write_counters(Counters(iterations=3))
    assert engine.page.read_counters().iterations == 3


def test_no_file_stays_of_an_engine_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def fail(config: Any) -> str:
        page = read_options(config).page
        assert page is not None
        paths.append(page)
        assert paths[0].exists()
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        start(monkeypatch, make_config("conserve"), fail)
    assert not paths[0].exists()


def test_no_file_stays_where_the_host_memory_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EnginePage] = []
    create = EnginePage.create
    monkeypatch.setattr(EnginePage, "create", lambda: made.append(create()) or made[0])
    with pytest.raises(ValueError, match=r"engine\.host_kv_gib"):
        start(monkeypatch, make_config("conserve", host_kv_gib=4_000.0), lambda config: "client")
    assert not made[0].path.exists()


def test_stock_engine_has_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("stock")
    engine = start(monkeypatch, config, lambda config: "client")
    assert engine.page is None
    assert config.additional_config == {}


async def test_a_started_engine_keeps_records_and_knows_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(model_config=SimpleNamespace())
    client = SimpleNamespace(generate=lambda: None, vllm_config=config)

    async def start(self: Any) -> None:
        self._engine_client = client

    monkeypatch.setattr(VLLMEngine, "start", start)
    monkeypatch.setattr(serving_engine, "find_revision", lambda given: "abc" if given is config else None)
    engine = object.__new__(ServingEngine)
    await engine.start()
    assert engine.revision == "abc"
    assert isinstance(client.generate, RecordingGenerate)
