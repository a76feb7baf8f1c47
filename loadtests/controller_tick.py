"""`python -m loadtests.controller_tick`: what a round of the harvesting controller costs, on a Valkey of its own.

Reports of made-up replicas and batches of made-up tenants are in it as the application writes them. Between two rounds
all of them change, as they do under full load: each replica reports anew, each batch has done some requests. So each
round reads everything anew. Allotments that stay the same are not written again before a quarter of their time; those
of the column "all written" are, as by a controller that has taken over.

Rounds are timed in the process of the controller, in wall time: least and median of many, since other programs run
beside it. Beside that stands the processor time of the controller, and of the server.
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.collector import rest_collector
from conserve.harvest.controller import HarvestController, TickTimes
from conserve.harvest.messages import CapacityReport
from conserve.jobs import embedded
from conserve.jobs.batch import BatchEndpoint
from conserve.jobs.connection import connect
from conserve.jobs.keys import Keys
from conserve.jobs.queue import JobQueue
from conserve.jobs.validation import RequestRange
from conserve.policy.harvest_rate import IterationCosts
from conserve.telemetry.logs import configure_program_logs
from loadtests.interruptible import run_interruptible
from loadtests.report import describe_machine

MODEL: Final = "any"
AT_ONCE: Final = 50
QUEUED: Final = 200
"""Requests in the queue of each batch."""
MUST_MS: Final = 100.0
MUST_DECISION_MS: Final = 50.0
LOOP: Final = 2_000_000
LEAST_EXCHANGES: Final = 1_000
PREFIXES: Final = 20
"""A fifth of the batches has one of so many prefixes."""
LATE_EACH: Final = 50
"""One of so many batches is late."""


class TickReport(BaseModel):
    """Times of a round, in ms: least and median, and the medians of its parts.

    Attributes:
        controller_cpu_ms: Processor time of the controller for a round, median.
        server_cpu_ms: The same of the server, on average.
        exchange_us: Processor time of the server for one report that is written and one allotment that is read.
        written: Allotments that were written, median.
        report_bytes, allotment_bytes: Length of one, on average.
    """

    replicas: int
    jobs: int
    tenants: int
    rounds: int
    least_ms: float
    median_ms: float
    reports_ms: float
    batches_ms: float
    decision_ms: float
    least_decision_ms: float
    writing_ms: float
    all_written_ms: float
    controller_cpu_ms: float
    server_cpu_ms: float
    exchange_us: float
    written: float
    report_bytes: float
    allotment_bytes: float


class TickBench:
    """A namespace with replicas, batches and a controller.

    Args:
        redis: The server.
        settings: Of the application.
        sizes: Replicas, jobs and tenants.
    """

    def __init__(self, redis: Any, settings: Settings, sizes: tuple[int, int, int]) -> None:
        self._redis = redis
        self._replicas, self._jobs, self._tenants = sizes
        self._random = random.Random(1)
        namespace = f"tick-{secrets.token_hex(4)}"
        jobs = settings.jobs.model_copy(update={"namespace": namespace, "max_active_batches": self._jobs})
        self._settings = settings.model_copy(update={"jobs": jobs})
        self._keys = Keys(namespace)
        self._queue = JobQueue(redis, self._settings)
        self.board = CapacityBoard(redis, namespace, settings.harvest.allotment_ttl_ms)
        self._batch_ids: list[str] = []
        weights = {self._tenant(number): 1.0 + number % 3 for number in range(self._tenants)}
        self.controller = HarvestController(self.board, self._queue, settings.harvest, weights, lambda: self._urgencies)
        self._urgencies: dict[str, float] = {}

    async def fill(self) -> None:
        """Puts all batches up."""
        for start in range(0, self._jobs, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, self._jobs))
            self._batch_ids += await asyncio.gather(*(self._start_batch(number) for number in numbers))
        self._urgencies = {one: self._random.random() for one in self._batch_ids[::LATE_EACH]}

    async def change(self) -> None:
        """What happens between two rounds: every replica reports, every batch has done something."""
        for start in range(0, self._replicas, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, self._replicas))
            await asyncio.gather(*(self.board.publish_report(self._make_report(number)) for number in numbers))
        for start in range(0, self._jobs, AT_ONCE):
            async with self._redis.pipeline(transaction=False) as pipe:
                for batch_id in self._batch_ids[start : start + AT_ONCE]:
                    keys = self._keys.batch(batch_id)
                    pipe.hincrby(keys.batch, "completed", 1)
                    pipe.hincrby(keys.batch, "prompt_tokens", self._random.randint(200, 2_000))
                    pipe.hincrby(keys.batch, "completion_tokens", self._random.randint(20, 200))
                await pipe.execute()

    async def measure_exchange_us(self) -> float:
        """What each replica takes of the server some times a second: it reports, and reads its allotment."""

        async def exchange(number: int) -> None:
            await self.board.publish_report(self._make_report(number))
            await self.board.read_allotment(f"replica-{number:05d}")

        before_ms, count = await self.measure_server_ms(), 0
        while count < LEAST_EXCHANGES:
            numbers = range(min(AT_ONCE, self._replicas))
            await asyncio.gather(*(exchange(number) for number in numbers))
            count += len(numbers)
        return 1e3 * (await self.measure_server_ms() - before_ms) / count

    async def forget_written(self) -> None:
        """The next round writes all allotments, as that of a controller that has taken over."""
        await self.board.publish_allotments({})

    async def measure_server_ms(self) -> float:
        """Processor time that the server has used so far."""
        info = await self._redis.info("cpu")
        return 1e3 * (float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"]))

    async def measure_entry(self, kind: str) -> float:
        """Bytes of the reports or allotments, of each on average."""
        names = [f"replica-{number:05d}" for number in range(min(self._replicas, 1_000))]
        found = await self._redis.mget(
            [f"{self._settings.jobs.namespace}:{{capacity}}:{kind}:{name}" for name in names]
        )
        return statistics.fmean(len(entry) for entry in found if entry)

    async def _start_batch(self, number: int) -> str:
        batch_id, token = f"batch_{secrets.token_hex(16)}", secrets.token_hex(8)
        await self._queue.create(
            batch_id,
            input_file_id=f"file-{secrets.token_hex(16)}",
            endpoint=BatchEndpoint.CHAT_COMPLETIONS,
            completion_window="24h",
            window_ms=86_400_000,
            metadata=None,
            tenant=self._tenant(number % self._tenants),
        )
        await self._queue.begin_enqueue(batch_id, token)
        ranges = [RequestRange(line, line * 1_000, 999) for line in range(1, QUEUED + 1)]
        await self._queue.enqueue(batch_id, token, 0, ranges)
        prefix = f"prefix-{number % PREFIXES}" if number % 5 == 0 else ""
        await self._queue.start(batch_id, token, QUEUED, MODEL, prefix, {"admission": "fits"})
        return batch_id

    def _make_report(self, number: int) -> CapacityReport:
        """Of a replica as it was in the round before, but for what changes all the time."""
        draw, own = self._random, random.Random(number)
        online = own.randint(0, 20)
        kv_offline_tokens = own.randint(50_000, 200_000)
        return CapacityReport(
            replica_id=f"replica-{number:05d}",
            model=MODEL,
            state="serving",
            window=32,
            online_running=online + draw.randint(0, 2),
            online_waiting=draw.randint(0, 2),
            offline_running=own.randint(20, 32) - draw.randint(0, 2),
            kv_usage=draw.random(),
            online_busy_s=draw.random() * 1e4,
            offline_busy_s=draw.random() * 1e4,
            engine_cpu_s=draw.random() * 1e4,
            online_requests=draw.randint(0, 10**6),
            offline_requests=draw.randint(0, 10**6),
            offline_prompt_tokens=draw.randint(0, 10**9),
            offline_output_tokens=draw.randint(0, 10**8),
            costs=IterationCosts(8.0, 0.03, 0.04),
            kv_tokens=400_000,
            kv_free_tokens=150_000 - draw.randint(0, 2_000),
            kv_reserved_tokens=20_000,
            kv_offline_tokens=kv_offline_tokens,
            checkpoint_tokens=1_000_000,
            checkpoint_free_tokens=draw.randint(0, 1_000_000),
            online_rate_per_s=draw.random() * 5,
            online_forecast_per_s=draw.random() * 5,
            headroom_tokens_per_s=draw.random() * 2e4,
            headroom_requests=12.0 + own.random() * 8 + draw.random(),
            slo_attainment=0.95 + draw.random() * 0.05,
        )

    def _tenant(self, number: int) -> str:
        return f"tenant-{number:03d}"


async def measure(redis: Any, settings: Settings, sizes: tuple[int, int, int], rounds: int) -> TickReport:
    """Fills a namespace and lets rounds pass."""
    bench = TickBench(redis, settings, sizes)
    await bench.fill()
    await bench.change()
    await bench.controller.step()
    times: list[TickTimes] = []
    all_written: list[float] = []
    cpu_ms: list[float] = []
    server_ms = 0.0
    threshold = gc.get_threshold()
    rest_collector()  # As in the controller's own process.
    for number in range(rounds):
        await bench.change()
        is_new = number % 4 == 3
        if is_new:
            await bench.forget_written()
        before_ms, began_s = await bench.measure_server_ms(), time.process_time()
        await bench.controller.step()
        cpu_ms.append((time.process_time() - began_s) * 1e3)
        server_ms += await bench.measure_server_ms() - before_ms
        if is_new:
            all_written.append(bench.controller.latest.whole_ms)
        else:
            times.append(bench.controller.latest)
    wholes = [one.whole_ms for one in times]
    report = TickReport(
        replicas=sizes[0],
        jobs=sizes[1],
        tenants=sizes[2],
        rounds=rounds,
        least_ms=min(wholes),
        median_ms=statistics.median(wholes),
        reports_ms=statistics.median(one.reports_ms for one in times),
        batches_ms=statistics.median(one.batches_ms for one in times),
        decision_ms=statistics.median(one.decision_ms for one in times),
        least_decision_ms=min(one.decision_ms for one in times),
        writing_ms=statistics.median(one.writing_ms for one in times),
        all_written_ms=statistics.median(all_written),
        controller_cpu_ms=statistics.median(cpu_ms),
        server_cpu_ms=server_ms / rounds,
        exchange_us=await bench.measure_exchange_us(),
        written=statistics.median(one.written for one in times),
        report_bytes=await bench.measure_entry("report"),
        allotment_bytes=await bench.measure_entry("allotment"),
    )
    gc.unfreeze()
    gc.set_threshold(*threshold)
    await redis.flushdb()
    return report


def time_loop_ms() -> float:
    """How fast this machine is now: the least processor time of a simple loop."""
    times = []
    for _ in range(5):
        began_s, total = time.process_time(), 0
        for number in range(LOOP):
            total += number
        times.append(time.process_time() - began_s)
    return 1e3 * min(times)


def show(reports: list[TickReport]) -> None:
    """Prints the table."""
    table = Table(title="one round of the controller, ms (median; least in brackets)")
    for name in ("replicas", "jobs", "tenants", "whole", "reports", "batches", "decision", "writing", "all written"):
        table.add_column(name, justify="right")
    for name in (
        "CPU: controller",
        "server",
        "server, µs an exchange",
        "allotments written",
        "bytes of a report",
        "of an allotment",
    ):
        table.add_column(name, justify="right")
    for one in reports:
        table.add_row(
            *(f"{number:,}" for number in (one.replicas, one.jobs, one.tenants)),
            f"{one.median_ms:.1f} ({one.least_ms:.1f})",
            f"{one.reports_ms:.1f}",
            f"{one.batches_ms:.1f}",
            f"{one.decision_ms:.1f} ({one.least_decision_ms:.1f})",
            f"{one.writing_ms:.1f}",
            f"{one.all_written_ms:.1f}",
            f"{one.controller_cpu_ms:.1f}",
            f"{one.server_cpu_ms:.1f}",
            f"{one.exchange_us:.0f}",
            f"{one.written:,.0f}",
            f"{one.report_bytes:,.0f}",
            f"{one.allotment_bytes:,.0f}",
        )
    Console(width=200).print(table)


def main(
    replicas: Annotated[list[int], typer.Option(help="How many replicas; may be repeated.")] = [100, 1_000],  # noqa: B006 - typer's way
    jobs: Annotated[int, typer.Option(min=1)] = 1_000,
    tenants: Annotated[int, typer.Option(min=1)] = 100,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds that are timed.")] = 40,
    out: Annotated[Path | None, typer.Option(help="Folder for controller_tick.json.")] = None,
) -> None:
    """Measures what a round of the harvesting controller costs."""
    configure_program_logs()

    async def run(folder: Path) -> list[TickReport]:
        url = await asyncio.to_thread(embedded.ensure_running, folder)
        harvest = {"max_window": 32, "allotment_ttl_ms": 600_000}
        settings = Settings.model_validate({"state_dir": folder, "harvest": harvest, "jobs": {"redis_url": url}})
        redis = await connect(settings)
        try:
            return [await measure(redis, settings, (count, jobs, tenants), rounds) for count in replicas]
        finally:
            await redis.aclose()
            await asyncio.to_thread(embedded.stop, folder)

    with tempfile.TemporaryDirectory() as folder:
        reports = run_interruptible(run(Path(folder)))
    Console().print(
        f"{describe_machine()}; {LOOP:,} additions in Python take {time_loop_ms():,.0f} ms of processor time"
    )
    show(reports)
    for one in reports:
        is_met = one.median_ms <= MUST_MS and one.decision_ms <= MUST_DECISION_MS
        verdict = "met" if is_met else "missed, in wall time"
        Console().print(
            f"{one.replicas:,} replicas: {MUST_MS:.0f} ms, {MUST_DECISION_MS:.0f} ms of them decision: {verdict}"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        text = "\n".join(one.model_dump_json() for one in reports)
        (out / "controller_tick.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
