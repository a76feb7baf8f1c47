from __future__ import annotations

from pathlib import Path

from vllm.engine.arg_utils import AsyncEngineArgs

from conserve.config import RequestClass, SloSettings
from conserve.engine.arguments import add_extra_arguments, scheduler_arguments
from conserve.engine.options import Objective, SchedulerOptions

SLO = SloSettings(
    ttft_slo_ms=500,
    tbt_slo_ms=100,
    classes={
        "slow": RequestClass(ttft_slo_ms=9000, tbt_slo_ms=900),
        "fast": RequestClass(ttft_slo_ms=200, tbt_slo_ms=50),
    },
)


def test_scheduler_reads_the_objectives_by_priority() -> None:
    arguments = scheduler_arguments("conserve", SLO, Path("/page"), Path("/profiles"))
    assert arguments["scheduling_policy"] == "priority"
    options = SchedulerOptions.from_additional_config(arguments["additional_config"])
    assert options.objectives == (
        Objective(ttft_slo_ms=200, tbt_slo_ms=50),
        Objective(ttft_slo_ms=500, tbt_slo_ms=100),
        Objective(ttft_slo_ms=9000, tbt_slo_ms=900),
    )
    assert (options.page, options.profile_dir) == (Path("/page"), Path("/profiles"))


def test_stock_gets_priorities_and_nothing_else() -> None:
    assert scheduler_arguments("stock", SLO, Path("/page")) == {"scheduling_policy": "priority"}


def test_vllm_finds_the_scheduler_under_its_name() -> None:
    from vllm.config import SchedulerConfig

    from conserve.engine.scheduler import create_scheduler

    name = scheduler_arguments("conserve", SLO)["scheduler_cls"]
    config = SchedulerConfig.default_factory(scheduler_cls=name)
    assert config.get_scheduler_cls() is create_scheduler


def test_vllm_takes_the_arguments() -> None:
    arguments = add_extra_arguments(
        {"model": "/m", **scheduler_arguments("conserve", SLO)}, {"gdn_prefill_backend": None, "seed": 7}
    )
    assert AsyncEngineArgs(**arguments).additional_config == arguments["additional_config"]


def test_the_user_s_additional_config_stays_beside_ours() -> None:
    ours = scheduler_arguments("conserve", SLO)
    extra = {"seed": 7, "additional_config": {"mine": 1}}
    merged = add_extra_arguments(ours, extra)
    assert merged["additional_config"] == {"mine": 1, **ours["additional_config"]}
    assert merged["seed"] == 7
    assert extra == {"seed": 7, "additional_config": {"mine": 1}}
    assert add_extra_arguments(scheduler_arguments("stock", SLO), extra)["additional_config"] == {"mine": 1}
    assert "additional_config" not in add_extra_arguments(scheduler_arguments("stock", SLO), {"seed": 7})
