"""`python -m loadtests.journal_cost`: what leases and the journal cost offline throughput, on a real engine.

The same requests in three ways, by turns: given to the engine one after the other; claimed from a batch and committed
to it by a harvester; and that with a journal. Throughput is that between a fifth and nine tenths of all tokens, so that
neither the beginning nor the end of a batch counts. Also how many tokens would be generated again, were the replica to
die, at any moment of it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track
from rich.table import Table

from conserve.config import EngineSettings, Settings
from conserve.engine.contract import EngineStats, OfflineResult, OnChunk, TokenRecord
from conserve.engine.direct import DirectEngine, DirectEngineConfig
from conserve.engine.options import Objective
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs import embedded
from conserve.jobs.batch import BatchEndpoint
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from conserve.jobs.service import JobService
from conserve.models import DEFAULT_MODEL, resolve_model
from conserve.telemetry.logs import configure_program_logs
from loadtests.interruptible import run_interruptible
from loadtests.report import Ratio, describe_machine

Way = Literal["direct", "leased", "journaled"]
WAYS: Final[tuple[Way, ...]] = ("direct", "leased", "journaled")
MODEL = "any"
PROMPT_TOKENS = 60
FROM, UNTIL = 0.2, 0.9
SAMPLE_S = 0.02
TIMEOUT_S = 900.0
MUST, GOAL = 0.98, 0.995
"""Throughput with leases and journal, as a part of that without."""
UNLIMITED = Objective(ttft_slo_ms=math.inf, tbt_slo_ms=math.inf)


class Run(NamedTuple):
    """One turn of one way: offline tokens a second, CPU time of this process for each 1,000 tokens, tokens at risk."""

    tokens_per_s: float
    front_ms: float
    at_risk: int


class JournalReport(BaseModel):
    """What is written to `journal.json`.

    Attributes:
        requests, output_tokens: Of one turn; output tokens of each request.
        window: Requests in flight.
        tokens_per_s: Median of the turns, by way.
        leased, journaled: Throughput over that of requests given directly; interval: lowest and highest of the turns.
        front_ms: CPU time of the front end, which is also the harvester, for 1,000 tokens; median of the turns, by way.
        journal_tokens: The setting.
        at_risk: Most tokens of one request that were not in the journal, at any moment of the turns.
        verdict: Of `journaled`.
    """

    requests: int
    output_tokens: int
    window: int
    tokens_per_s: dict[str, float]
    leased: Ratio
    journaled: Ratio
    front_ms: dict[str, float]
    journal_tokens: int
    at_risk: int
    verdict: str


class BatchEngine:
    """Runs what a harvester takes from a batch of token ids."""

    def __init__(self, engine: DirectEngine) -> None:
        self._engine = engine
        self.running: dict[int, TokenRecord | None] = {}

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        """Runs one request."""
        key = id(body)
        self.running[key] = record
        try:
            tokens = await self._engine.answer(body["prompt"], body["max_tokens"], record)
        finally:
            del self.running[key]
        return OfflineResult(200, {"id": "cmpl-1"}, len(body["prompt"]), tokens)

    def grant_floor(self, share: float) -> None:
        """There are no online requests to take it from."""

    def stats(self) -> EngineStats:
        """Nothing online runs here."""
        return EngineStats(0, 0, len(self.running), 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0)

    def count_at_risk(self) -> int:
        """Most tokens of a request that are not journaled now, those that the engine has not told of included."""
        records = [record for record in self.running.values() if record is not None]
        return max((record.new_count + record.piece - 1 for record in records), default=0)


class Bench:
    """An engine and a queue."""

    def __init__(self, engine: DirectEngine, redis: Any, settings: Settings, output_tokens: int) -> None:
        self._engine = engine
        self._redis = redis
        self._settings = settings
        self._output_tokens = output_tokens
        self._random = random.Random(1)

    async def run(self, way: Way, requests: int) -> Run:
        """One turn of one way."""
        prompts = [self._random.choices(range(1_000, 20_000), k=PROMPT_TOKENS) for _ in range(requests)]
        total = requests * self._output_tokens
        engine = BatchEngine(self._engine)
        work = self._give(prompts) if way == "direct" else self._harvest(engine, prompts, journals=way == "journaled")
        began = self._engine.counters().offline_decode_tokens
        at_risk, marks = 0, {}
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.sleep(SAMPLE_S)
                done = self._engine.counters().offline_decode_tokens - began
                at_risk = max(at_risk, engine.count_at_risk())
                for share in (FROM, UNTIL):
                    if done >= share * total and share not in marks:
                        marks[share] = (time.perf_counter(), time.process_time(), done)
            await task
        finally:
            task.cancel()
        (from_s, from_cpu_s, first), (until_s, until_cpu_s, last) = marks[FROM], marks[UNTIL]
        tokens = last - first
        return Run(tokens / (until_s - from_s), (until_cpu_s - from_cpu_s) * 1e6 / tokens, at_risk)

    async def _give(self, prompts: list[list[int]]) -> None:
        window = asyncio.Semaphore(self._settings.harvest.max_window)

        async def answer(prompt: list[int]) -> None:
            async with window:
                await self._engine.answer(prompt, self._output_tokens)

        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(answer(prompt))

    async def _harvest(self, engine: BatchEngine, prompts: list[list[int]], *, journals: bool) -> None:
        redis, settings = self._redis, self._settings
        store, queue = FileStore(settings.files_url), JobQueue(redis, settings)
        service = JobService(redis, store, settings, [MODEL])
        keeper = BatchKeeper(redis, store, settings, [MODEL])
        file = await service.upload_file("input.jsonl", "batch", self._make_lines(prompts))
        batch_id = (await service.create_batch(file.id, BatchEndpoint.COMPLETIONS, "24h")).id
        await keeper.run_once()
        board = CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms)
        controller = HarvestController(board, queue, settings.harvest)
        revision = "measured" if journals else None
        harvester = Harvester(engine, queue, store, board, settings, "r1", MODEL, revision)
        async with beside(controller.run()), beside(harvester.run()):
            while (await service.get_batch(batch_id)).request_counts.completed < len(prompts):  # noqa: ASYNC110 - polled
                await asyncio.sleep(0.2)
        await harvester.drain()
        await keeper.run_once()

    async def _make_lines(self, prompts: list[list[int]]) -> AsyncIterator[bytes]:
        for number, prompt in enumerate(prompts):
            body = {"model": MODEL, "prompt": prompt, "max_tokens": self._output_tokens, "temperature": 0}
            line = {"custom_id": f"r{number}", "method": "POST", "url": BatchEndpoint.COMPLETIONS, "body": body}
            yield json.dumps(line).encode() + b"\n"


@asynccontextmanager
async def beside(work: Awaitable[Any]) -> AsyncIterator[None]:
    """Runs something beside the block, until its end; what it raises ends the block's task when it is awaited."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def measure(
    model: str, engine: EngineSettings, window: int, requests: int, tokens: int, turns: int
) -> JournalReport:
    """Measures everything; the parameters are those of `main`."""
    runs: dict[Way, list[Run]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="journal-cost-") as folder:
        settings = Settings.model_validate({"state_dir": folder, "harvest": {"max_window": window}})
        redis: Any = await connect(settings)
        try:
            direct = await DirectEngine.start(DirectEngineConfig(resolve_model(model), engine, UNLIMITED))
            try:
                bench = Bench(direct, redis, settings, tokens)
                async with asyncio.timeout(TIMEOUT_S * (turns + 1)):
                    await bench.run("journaled", window * 2)  # Loads what the first use loads.
                    for turn in track(range(turns), "measuring", console=Console(stderr=True), transient=True):
                        for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
                            runs[way].append(await bench.run(way, requests))
            finally:
                await direct.close()
        finally:
            await redis.aclose()
            await asyncio.to_thread(embedded.stop, Path(folder))
    leased, journaled = (_compare(runs[way], runs["direct"]) for way in ("leased", "journaled"))
    return JournalReport(
        requests=requests,
        output_tokens=tokens,
        window=window,
        tokens_per_s={way: statistics.median(run.tokens_per_s for run in runs[way]) for way in WAYS},
        leased=leased,
        journaled=journaled,
        front_ms={way: statistics.median(run.front_ms for run in runs[way]) for way in WAYS},
        journal_tokens=settings.jobs.journal_tokens,
        at_risk=max(run.at_risk for run in runs["journaled"]),
        verdict=_judge(journaled.median),
    )


