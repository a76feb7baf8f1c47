"""What our scheduler is told at start, as it travels in vLLM's `additional_config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from conserve.policy.pass_stop import PreemptRule

KEY = "conserve"
"""Our part of vLLM's `additional_config`."""


class Objective(BaseModel):
    """Latency objectives of one class of online requests, in milliseconds; `inf` for none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft_slo_ms: float = Field(gt=0)
    tbt_slo_ms: float = Field(gt=0)


class SchedulerOptions(BaseModel):
    """Everything the scheduler is told.

    Attributes:
        objectives: Of the online classes; a request's class is its priority (the first one has priority 0).
        page: File of the `EnginePage`; without it nothing is reported.
        profile_dir: Folder of stored latency profiles; without it the model starts from nothing.
        iteration_log: File that every iteration is added to (see `iteration_log`); without it none is kept.
        arrivals: File of the `ArrivalBoard`; without it no pass is stopped for an arrival.
        preempt: When a pass of offline work is stopped between two layers.
        safepoint_interval_layers: Layers from one safepoint to the next.
        host_kv_bytes: Host memory for KV blocks of offline requests, of all workers; 0 for none, None for as much as
            `host_memory.choose_host_kv_bytes` chooses.
        host_copy_share: Part of the time in which blocks may be copied there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    objectives: tuple[Objective, ...] = Field(min_length=1)
    page: Path | None = None
    profile_dir: Path | None = None
    iteration_log: Path | None = None
    arrivals: Path | None = None
    preempt: PreemptRule = "slo"
    safepoint_interval_layers: int = Field(default=1, ge=1)
    host_kv_bytes: int | None = Field(default=0, ge=0)
    host_copy_share: float = Field(default=0.1, gt=0, le=1)

    def to_additional_config(self) -> dict[str, Any]:
        """The value of vLLM's `additional_config`. Infinity is written as a string, since JSON has none."""
        values = self.model_dump(mode="json")
        values["objectives"] = [
            {name: str(value) for name, value in objective.model_dump().items()} for objective in self.objectives
        ]
        return {KEY: values}

    @classmethod
    def from_additional_config(cls, additional_config: Any) -> SchedulerOptions:
        """Reads what `to_additional_config` has written."""
        return cls.model_validate(additional_config[KEY])
