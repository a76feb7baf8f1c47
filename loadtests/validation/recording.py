"""A run of the benchmark as small as the simulator needs it: what was asked, what came of it, and the iterations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from conserve.policy.latency import IterationShape
from loadtests.coserving.results import RunResult, WorkloadResults

KV_BYTES_PER_TOKEN: Final = 22.5 * 1024
"""Of the benchmark's model on a CPU, SmolLM2-135M in bfloat16."""
LAYERS: Final = 30
FIRST_S: Final = 0.1
"""All offline requests that are in flight at a time begin within so long of the beginning."""


class Recording(BaseModel):
    """One run of one workload.

    Attributes:
        run, workload, repeat: As in the benchmark.
        max_num_seqs, max_num_batched_tokens, long_prefill_token_threshold: Of the engine in this run.
        offline_pass_tokens: As the knob of this name.
        kv_blocks, block_size, host_blocks: Of its KV memory and of host memory for it; 0 host blocks for none.
        ttft_slo_ms, tbt_slo_ms: Objectives that it was told; None for none.
        off: Mechanisms that are switched off.
        full_passes: As the knob of this name.
        window_s: Begin and end of what is measured.
        offline_until_s: When offline work ended.
        in_flight: Offline requests in the engine at any time.
        online: Due time, prompt tokens, output tokens.
        offline: Prompt tokens, output tokens, in the order in which they came.
        ttft_ms, tbt_ms: Of the online requests that were due in the window.
        gaps: How many of `tbt_ms` are of each answer.
        offline_tokens, offline_output_tokens: In the window.
        stops, preemptions: Of passes, and of offline requests, in the window.
        iterations: Of ConServe's engine: begin, end, online prompt tokens, online decodes, offline tokens, first layer,
            layer before which it was stopped (-1: none), offline decodes, context of all decodes, predicted time in ms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    workload: str
    repeat: int
    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int = 0
    offline_pass_tokens: int = 0
    kv_blocks: int
    block_size: int
    host_blocks: int = 0
    ttft_slo_ms: float | None = None
    tbt_slo_ms: float | None = None
    off: tuple[str, ...] = ()
    full_passes: bool = False
    window_s: tuple[float, float]
    offline_until_s: float
    in_flight: int = 0
    online: tuple[tuple[float, int, int], ...] = ()
    offline: tuple[tuple[int, int], ...] = ()
    ttft_ms: tuple[float, ...] = ()
    tbt_ms: tuple[float, ...] = ()
    gaps: tuple[int, ...] = ()
    offline_tokens: float = 0.0
    offline_output_tokens: float = 0.0
    stops: int = 0
    preemptions: int = 0
    iterations: tuple[tuple[int | float, ...], ...] = ()

    def list_shapes(self) -> list[tuple[IterationShape, float]]:
        """Whole iterations, and how long they took; contexts of prompts are guessed from lengths."""
        return [(shape, took_ms) for shape, took_ms, first, last in self._list_all() if first == 0 and last == LAYERS]

    def list_parts(self) -> list[tuple[IterationShape, float, int, int]]:
        """Iterations of some layers only: what they would have computed, their time, first and last layer."""
        return [each for each in self._list_all() if each[2] > 0 or each[3] < LAYERS]

    def list_deviations(self) -> list[float]:
        """Logarithms of measured over predicted times of whole iterations, in their order."""
        return [
            math.log((end_s - begin_s) * 1e3 / predicted_ms)
            for begin_s, end_s, *_, first, stop, _, _, predicted_ms in self.iterations
            if first == 0 and stop < 0 and predicted_ms > 0 and end_s > begin_s
        ]

    def list_answers(self) -> list[tuple[float, ...]]:
        """The gaps between tokens, in ms, of each answer."""
        ends = [0, *accumulate(self.gaps)]
        return [self.tbt_ms[begin:end] for begin, end in pairwise(ends)]

    def _list_all(self) -> Iterator[tuple[IterationShape, float, int, int]]:
        half_offline = _find_context([prompt for prompt, _ in self.offline])
        half_online = _find_context([prompt for _, prompt, _ in self.online])
        for begin_s, end_s, online, decodes, offline, first, stop, offline_decodes, context, _ in self.iterations:
            prefill = max(0.0, offline - offline_decodes)
            shape = IterationShape(
                int(online + prefill),
                online * half_online + prefill * half_offline,
                int(online > 0) + int(prefill > 0),
                int(decodes + offline_decodes),
                int(context),
            )
            yield shape, (end_s - begin_s) * 1e3, int(first), LAYERS if stop < 0 else int(stop)


def _find_context(prompts: Sequence[int]) -> float:
    """Tokens that are before a prompt token, on average of all prompt tokens."""
    return sum(prompt * prompt for prompt in prompts) / sum(prompts) / 2 if prompts else 0.0


def record(results: WorkloadResults, run: RunResult, *, with_iterations: bool = False) -> Recording:
    """What a run of the benchmark was, for the simulator.

    Args:
        results: Of the workload that it is a run of.
        run: One of them.
        with_iterations: Whether its iterations are wanted, too.
    """
    engine, knobs = results.engine, run.knobs
    block_size = int(run.counters_after.host_block_tokens) or 128
    names = ("safepoints_off", "resume_off", "checkpoints_off", "token_budget_off", "prefix_order_off")
    offline = sorted(run.offline, key=lambda each: each.started_s)
    ends = [each.events[-1].at_s for each in offline if each.events]
    return Recording(
        run=run.run,
        workload=run.workload,
        repeat=run.repeat,
        max_num_seqs=int(knobs.get("max_num_seqs", 0)) or int(engine.get("max_num_seqs", 16)),
        max_num_batched_tokens=int(knobs.get("max_num_batched_tokens", 0)) or int(engine["max_num_batched_tokens"]),
        long_prefill_token_threshold=int(knobs.get("long_prefill_token_threshold", 0)),
        offline_pass_tokens=int(knobs.get("offline_pass_tokens", 0)),
        kv_blocks=_count_blocks(engine, block_size),
        block_size=block_size,
        host_blocks=int(run.counters_after.host_slots),
        ttft_slo_ms=run.objective.ttft_slo_ms if run.objective is not None else None,
        tbt_slo_ms=run.objective.tbt_slo_ms if run.objective is not None else None,
        off=tuple(name.removesuffix("_off") for name in names if knobs.get(name)),
        full_passes=bool(knobs.get("full_passes")),
        window_s=(run.window_start_s, run.window_end_s),
        offline_until_s=max(ends, default=0.0),
        in_flight=_count_in_flight(run),
        online=tuple((round(each.intended_s, 4), each.prompt_tokens, each.output_tokens) for each in run.online),
        offline=tuple((each.prompt_tokens, each.output_tokens) for each in offline),
        ttft_ms=tuple(round(value, 1) for group in run.ttft_groups for value in group),
        tbt_ms=tuple(round(value, 1) for group in run.tbt_groups for value in group),
        gaps=tuple(len(group) for group in run.tbt_groups),
        offline_tokens=round(run.offline_rates.total_per_s * run.window_s, 1),
        offline_output_tokens=round(run.offline_rates.output_per_s * run.window_s, 1),
        stops=int(run.counters_after.stops - run.counters_before.stops),
        preemptions=int(run.counters_after.offline_preemptions - run.counters_before.offline_preemptions),
        iterations=tuple(_list_iterations(run)) if with_iterations else (),
    )


def read_recording(path: Path) -> Recording:
    """Reads one that was written with `model_dump_json`."""
    return Recording.model_validate_json(path.read_bytes())


def _count_blocks(engine: dict[str, object], block_size: int) -> int:
    gib = float(str(engine.get("kv_cache_gib", 1.0)))
    return int(gib * 2**30 / (KV_BYTES_PER_TOKEN * block_size))


def _count_in_flight(run: RunResult) -> int:
    return sum(each.started_s < FIRST_S for each in run.offline)


def _list_iterations(run: RunResult) -> list[tuple[int | float, ...]]:
    """With the offline decodes and the contexts that the outputs of requests show."""
    outputs: list[tuple[float, bool, int]] = []  # when, whether offline, context
    for offline, records in ((False, run.online), (True, run.offline)):
        for each in records:
            for number, event in enumerate(each.events[1:], 1):
                outputs.append((event.at_s, offline, each.prompt_tokens + number))
    outputs.sort()
    times = np.array([at_s for at_s, _, _ in outputs])
    found: list[tuple[int | float, ...]] = []
    ends = [iteration.end_s for iteration in run.iterations]
    for number, iteration in enumerate(run.iterations):
        following_s = ends[number + 1] if number + 1 < len(ends) else iteration.end_s + 0.05
        first, last = np.searchsorted(times, [iteration.end_s - 1e-3, max(iteration.end_s, following_s - 1e-3)])
        own = outputs[first:last]
        found.append(
            (
                round(iteration.start_s, 4),
                round(iteration.end_s, 4),
                int(iteration.online_prefill_tokens),
                int(iteration.online_decodes),
                int(iteration.offline_tokens),
                int(iteration.first_layer),
                int(iteration.stop_layer),
                sum(offline for _, offline, _ in own),
                sum(context for _, _, context in own),
                round(iteration.predicted_ms, 2),
            )
        )
    return found
