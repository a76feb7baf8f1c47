"""`python -m deployments.metrics_cost`: what measuring costs a replica, in microseconds, on a Ray of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any, Final

import ray

from conserve.config import Settings
from conserve.engine.contract import EngineStats
from conserve.engine.page import Counters
from conserve.harvest.engine_metrics import EngineMetrics
from conserve.telemetry.metric import NO_RECORDER, Recorder
from deployments.online_metrics import OnlineMetrics
from deployments.ray_metrics import RayRecorder

ROUNDS: Final = 20_000
STATS: Final = EngineStats(1, 0, 8, 0.5, 1.0, 1.0, 1.0, 1, 9, 100, 10)
STREAMED: Final = SimpleNamespace(stream=True)


def time_us(step: Callable[[], Any], rounds: int) -> float:
    """Mean of one call."""
    step()
    began_s = time.perf_counter()
    for _ in range(rounds):
        step()
    return (time.perf_counter() - began_s) / rounds * 1e6


async def time_request_us(online: OnlineMetrics | None, rounds: int) -> float:
    """Mean of one answer of two pieces, passed on by `online` or as it is."""

    async def answer() -> AsyncGenerator[Any, None]:
        yield "a"
        yield "b"

    began_s = time.perf_counter()
    for _ in range(rounds):
        passed_on = answer() if online is None else online.follow(STREAMED, began_s, answer())
        async for _ in passed_on:
            pass
    return (time.perf_counter() - began_s) / rounds * 1e6


def measure(recorder: Recorder) -> dict[str, float]:
    """What there is to measure, with one recorder."""
    online = OnlineMetrics(recorder, Settings().slo)
    engine = EngineMetrics(recorder)
    bare_us = asyncio.run(time_request_us(None, ROUNDS))
    return {
        "token": time_us(lambda: online.note_gap(0, 0.03), ROUNDS),
        "request": asyncio.run(time_request_us(online, ROUNDS)) - bare_us,
        "report_of_a_second": time_us(lambda: engine.report(STATS, Counters(model_samples=1.0)), ROUNDS // 20),
    }


@ray.remote(num_cpus=0)
def measure_in_worker() -> dict[str, dict[str, float]]:
    """In a process of Ray's, as replicas are."""
    return {"without_ray": measure(NO_RECORDER), "to_ray": measure(RayRecorder())}


def main() -> None:
    """Prints the figures as JSON."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    print(json.dumps(ray.get(measure_in_worker.remote()), indent=1))
    ray.shutdown()


if __name__ == "__main__":
    main()