def _compare(ours: list[Run], others: list[Run]) -> Ratio:
    ratios = [one.tokens_per_s / other.tokens_per_s for one, other in zip(ours, others, strict=True)]
    return Ratio(median=statistics.median(ratios), min=min(ratios), max=max(ratios), interval="repeats")


def _judge(ratio: float) -> str:
    if ratio >= GOAL:
        return "goal met"
    return "met" if ratio >= MUST else "missed"


def main(
    model: Annotated[str, typer.Option(help="As `model.source`.")] = DEFAULT_MODEL,
    window: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    requests: Annotated[int, typer.Option(min=4, help="Of one turn.")] = 32,
    tokens: Annotated[int, typer.Option(min=20, help="Output tokens of a request.")] = 120,
    turns: Annotated[int, typer.Option(min=1, help="Of each way.")] = 6,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="As `engine.dtype`.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for journal.json.")] = None,
) -> None:
    """Prints the figures, and writes `journal.json`."""
    configure_program_logs()
    engine = EngineSettings(
        max_model_len=1_024, max_num_seqs=window, dtype=dtype, extra_args={"use_tqdm_on_load": False}
    )
    report = run_interruptible(measure(model, engine, window, requests, tokens, turns))
    Console(highlight=False).print(render(report))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), "turns": turns, **report.model_dump()}
        (out / "journal.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def render(report: JournalReport) -> Table:
    """The table that is printed."""
    table = Table(
        title=f"{report.window} requests in flight, {report.output_tokens} tokens each",
        caption=f"Leases and journal must cost at most {1 - MUST:.1%}, and should at most {1 - GOAL:.1%}: "
        f"{report.verdict}. At most {report.at_risk} tokens of a request were not journaled at any moment "
        f"(jobs.journal_tokens: {report.journal_tokens}).",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("", "tokens/s", "of direct", "front end, CPU ms per 1,000 tokens"):
        table.add_column(name, justify="right" if name else "left")
    ratios = {"leased": report.leased, "journaled": report.journaled}
    for way in WAYS:
        ratio = ratios.get(way)
        part = "" if ratio is None else f"{ratio.median:.3f} ({ratio.min:.3f} to {ratio.max:.3f})"
        table.add_row(way, f"{report.tokens_per_s[way]:,.1f}", part, f"{report.front_ms[way]:,.0f}")
    return table


if __name__ == "__main__":
    typer.run(main)
