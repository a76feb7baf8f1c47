"""From our settings to the engine arguments of vLLM that put our scheduler in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from conserve.config import EngineSettings, SloSettings
from conserve.engine.host_memory import choose_host_kv_bytes
from conserve.engine.options import KEY, Objective, SchedulerOptions
from conserve.engine.stoppable import WORKERS
from conserve.engine.vllm_compat import VllmConfig, find_by_name

SCHEDULER = "conserve.engine.scheduler.create_scheduler"
_RUNNER_VERSION = "VLLM_USE_V2_MODEL_RUNNER"


@dataclass(frozen=True)
class Places:
    """Files of an engine on this machine.

    Attributes:
        page: Of the `EnginePage`.
        arrivals: Of the `ArrivalBoard`; None without announcements.
        profiles: Folder of stored latency profiles; None starts without.
        iteration_log: Log of every iteration; None keeps none.
    """

    page: Path
    arrivals: Path | None = None
    profiles: Path | None = None
    iteration_log: Path | None = None


def scheduler_arguments(engine: EngineSettings, slo: SloSettings, device: Literal["cpu", "gpu"]) -> dict[str, Any]:
    """The engine arguments that choose the scheduler and the workers.

    Args:
        engine: vLLM's own scheduler (`mode: stock`) needs to know the priorities, and nothing else.
        slo: The objectives; their order gives each class its priority.
        device: What the engine runs on.
    """
    objectives = tuple(Objective(**kind.model_dump()) for kind in slo.by_priority().values())
    arguments: dict[str, Any] = {"scheduling_policy": "priority"}
    if engine.mode == "conserve":
        options = make_options(engine, objectives)
        arguments |= {"scheduler_cls": SCHEDULER, "additional_config": options.to_additional_config()}
        arguments |= worker_arguments(engine, device)
    return arguments


def make_options(engine: EngineSettings, objectives: Sequence[Objective]) -> SchedulerOptions:
    """What our scheduler is told, but for places on the machine it will run on."""
    return SchedulerOptions(
        objectives=tuple(objectives),
        preempt=engine.preempt,
        safepoint_interval_layers=engine.safepoint_interval_layers,
        host_kv_bytes=None if engine.host_kv_gib == "auto" else int(engine.host_kv_gib * 2**30),
        host_copy_share=engine.host_copy_share,
    )


def worker_arguments(engine: EngineSettings, device: Literal["cpu", "gpu"]) -> dict[str, Any]:
    """The engine arguments that choose the workers: ours, unless no pass is to be stopped."""
    return {"worker_cls": WORKERS[device]} if engine.preempt != "never" else {}


def choose_runner(engine: EngineSettings) -> None:
    """Has vLLM use version 1 of its model runner where passes can be stopped, unless the environment names one.

    Our workers know no other: a pass of version 2 keeps its state in other places. To be called before the engine's
    configuration is made.
    """
    if engine.mode == "conserve" and engine.preempt != "never":
        os.environ.setdefault(_RUNNER_VERSION, "0")


def settle_places(vllm_config: VllmConfig, places: Places) -> SchedulerOptions:
    """Tells the scheduler of an engine that is about to start the places on this machine. Returns all it is told.

    They go with the scheduler's factory and leave `additional_config`: its hash is part of the key of compiled models
    (vLLM 0.32), which would otherwise be compiled anew at each start.

    Raises:
        ValueError: there is not so much host memory as it is to take; names the setting.
    """
    options = SchedulerOptions.from_additional_config(vllm_config.additional_config)
    options = options.model_copy(
        update={
            "page": places.page,
            "arrivals": places.arrivals,
            "profile_dir": places.profiles,
            "iteration_log": places.iteration_log,
            "host_kv_bytes": choose_host_kv_bytes(options.host_kv_bytes),
        }
    )
    del vllm_config.additional_config[KEY]
    scheduler = vllm_config.scheduler_config
    scheduler.scheduler_cls = partial(find_by_name(scheduler.scheduler_cls), options=options)
    return options


def add_extra_arguments(arguments: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments with those of `engine.extra_args`; the keys of both `additional_config` are kept."""
    merged = {**arguments, **extra}
    additional = {**extra.get("additional_config", {}), **arguments.get("additional_config", {})}
    return merged | ({"additional_config": additional} if additional else {})
