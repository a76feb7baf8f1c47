"""`python -m loadtests.checkpoint_cost`: what KV checkpoints cost, and what they save, on the machine it runs on.

How fast blocks are copied to host memory and back beside a plain large copy; how long a preempted request takes to its
next token when its blocks come back, beside computing them again; and what throughput is lost to copies where nothing
is preempted. Both sides take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from conserve.config import EngineSettings
from conserve.engine.page import Knobs
from conserve.launch.interruption import Interruption
from conserve.models import resolve_model
from conserve.telemetry.logs import configure_program_logs
from loadtests.checkpoint_report import CheckpointReport, Dtype, Resumption, render
from loadtests.report import Ratio, describe_machine
from loadtests.supervision import INTERRUPTED

if TYPE_CHECKING:
    from conserve.engine.direct import DirectEngine

MODEL = "smollm2-135m-instruct"
LAYERS, PAGE_BYTES, BLOCKS = 30, 98_304, 64
"""Of the default model on a CPU."""
COPY_ROUNDS = 40
OFFLINE_TOKENS, ONLINE_TOKENS = (940, 1_060), 1_270
"""Of any length: the last block is rarely full."""
DTYPES: Final[dict[Dtype, float]] = {"float32": 0.0625, "bfloat16": 0.03125}
"""GiB of KV cache: ten blocks. The online request takes all of them: nothing of the other is left there."""
TOKENS_BETWEEN = 6
BATCH_PROMPT_TOKENS, BATCH_OUTPUT_TOKENS, BATCH_IN_FLIGHT = (350, 450), 100, 12
BURST_TOKENS = 600
"""Of an online request: as much is expected to be wanted again soon."""
FULL_KV_CACHE_GIB = 0.121
"""Of 44 blocks eight requests take 28 to 40: enough for all, but not with another burst."""
BATCH_REQUESTS, BATCH_LIMIT_S = 32, 300.0
SETTINGS = EngineSettings(
    max_model_len=1_280,
    max_num_seqs=4,
    max_num_batched_tokens=2_048,
    extra_args={"use_tqdm_on_load": False},
)
FULL_SETTINGS = SETTINGS.model_copy(update={"kv_cache_gib": FULL_KV_CACHE_GIB, "max_num_seqs": 8})
_ON, _OFF = Knobs(), Knobs(checkpoints_off=1)


class Throughput(NamedTuple):
    """Offline tokens a second by turns, and what happened in the turns with checkpoints."""

    on: list[float]
    off: list[float]
    copied_blocks_per_s: float
    preemptions: int


def measure_copies() -> tuple[list[float], list[float]]:
    """Bytes a second of copies of blocks, to and fro, and of a plain copy of as much, by turns."""
    from conserve.engine.copier import ThreadCopier
    from conserve.engine.copy_plan import CopyPlan
    from conserve.engine.kv_memory import KvRegion, view_blocks

    size = BLOCKS * LAYERS * PAGE_BYTES
    allocation = torch.ones(size, dtype=torch.uint8)
    blocks = view_blocks(allocation, [KvRegion(LAYERS, PAGE_BYTES, 0, BLOCKS * PAGE_BYTES, PAGE_BYTES)], BLOCKS)
    copier = ThreadCopier(blocks, slots=BLOCKS)
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    pairs = tuple((number, BLOCKS - 1 - number) for number in range(BLOCKS))
    ours, plain = [], []
    try:
        for number in range(COPY_ROUNDS):
            began_s = time.perf_counter()
            copier.submit(CopyPlan(2 * number + 1, saves=pairs))
            copier.submit(CopyPlan(2 * number + 2, loads=pairs))
            copier.wait_for(2 * number + 2)
            ours.append(2 * size / (time.perf_counter() - began_s))
            began_s = time.perf_counter()
            np.copyto(target, source)
            np.copyto(source, target)
            plain.append(2 * size / (time.perf_counter() - began_s))
    finally:
        copier.close()
    return ours[2:], plain[2:]


async def measure_resumption(model: str, dtype: Dtype, rounds: int) -> Resumption:
    """Milliseconds to the next token of a preempted request, restored and recomputed."""
    settings = SETTINGS.model_copy(update={"dtype": dtype, "kv_cache_gib": DTYPES[dtype]})
    engine = await _start_engine(model, settings)
    generator = np.random.default_rng(1)
    try:
        restored, recomputed = [], []
        lost_tokens = preemptions = 0.0
        for number in track(range(rounds + 1), f"preempting, {dtype}", console=Console(stderr=True), transient=True):
            offline_tokens = int(generator.integers(*OFFLINE_TOKENS, endpoint=True))
            engine.set_knobs(_OFF)
            without_ms = await _preempt_and_resume(engine, generator, offline_tokens)
            engine.set_knobs(_ON)
            # Nothing is copied before the first preemption.
            await _preempt_and_resume(engine, generator, offline_tokens)
            before = engine.counters()
            with_ms = await _preempt_and_resume(engine, generator, offline_tokens)
            after = engine.counters()
            if number:
                restored.append(with_ms)
                recomputed.append(without_ms)
                lost_tokens += after.offline_recomputed_tokens - before.offline_recomputed_tokens
                preemptions += after.offline_preemptions - before.offline_preemptions
        return Resumption(
            restored_ms=statistics.median(restored),
            recomputed_ms=statistics.median(recomputed),
            ratio=_compare(restored, recomputed),
            recomputed_tokens=lost_tokens / max(1.0, preemptions),
        )
    finally:
        await engine.close()


async def _start_engine(model: str, settings: EngineSettings) -> DirectEngine:
    from conserve.engine.direct import DirectEngine, DirectEngineConfig
    from conserve.engine.options import Objective

    unlimited = Objective(ttft_slo_ms=float("inf"), tbt_slo_ms=float("inf"))
    return await DirectEngine.start(DirectEngineConfig(model, settings, unlimited))


async def _preempt_and_resume(engine: DirectEngine, generator: np.random.Generator, offline_tokens: int) -> float:
    """Milliseconds from the last token of the online request to the next one of the offline request."""
    offline, online = (_draw_prompt(generator, tokens) for tokens in (offline_tokens, ONLINE_TOKENS))
    resumed_s: list[float] = []
    began = asyncio.Event()
    ended_s = float("inf")

    async def run_offline() -> None:
        tokens = 0
        async with aclosing(engine.generate(offline, 4 * TOKENS_BETWEEN, online=False)) as outputs:
            async for count in outputs:
                tokens += count
                if time.perf_counter() > ended_s:
                    resumed_s.append(time.perf_counter())
                    return
                if tokens >= TOKENS_BETWEEN:
                    began.set()

    task = asyncio.create_task(run_offline())
    await asyncio.wait_for(began.wait(), 120)
    async for _ in engine.generate(online, 4, online=True):
        pass
    ended_s = time.perf_counter()
    await asyncio.wait_for(task, 120)
    if not resumed_s:
        raise RuntimeError("the offline request was not preempted: it has come to its end before the online one")
    return (resumed_s[0] - ended_s) * 1e3


async def measure_throughput(model: str, turns: int) -> Throughput:
    """Throughput of offline work that the KV cache has just room for, with copies and without.

    Both sides work off requests of the same lengths: of two windows of time one would hold more prompts.
    """
    engine = await _start_engine(model, FULL_SETTINGS)
    generator = np.random.default_rng(2)
    lengths = [int(tokens) for tokens in generator.integers(*BATCH_PROMPT_TOKENS, BATCH_REQUESTS, endpoint=True)]
    rates: dict[Knobs, list[float]] = {_ON: [], _OFF: []}
    copied = copying_s = preemptions = 0.0
    try:
        await _work_off(engine, generator, lengths)
        for turn in track(range(turns), "copying", console=Console(stderr=True), transient=True):
            for knobs in (_ON, _OFF) if turn % 2 else (_OFF, _ON):
                engine.set_knobs(knobs)
                async for _ in engine.generate(_draw_prompt(generator, BURST_TOKENS), 1, online=True):
                    pass
                before = engine.counters()
                passed_s = await _work_off(engine, generator, lengths)
                after = engine.counters()
                rates[knobs].append((sum(lengths) + len(lengths) * BATCH_OUTPUT_TOKENS) / passed_s)
                preemptions += after.offline_preemptions - before.offline_preemptions
                if knobs is _ON:
                    copied += after.copied_blocks - before.copied_blocks
                    copying_s += passed_s
    finally:
        await engine.close()
    return Throughput(rates[_ON], rates[_OFF], copied / copying_s, round(preemptions))


async def _work_off(engine: DirectEngine, generator: np.random.Generator, lengths: Sequence[int]) -> float:
    """Seconds until offline requests with prompts of these lengths are answered."""
    in_flight = asyncio.Semaphore(BATCH_IN_FLIGHT)

    async def generate(prompt: list[int]) -> None:
        async with in_flight:
            async for _ in engine.generate(prompt, BATCH_OUTPUT_TOKENS, online=False):
                pass

    prompts = [_draw_prompt(generator, tokens) for tokens in lengths]
    began_s = time.perf_counter()
    async with asyncio.timeout(BATCH_LIMIT_S), asyncio.TaskGroup() as group:
        for prompt in prompts:
            group.create_task(generate(prompt))
    return time.perf_counter() - began_s


def _draw_prompt(generator: np.random.Generator, tokens: int) -> list[int]:
    return [int(token) for token in generator.integers(1_000, 30_000, tokens)]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Preemptions measured on each side.")] = 10,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each side in which throughput is measured.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints.json.")] = None,
) -> None:
    """Prints all three, and writes `checkpoints.json`."""
    configure_program_logs()
    # vLLM reads it when it is imported, which is why that is done later.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    model = str(resolve_model(MODEL))
    with Interruption() as interruption:
        try:
            ours, plain = measure_copies()
            resumptions = {dtype: interruption.run(measure_resumption(model, dtype, rounds)) for dtype in DTYPES}
            throughput = interruption.run(measure_throughput(model, turns))
        except KeyboardInterrupt:
            Console(stderr=True).print("Interrupted: nothing is written.")
            raise typer.Exit(INTERRUPTED) from None
    report = CheckpointReport(
        copy_gb_per_s=statistics.median(ours) / 1e9,
        plain_gb_per_s=statistics.median(plain) / 1e9,
        copy_ratio=_compare(ours, plain),
        resumptions=resumptions,
        on_tokens_per_s=statistics.median(throughput.on),
        off_tokens_per_s=statistics.median(throughput.off),
        throughput_ratio=_compare(throughput.on, throughput.off),
        copied_blocks_per_s=throughput.copied_blocks_per_s,
        preemptions=throughput.preemptions,
    )
    Console(highlight=False).print(render(report))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), "rounds": rounds, "turns": turns, **report.model_dump()}
        (out / "checkpoints.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _compare(ours: list[float], others: list[float]) -> Ratio:
    ratios = [one / other for one, other in zip(ours, others, strict=True)]
    return Ratio(median=statistics.median(ratios), min=min(ratios), max=max(ratios), interval="repeats")


if __name__ == "__main__":
    typer.run(main)
