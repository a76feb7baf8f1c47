"""The engine's real schedulers on an engine without a model, in virtual time, with the simulator's costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from conserve.engine.options import Objective
from conserve.engine.profile_store import profile_key, save_profile
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, VirtualClock, make_config, make_scheduler
from conserve.engine.testing.worker import FakeWorker
from conserve.engine.vllm_compat import SchedulerOutput
from conserve.policy.latency import IterationShape
from conserve.simulator.engine_costs import EngineCosts, make_model
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.metrics import Metrics
from conserve.simulator.workload import Arrival, OfflineShape

LONGEST = 16_384


class _Costing:
    """What batches cost, by their shape."""

    def __init__(self, costs: EngineCosts) -> None:
        self.engine: FakeEngine
        self._costs = costs

    def __call__(self, batch: SchedulerOutput) -> float:
        shape = IterationShape()
        for request_id, tokens in batch.num_scheduled_tokens.items():
            request = self.engine.scheduler.requests[request_id]
            context = request.num_computed_tokens - tokens
            if tokens == 1 and context >= request.num_prompt_tokens:
                shape = shape.add_decode(context)
            else:
                shape = shape.add_prefill(tokens, context)
        return self._costs.time_ms(shape)


def run_scheduler(
    kind: Literal["conserve", "stock"],
    arrivals: Sequence[Arrival],
    until_s: float,
    folder: Path,
    *,
    costs: EngineCosts,
    offline: OfflineShape,
    in_flight: int,
    ttft_slo_ms: float,
    tbt_slo_ms: float,
    limits: EngineLimits,
    seed: int = 1,
) -> Metrics:
    """What a scheduler makes of the same requests as `clusters.run_cluster` gives the simulator; nothing is stopped."""
    size = EngineSize(costs.kv_blocks, 16, limits.max_num_seqs, limits.max_num_batched_tokens, LONGEST)
    objective = Objective(ttft_slo_ms=ttft_slo_ms, tbt_slo_ms=tbt_slo_ms)
    config = make_config(size, objectives=(objective,), preempt="never", profile_dir=folder)
    save_profile(folder, profile_key(config), make_model(costs).to_profile())
    metrics = Metrics(0.0, until_s, ttft_slo_ms, tbt_slo_ms)
    clock, costing = VirtualClock(), _Costing(costs)
    with clock.installed():
        engine = costing.engine = FakeEngine(
            make_scheduler(kind, config), clock, costing, FakeWorker(16, checks_context=False)
        )
        _drive(engine, arrivals, until_s, offline, in_flight, metrics, seed)
    return metrics


def _drive(
    engine: FakeEngine,
    arrivals: Sequence[Arrival],
    until_s: float,
    offline: OfflineShape,
    in_flight: int,
    metrics: Metrics,
    seed: int,
) -> None:
    began_s = engine.clock.now_s
    coming = list(reversed(arrivals))
    draws = enumerate(offline.draw(seed))
    due: dict[str, float] = {}
    outputs: dict[str, int] = {}
    last_s: dict[str, float] = {}
    seen: dict[str, int] = {}
    numbers = itertools.count()
    running = finished = 0

    def prompt(tokens: int) -> list[int]:
        # No two begin alike: what others have computed would be found in the prefix cache.
        number = next(numbers)
        start = [number // 50**place % 50 + 1 for place in range(3)]
        return (start + [place % 50 + 1 for place in range(tokens)])[:tokens]

    while (now_s := engine.clock.now_s - began_s) < until_s:
        while running < in_flight:
            number, (tokens, output, _, _) = next(draws)
            engine.add_offline(f"offline-{number}", prompt(tokens), output)
            outputs[f"offline-{number}"] = output
            running += 1
        while coming and coming[-1].arrival_s <= now_s:
            arrival = coming.pop()
            name = f"online-{len(due)}"
            request = engine.add(name, prompt(arrival.prompt_tokens), arrival.output_tokens)
            request.arrival_time += arrival.arrival_s - now_s
            due[name] = arrival.arrival_s
        engine.step()
        now_s = engine.clock.now_s - began_s
        for name, answer in engine.answers.items():
            new = len(answer) - seen.get(name, 0)
            if not new:
                continue
            seen[name] = len(answer)
            if name in due:
                if name in last_s:
                    metrics.add_tbt(now_s, (now_s - last_s[name]) * 1e3, new)
                else:
                    metrics.add_ttft(due[name], (now_s - due[name]) * 1e3)
                last_s[name] = now_s
            else:
                metrics.offline_output_tokens += new
        for name in engine.finished[finished:]:
            running -= name not in due
            metrics.offline_requests += name not in due
            engine.answers.pop(name)
        finished = len(engine.finished)
