"""What callers of the engine see of it. Imports no vLLM, so that callers need none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conserve.policy.harvest_rate import IterationCosts


class EngineFault(RuntimeError):
    """The engine failed, not the request: another attempt may succeed."""


class EngineDied(EngineFault):
    """The engine ended while it worked on the request, which may be the cause."""


class EngineGone(EngineFault):
    """The engine had ended before: the request was not tried."""


class AttemptTimeout(EngineFault):
    """The request was not answered in time."""


class InvalidRequest(ValueError):
    """The request is wrong: another attempt would be, too. `param` names the field of its body."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class OfflineResult:
    """The answer to an offline request: an HTTP status code and the body that the HTTP API would have sent."""

    status_code: int
    body: dict[str, Any]
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class EngineStats:
    """Requests in the engine now, and totals since it started.

    `*_busy_s` are seconds in which at least one request of the kind was in the engine, `engine_cpu_s` the CPU seconds
    used by the engine's own processes, `kv_usage` the share of KV blocks in use, 0 to 1. `costs` are what the latency
    model has learnt; nothing where the scheduler has none.
    """

    online_running: int
    online_waiting: int
    offline_running: int
    kv_usage: float
    online_busy_s: float
    offline_busy_s: float
    engine_cpu_s: float
    online_requests: int
    offline_requests: int
    offline_prompt_tokens: int
    offline_output_tokens: int
    costs: IterationCosts = field(default_factory=IterationCosts)
