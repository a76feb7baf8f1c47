"""`python -m loadtests.scheduler_cost`: the scheduler's own time per step, ours against vLLM's, without a model.

Both schedule the same requests, for a fake worker. Their steps are taken in turns, so that what else the machine does
meets both alike.
"""

from __future__ import annotations

import gc
import json
import logging
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from conserve.engine.options import Objective
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, VirtualClock, make_config, make_scheduler
from conserve.engine.testing.worker import VOCABULARY, FakeWorker
from conserve.policy.priority import OFFLINE_PRIORITY
from loadtests.report import Ratio, describe_machine

Kind = Literal["vllm", "conserve"]

SIZE = EngineSize(kv_blocks=60_000, max_num_seqs=256, max_num_batched_tokens=2_048, max_model_len=4_096)
OBJECTIVE = Objective(ttft_slo_ms=1_000, tbt_slo_ms=100)
PROMPT_TOKENS = 64
WARM_UP_STEPS = 100
STEPS_A_TURN = 20
MUST, GOAL = 1.3, 1.0
"""Limits of the ratio."""


@dataclass(frozen=True)
class Case:
    """How many requests run and wait. Those that run decode; online ones do not come to their end.

    Attributes:
        kv_blocks: KV blocks of the engine.
        prompt_tokens, output_tokens: Of the offline requests that wait. Those that run end with them.
        host_slots: KV blocks that ConServe can have in host memory.
    """

    name: str
    online: int
    offline: int
    waiting_online: int = 0
    waiting_offline: int = 0
    kv_blocks: int = SIZE.kv_blocks
    prompt_tokens: int = PROMPT_TOKENS
    output_tokens: int = SIZE.max_model_len - PROMPT_TOKENS
    host_slots: int = 0


CASES = (
    Case("256 online, 10,000 online waiting", 256, 0, waiting_online=10_000),
    Case("256 online, 10,000 offline waiting", 256, 0, waiting_offline=10_000),
    Case("128 online, 128 offline, 10,000 waiting", 128, 128, waiting_offline=10_000),
    Case("the same, offline answers of 64 tokens", 128, 128, waiting_offline=10_000, output_tokens=64),
    Case("the same, prompts of 1,500 tokens", 128, 128, 0, 10_000, prompt_tokens=1_500, output_tokens=64),
    Case("256 offline, 10,000 waiting", 0, 256, waiting_offline=10_000),
    Case("the same, too few KV blocks", 0, 128, 0, 10_000, kv_blocks=1_000, output_tokens=64),
    Case("the same, with host memory", 0, 128, 0, 10_000, kv_blocks=1_000, output_tokens=64, host_slots=4_000),
    Case("128 online take blocks of 128 offline", 128, 128, 0, 10_000, 5_200, output_tokens=64, host_slots=4_000),
)


class Lane:
    """One of the two schedulers at work on a case."""

    def __init__(self, kind: Kind, case: Case) -> None:
        self.clock = VirtualClock()
        config = make_config(
            replace(SIZE, kv_blocks=case.kv_blocks),
            objectives=(OBJECTIVE,),
            has_safepoints=kind == "conserve",
            host_slots=case.host_slots if kind == "conserve" else 0,
        )
        self.scheduler = make_scheduler(kind, config)
        self._worker = FakeWorker(SIZE.block_size, checks_context=False)
        self._engine = FakeEngine(self.scheduler, self.clock)
        self._draw = random.Random(0)  # The same requests for both.
        with self.clock.installed():
            self._add("offline", case.offline, OFFLINE_PRIORITY, PROMPT_TOKENS, case.output_tokens)
            self._add("online", case.online, 0, PROMPT_TOKENS, SIZE.max_model_len - PROMPT_TOKENS)
            while len(self.scheduler.running) < case.online:
                self._step()
            self._add("next-online", case.waiting_online, 0, PROMPT_TOKENS, 1)
            self._add("next-offline", case.waiting_offline, OFFLINE_PRIORITY, case.prompt_tokens, case.output_tokens)
            for _ in range(WARM_UP_STEPS):
                self._step()

    def _add(self, name: str, count: int, priority: int, prompt_tokens: int, output_tokens: int) -> None:
        for number in range(count):
            prompt = [self._draw.randrange(VOCABULARY) for _ in range(prompt_tokens)]
            self._engine.add(f"{name}-{number}", prompt, output_tokens, priority=priority)

    def _step(self) -> float:
        began_s = time.perf_counter()
        batch = self.scheduler.schedule()
        scheduled_s = time.perf_counter()
        output = self._worker.execute(batch)
        self.clock.advance((5.0 + 0.1 * batch.total_num_scheduled_tokens) / 1e3)
        returned_s = time.perf_counter()
        self.scheduler.update_from_output(batch, output)
        return scheduled_s - began_s + time.perf_counter() - returned_s

    def take_turn(self) -> list[float]:
        """Some steps: the seconds that the scheduler took for each."""
        with self.clock.installed():
            return [self._step() for _ in range(STEPS_A_TURN)]


