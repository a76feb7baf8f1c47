"""`python -m loadtests.queue_cost`: what the durable queue costs, without an engine, on the machine it runs on.

How much memory of Redis a queued request takes; how many requests one client claims and commits in a second; whether a
claim takes longer from a long queue than from a short one; and how long a whole input file takes from its upload until
its requests can be claimed, and how much memory of the process. On a Valkey of its own unless a URL is given.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import psutil
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track
from rich.table import Table

from conserve.config import EMBEDDED_REDIS, Settings
from conserve.jobs import embedded
from conserve.jobs.batch import BatchEndpoint, BatchStatus
from conserve.jobs.claims import ClaimedRequest, ResultRef
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.keys import Keys
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from conserve.jobs.service import JobService
from conserve.jobs.validation import RequestRange
from conserve.telemetry.logs import configure_program_logs
from loadtests.interruptible import run_interruptible
from loadtests.report import Ratio, describe_machine

MODEL = "any"
ENDPOINT = BatchEndpoint.CHAT_COMPLETIONS
LINE_BYTES = 4_000
"""Of 50,000 lines in 200 MB."""
BULK = 500
LEASE_MS = 600_000
SHORT_QUEUE = 1_000
CLAIMED_AT_ONCE = 8
"""As many as a replica has in flight by default."""
SAMPLE_S = 0.02
MB = 1e6


class Limits(BaseModel):
    """What a figure must and should be; `most` says that less is better."""

    must: float
    goal: float
    most: bool = True

    def judge(self, value: float) -> str:
        """In words, as they stand in the table."""
        sign = 1 if self.most else -1
        if sign * value <= sign * self.goal:
            return "goal met"
        return "met" if sign * value <= sign * self.must else "missed"


LIMITS: Final = {
    "queued_bytes": Limits(must=250, goal=120),
    "enqueue_s": Limits(must=20, goal=5),
    "rss_growth_mb": Limits(must=200, goal=200),
    "requests_per_s": Limits(must=5_000, goal=20_000, most=False),
    "claim_ratio": Limits(must=2.0, goal=1.1),
}


class QueueReport(BaseModel):
    """What is written to `queue.json`.

    Attributes:
        queued_bytes: Memory of Redis for each of `queued` requests in one queue.
        leased_bytes, committed_bytes: The same for one that is leased, and for one whose result is committed.
        requests_per_s: Claimed and committed by one client, 500 at a time; median of the repeats, and of each.
        claim_ms, short_claim_ms: Median time of a claim of 8 requests, from the long queue and from one of 1,000.
        claim_ratio: The first over the second; lowest and highest of the repeats.
        lines, file_mb: Of the input file.
        upload_s: From its first byte until it is stored, the making of it included.
        enqueue_s: From the creation of the batch until its requests can be claimed, every line validated.
        rss_growth_mb: Most memory of the process during both, above what it had before.
    """

    server: str
    queued: int
    queued_bytes: float
    leased_bytes: float
    committed_bytes: float
    requests_per_s: float
    repeats_per_s: list[float]
    claim_ms: float
    short_claim_ms: float
    claim_ratio: Ratio
    lines: int
    file_mb: float
    upload_s: float
    enqueue_s: float
    rss_growth_mb: float


class Bench:
    """Queues of made-up requests on one server."""

    def __init__(self, redis: Any, settings: Settings) -> None:
        self.redis = redis
        self.settings = settings
        self.store = FileStore(settings.files_url)
        self.queue = JobQueue(redis, settings)

    async def fill(self, count: int, name: str) -> str:
        """A batch in progress with so many requests in its queue."""
        batch_id, token = f"batch_{secrets.token_hex(8)}", secrets.token_hex(8)
        await self.queue.create(
            batch_id,
            input_file_id="file-00000000",
            endpoint=ENDPOINT,
            completion_window="24h",
            window_ms=86_400_000,
            metadata=None,
        )
        await self.queue.begin_enqueue(batch_id, token)
        for start in track(range(0, count, BULK), name, console=Console(stderr=True), transient=True):
            lines = range(start + 1, min(start + BULK, count) + 1)
            ranges = [RequestRange(line, (line - 1) * LINE_BYTES, LINE_BYTES - 1) for line in lines]
            await self.queue.enqueue(batch_id, token, start, ranges)
        await self.queue.start(batch_id, token, count, MODEL)
        return batch_id

    async def used_bytes(self) -> int:
        """Memory that the server uses now."""
        return int((await self.redis.info("memory"))["used_memory"])

    async def remove(self, batch_id: str) -> None:
        """Takes a batch away."""
        await self.redis.delete(*Keys(self.settings.jobs.namespace).batch(batch_id))
        await self.queue.forget(batch_id)


def make_results(claimed: list[ClaimedRequest], segment: str) -> list[ResultRef]:
    """Results of requests, as long as real ones are in Redis."""
    return [
        ResultRef(one.line, one.fence, "output", segment, index * LINE_BYTES, LINE_BYTES, 900, 100)
        for index, one in enumerate(claimed)
    ]


async def measure_memory(bench: Bench, queued: int, moved: int) -> tuple[str, float, float, float]:
    """A batch of so many requests; bytes for each that is queued, leased and committed (of `moved` of them)."""
    before = await bench.used_bytes()
    batch_id = await bench.fill(queued, "queueing")
    full = await bench.used_bytes()
    claimed: list[ClaimedRequest] = []
    while len(claimed) < moved:
        claimed += await bench.queue.claim(batch_id, min(BULK, moved - len(claimed)), LEASE_MS, secrets.token_hex(8))
    leased = await bench.used_bytes()
    for start in range(0, moved, BULK):
        refs = make_results(claimed[start : start + BULK], f"{secrets.token_hex(8)}-{start}")
        await bench.queue.commit(batch_id, refs)
    committed = await bench.used_bytes()
    queued_bytes = (full - before) / queued
    # What was moved stood in the queue before.
    return batch_id, queued_bytes, (leased - full) / moved + queued_bytes, (committed - full) / moved + queued_bytes


async def measure_rate(bench: Bench, requests: int) -> float:
    """Requests that one client claims and commits in a second."""
    batch_id = await bench.fill(requests, "filling")
    epoch = secrets.token_hex(8)
    began_s, done = time.perf_counter(), 0
    while claimed := await bench.queue.claim(batch_id, BULK, LEASE_MS, epoch):
        done += len(await bench.queue.commit(batch_id, make_results(claimed, f"{epoch}-{done}")))
    passed_s = time.perf_counter() - began_s
    if done != requests:
        raise RuntimeError(f"{done} of {requests} requests were committed")
    await bench.remove(batch_id)
    return requests / passed_s


async def measure_claims(bench: Bench, long_id: str, short_id: str, turns: int) -> tuple[list[float], list[float]]:
    """Milliseconds of claims from two queues, by turns; what is claimed is given back."""
    epoch = secrets.token_hex(8)
    times: dict[str, list[float]] = {long_id: [], short_id: []}
    for turn in range(turns):
        for batch_id in (long_id, short_id) if turn % 2 else (short_id, long_id):
            began_s = time.perf_counter()
            claimed = await bench.queue.claim(batch_id, CLAIMED_AT_ONCE, LEASE_MS, epoch)
            times[batch_id].append((time.perf_counter() - began_s) * 1e3)
            await bench.queue.release(batch_id, {one.line: one.fence for one in claimed})
    return times[long_id], times[short_id]


async def make_input(lines: int, line_bytes: int, model: str = MODEL) -> AsyncIterator[bytes]:
    """An input file, line by line; it is never held whole."""
    for number in range(1, lines + 1):
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": ""}]}
        line = {"custom_id": f"request-{number}", "method": "POST", "url": ENDPOINT, "body": body}
        body["messages"][0]["content"] = "x" * max(0, line_bytes - 1 - len(json.dumps(line)))
        yield json.dumps(line).encode() + b"\n"


async def measure_enqueue(bench: Bench, lines: int, line_bytes: int) -> tuple[float, float]:
    """Seconds of the upload, and from the creation of the batch until its requests can be claimed."""
    service = JobService(bench.redis, bench.store, bench.settings, [MODEL])
    keeper = BatchKeeper(bench.redis, bench.store, bench.settings, [MODEL])
    began_s = time.perf_counter()
    file = await service.upload_file("input.jsonl", "batch", make_input(lines, line_bytes))
    uploaded_s = time.perf_counter()
    batch = await service.create_batch(file.id, ENDPOINT, "24h")
    await keeper.run_once()
    enqueued_s = time.perf_counter()
    batch = await service.get_batch(batch.id)
    if batch.status is not BatchStatus.IN_PROGRESS or batch.request_counts.total != lines:
        raise RuntimeError(f"the batch is {batch.status} with {batch.request_counts.total} requests: {batch.errors}")
    await bench.remove(batch.id)
    return uploaded_s - began_s, enqueued_s - uploaded_s


class RssGrowth:
    """The most memory of this process while the block runs, above what it had before, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = 0
        self._most = 0

    def __enter__(self) -> RssGrowth:
        self._before = self._most = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._most = max(self._most, self._process.memory_info().rss)

    @property
    def bytes(self) -> int:
        """So much."""
        return self._most - self._before


