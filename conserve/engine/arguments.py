"""From our settings to the engine arguments of vLLM that put our scheduler in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from conserve.config import SloSettings
from conserve.engine.options import KEY, Objective, SchedulerOptions
from conserve.engine.vllm_compat import VllmConfig, find_by_name

SCHEDULER = "conserve.engine.scheduler.create_scheduler"


def scheduler_arguments(
    mode: Literal["conserve", "stock"], slo: SloSettings, page_path: Path | None = None, profile_dir: Path | None = None
) -> dict[str, Any]:
    """The engine arguments that choose the scheduler.

    Args:
        mode: `engine.mode`. vLLM's own scheduler needs to know the priorities, and nothing else.
        slo: The objectives; their order gives each class its priority.
        page_path: File of the engine's `EnginePage`, if it is there already.
        profile_dir: Folder of stored latency profiles.
    """
    arguments: dict[str, Any] = {"scheduling_policy": "priority"}
    if mode == "conserve":
        objectives = tuple(Objective(**kind.model_dump()) for kind in slo.by_priority().values())
        options = SchedulerOptions(objectives=objectives, page=page_path, profile_dir=profile_dir)
        arguments |= {"scheduler_cls": SCHEDULER, "additional_config": options.to_additional_config()}
    return arguments


def settle_places(
    vllm_config: VllmConfig, page_path: Path, profile_dir: Path | None, iteration_log: Path | None = None
) -> None:
    """Tells the scheduler of an engine that is about to start the places on this machine.

    They go with the scheduler's factory and leave `additional_config`: its hash is part of the key of compiled models
    (vLLM 0.32), which would otherwise be compiled anew at each start.
    """
    options = SchedulerOptions.from_additional_config(vllm_config.additional_config)
    options = options.model_copy(update={"page": page_path, "profile_dir": profile_dir, "iteration_log": iteration_log})
    del vllm_config.additional_config[KEY]
    scheduler = vllm_config.scheduler_config
    scheduler.scheduler_cls = partial(find_by_name(scheduler.scheduler_cls), options=options)


def add_extra_arguments(arguments: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments with those of `engine.extra_args`; the keys of both `additional_config` are kept."""
    merged = {**arguments, **extra}
    additional = {**extra.get("additional_config", {}), **arguments.get("additional_config", {})}
    return merged | ({"additional_config": additional} if additional else {})