@dataclass(frozen=True)
class Cost:
    """Median time per step in milliseconds, and the ratio of each repeat."""

    vllm_ms: float
    conserve_ms: float
    ratios: tuple[float, ...]


def measure(case: Case, repeats: int, turns: int, make_lane: Callable[[Kind, Case], Lane] = Lane) -> Cost:
    """Measures a case.

    Args:
        case: What runs and waits.
        repeats: Ratios are taken of each.
        turns: Of each scheduler in one repeat, by turns.
        make_lane: Sets a scheduler to work.
    """
    lanes = make_lane("vllm", case), make_lane("conserve", case)
    pairs = []
    gc.collect()
    gc.freeze()  # As vLLM's engine does: the requests that wait must not be gone through again and again.
    try:
        for _ in range(repeats):
            taken: tuple[list[float], list[float]] = [], []
            for turn in range(turns):
                order = (0, 1) if turn % 2 else (1, 0)
                for index in order:
                    taken[index].extend(lanes[index].take_turn())
            pairs.append((statistics.median(taken[0]) * 1e3, statistics.median(taken[1]) * 1e3))
    finally:
        gc.unfreeze()
    return Cost(
        statistics.median(stock_ms for stock_ms, _ in pairs),
        statistics.median(our_ms for _, our_ms in pairs),
        tuple(our_ms / stock_ms for stock_ms, our_ms in pairs),
    )


class CostReport(BaseModel):
    """A case in the report file: medians in milliseconds per step, and their ratio by repeats."""

    name: str
    vllm_ms: float
    conserve_ms: float
    ratio: Ratio


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each case.")] = 5,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each scheduler in one repeat.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Folder for scheduler.json.")] = None,
) -> None:
    """Prints a table: milliseconds per step of both, and their ratio (median, lowest and highest of the repeats)."""
    logging.getLogger("vllm").setLevel(logging.ERROR)
    reports = [describe(case, measure(case, repeats, turns)) for case in CASES]
    console = Console(highlight=False)
    console.print(render(reports))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), "repeats": repeats, "cases": [each.model_dump() for each in reports]}
        (out / "scheduler.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def describe(case: Case, cost: Cost) -> CostReport:
    """A case as it is reported."""
    ratios = cost.ratios
    ratio = Ratio(median=statistics.median(ratios), min=min(ratios), max=max(ratios), interval="repeats")
    return CostReport(name=case.name, vllm_ms=cost.vllm_ms, conserve_ms=cost.conserve_ms, ratio=ratio)


def render(reports: Sequence[CostReport]) -> Table:
    """The table that is printed."""
    table = Table(
        title="The scheduler's own time per step: schedule and update_from_output",
        caption=f"Ratio: median, lowest and highest of the repeats; must be <= {MUST:g}, goal <= {GOAL:g}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("running and waiting", "vLLM, ms", "ConServe, ms", "ratio", ""):
        table.add_column(name, justify="left" if name in ("running and waiting", "") else "right")
    for report in reports:
        ratio = report.ratio
        verdict = "goal met" if ratio.median <= GOAL else "met" if ratio.median <= MUST else "missed"
        table.add_row(
            report.name,
            f"{report.vllm_ms:.2f}",
            f"{report.conserve_ms:.2f}",
            f"{ratio.median:.2f} ({ratio.min:.2f}-{ratio.max:.2f})",
            verdict,
        )
    return table


if __name__ == "__main__":
    typer.run(main)
