from __future__ import annotations

import os

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs

from conserve.config import EngineSettings, RequestClass, SloSettings
from conserve.engine.arguments import add_extra_arguments, choose_runner, scheduler_arguments
from conserve.engine.options import Objective, SchedulerOptions

SLO = SloSettings(
    ttft_slo_ms=500,
    tbt_slo_ms=100,
    classes={
        "slow": RequestClass(ttft_slo_ms=9000, tbt_slo_ms=900),
        "fast": RequestClass(ttft_slo_ms=200, tbt_slo_ms=50),
    },
)

OURS = EngineSettings(preempt="always", safepoint_interval_layers=4)
STOCK = EngineSettings(mode="stock")


def test_scheduler_reads_the_objectives_by_priority() -> None:
    arguments = scheduler_arguments(OURS, SLO, "cpu")
    assert arguments["scheduling_policy"] == "priority"
    options = SchedulerOptions.from_additional_config(arguments["additional_config"])
    assert options.objectives == (
        Objective(ttft_slo_ms=200, tbt_slo_ms=50),
        Objective(ttft_slo_ms=500, tbt_slo_ms=100),
        Objective(ttft_slo_ms=9000, tbt_slo_ms=900),
    )
    assert (options.preempt, options.safepoint_interval_layers) == ("always", 4)


def test_stock_gets_priorities_and_nothing_else() -> None:
    assert scheduler_arguments(STOCK, SLO, "gpu") == {"scheduling_policy": "priority"}


def test_vllm_finds_the_scheduler_under_its_name() -> None:
    from vllm.config import SchedulerConfig

    from conserve.engine.scheduler import create_scheduler

    name = scheduler_arguments(OURS, SLO, "cpu")["scheduler_cls"]
    config = SchedulerConfig.default_factory(scheduler_cls=name)
    assert config.get_scheduler_cls() is create_scheduler


def test_vllm_takes_the_arguments() -> None:
    arguments = add_extra_arguments(
        {"model": "/m", **scheduler_arguments(OURS, SLO, "cpu")}, {"gdn_prefill_backend": None, "seed": 7}
    )
    assert AsyncEngineArgs(**arguments).additional_config == arguments["additional_config"]


def test_the_user_s_additional_config_stays_beside_ours() -> None:
    ours = scheduler_arguments(OURS, SLO, "cpu")
    extra = {"seed": 7, "additional_config": {"mine": 1}}
    merged = add_extra_arguments(ours, extra)
    assert merged["additional_config"] == {"mine": 1, **ours["additional_config"]}
    assert merged["seed"] == 7
    assert extra == {"seed": 7, "additional_config": {"mine": 1}}
    assert add_extra_arguments(scheduler_arguments(STOCK, SLO, "cpu"), extra)["additional_config"] == {"mine": 1}
    assert "additional_config" not in add_extra_arguments(scheduler_arguments(STOCK, SLO, "cpu"), {"seed": 7})


def test_workers_that_stop_passes_are_ours_on_either_device() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from conserve.engine.cpu_worker import SafepointCPUWorker
    from conserve.engine.worker import SafepointWorker

    names = [scheduler_arguments(OURS, SLO, device)["worker_cls"] for device in ("cpu", "gpu")]
    assert [resolve_obj_by_qualname(name) for name in names] == [SafepointCPUWorker, SafepointWorker]
    assert "worker_cls" not in scheduler_arguments(EngineSettings(preempt="never"), SLO, "cpu")


@pytest.mark.parametrize(
    ("engine", "before", "after"),
    [
        (OURS, None, "0"),
        (OURS, "1", "1"),
        (EngineSettings(preempt="never"), None, None),
        (STOCK, None, None),
    ],
)
def test_stops_want_the_first_version_of_the_model_runner(
    monkeypatch: pytest.MonkeyPatch, engine: EngineSettings, before: str | None, after: str | None
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", before or "")
    if before is None:
        monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER")
    choose_runner(engine)
    assert os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == after