@asynccontextmanager
async def open_bench(redis_url: str, most_requests: int) -> AsyncIterator[Bench]:
    """A bench in a folder of its own; its server, and all of its keys, are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="queue-cost-") as folder:
        jobs = {
            "redis_url": redis_url,
            "namespace": f"cost-{secrets.token_hex(4)}",
            "lease_ms": LEASE_MS,
            "max_batch_requests": most_requests,
            "max_file_bytes": 10 * LINE_BYTES * most_requests,
        }
        settings = Settings.model_validate({"jobs": jobs, "state_dir": folder})
        try:
            redis: Any = await connect(settings)
            try:
                yield Bench(redis, settings)
                async for key in redis.scan_iter(match=f"{settings.jobs.namespace}:*", count=1_000):
                    await redis.unlink(key)
            finally:
                await redis.aclose()
        finally:
            if redis_url == EMBEDDED_REDIS:
                await asyncio.to_thread(embedded.stop, Path(folder))


async def measure(
    redis_url: str, queued: int, lines: int, line_bytes: int, requests: int, repeats: int, turns: int
) -> QueueReport:
    """Measures everything; the parameters are those of `main`."""
    async with open_bench(redis_url, max(queued, lines, requests)) as bench:
        server = await bench.redis.info("server")
        # Loads what the first use loads, so that it is not counted.
        await measure_enqueue(bench, 10, line_bytes)
        with RssGrowth() as growth:
            upload_s, enqueue_s = await measure_enqueue(bench, lines, line_bytes)
        moved = min(queued // 2, requests)
        long_id, queued_bytes, leased_bytes, committed_bytes = await measure_memory(bench, queued, moved)
        short_id = await bench.fill(SHORT_QUEUE, "filling")
        pairs = [await measure_claims(bench, long_id, short_id, turns) for _ in range(repeats)]
        rates = [await measure_rate(bench, requests) for _ in range(repeats)]
    long_ms, short_ms = (statistics.median(one for pair in pairs for one in pair[side]) for side in (0, 1))
    ratios = [statistics.median(long) / statistics.median(short) for long, short in pairs]
    return QueueReport(
        server=f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
        queued=queued,
        queued_bytes=queued_bytes,
        leased_bytes=leased_bytes,
        committed_bytes=committed_bytes,
        requests_per_s=statistics.median(rates),
        repeats_per_s=rates,
        claim_ms=long_ms,
        short_claim_ms=short_ms,
        claim_ratio=Ratio(median=long_ms / short_ms, min=min(ratios), max=max(ratios), interval="repeats"),
        lines=lines,
        file_mb=lines * line_bytes / MB,
        upload_s=upload_s,
        enqueue_s=enqueue_s,
        rss_growth_mb=growth.bytes / MB,
    )


def main(
    queued: Annotated[int, typer.Option(min=2, help="Requests in the long queue.")] = 1_000_000,
    lines: Annotated[int, typer.Option(min=1, help="Lines of the input file.")] = 50_000,
    line_bytes: Annotated[int, typer.Option(min=200, help="Length of a line.")] = LINE_BYTES,
    requests: Annotated[int, typer.Option(min=1, help="Requests claimed and committed in one repeat.")] = 50_000,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    turns: Annotated[int, typer.Option(min=1, help="Claims from each of the two queues in one repeat.")] = 400,
    redis_url: Annotated[str, typer.Option(help="A server to measure in place of one of its own.")] = EMBEDDED_REDIS,
    out: Annotated[Path | None, typer.Option(help="Folder for queue.json.")] = None,
) -> None:
    """Prints a table of the figures with what they must and should be, and writes `queue.json`."""
    configure_program_logs()
    report = run_interruptible(measure(redis_url, queued, lines, line_bytes, requests, repeats, turns))
    Console(highlight=False).print(render(report))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        verdicts = {name: limits.judge(find_figure(report, name)) for name, limits in LIMITS.items()}
        content = {"machine": describe_machine(), "repeats": repeats, **report.model_dump(), "verdicts": verdicts}
        (out / "queue.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_figure(report: QueueReport, name: str) -> float:
    """The figure of a report that has limits under this name."""
    value = getattr(report, name)
    return float(value.median if isinstance(value, Ratio) else value)


def render(report: QueueReport) -> Table:
    """The table that is printed."""
    table = Table(
        title=f"The durable queue on {report.server}",
        caption=f"Also: {report.leased_bytes:.0f} bytes for a request that is leased, {report.committed_bytes:.0f} for "
        f"one that is done; {report.upload_s:.1f} s for the upload of the file, which is made meanwhile.",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("", "measured", "must", "goal", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right")
    ratio = report.claim_ratio
    rates = report.repeats_per_s
    rows = [
        ("queued_bytes", f"memory for each of {report.queued:,} queued, bytes", f"{report.queued_bytes:.1f}"),
        ("enqueue_s", f"{report.lines:,} lines, {report.file_mb:.0f} MB, queued, s", f"{report.enqueue_s:.1f}"),
        ("rss_growth_mb", "  growth of the process meanwhile, MB", f"{report.rss_growth_mb:.0f}"),
        (
            "requests_per_s",
            "claimed and committed by one client, requests/s",
            f"{report.requests_per_s:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
        ),
        (
            "claim_ratio",
            f"claim of 8: {report.claim_ms:.2f} ms of {report.queued:,}, {report.short_claim_ms:.2f} ms of "
            f"{SHORT_QUEUE:,}",
            f"{ratio.median:.2f} ({ratio.min:.2f} to {ratio.max:.2f})",
        ),
    ]
    for name, label, measured in rows:
        limits = LIMITS[name]
        sign = "<=" if limits.most else ">="
        verdict = limits.judge(find_figure(report, name))
        table.add_row(label, measured, f"{sign} {limits.must:,g}", f"{sign} {limits.goal:,g}", verdict)
    return table


if __name__ == "__main__":
    typer.run(main)
