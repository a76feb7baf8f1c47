"""`python -m loadtests.kill_runs`: batches run while processes of the offline queue are killed at random moments.

Replicas, the controller, the front and Redis. Everything but the engine is what runs in the application: harvesters,
the controller with its keeper and its watch over the embedded Redis, and the HTTP routes. In the end every request of
every accepted batch must have exactly one answer, the right one. Exits with 1 if not.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from conserve.config import Settings
from conserve.jobs.batch import Batch
from loadtests.killing.client import PatientClient
from loadtests.killing.ledger import Verdict, make_input
from loadtests.killing.roles import FRONT_SOCKET
from loadtests.killing.victims import Household, Victim
from loadtests.report import describe_machine

BATCHES_AT_A_TIME: Final = 3
REQUESTS: Final = (1, 120)
"""Of a batch, drawn evenly."""
WEIGHTS: Final[dict[Victim, int]] = {"replica": 4, "controller": 2, "front": 2, "redis": 2}
POLL_S: Final = 0.2
END_LIMIT_S: Final = 180.0
"""So long batches may take after the last kill."""
SHOWN: Final = 10


class KillReport(BaseModel):
    """What is written to `kills.json`.

    Attributes:
        kills: By kind of process.
        batches, acknowledged: Batches there are in the end, and those whose creation was answered.
        requests: Of all of them.
        lost, twice, wrong, unfinished: As in `Verdict`.
        forgotten: Batches that were acknowledged and are not there.
        duration_s: Of the whole.
    """

    kills: dict[str, int]
    batches: int
    acknowledged: int
    requests: int
    lost: list[str]
    twice: list[str]
    wrong: list[str]
    unfinished: list[str]
    forgotten: list[str]
    duration_s: float

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, done twice or wrong."""
        return not (self.lost or self.twice or self.wrong or self.unfinished or self.forgotten)


class KillRun:
    """One run.

    Args:
        folder: For Redis, files and logs.
        kills: How many.
        pause_s: From one to the next, on average.
        replicas: Of the deployment.
        seed: Of everything that is drawn.
    """

    def __init__(self, folder: Path, kills: int, pause_s: float, replicas: int, seed: int) -> None:
        self._kills_wanted = kills
        self._pause_s = pause_s
        self._generator = random.Random(seed)
        self._settings = make_settings(folder)
        self._household = Household(self._settings, replicas, random.Random(seed + 1), folder / "processes.log")
        self._kills: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._acknowledged: list[str] = []
        self._is_over = asyncio.Event()

    async def run(self, progress: Progress) -> KillReport:
        """Starts everything, kills, waits for the batches, counts, and stops everything."""
        began_s = time.monotonic()
        task = progress.add_task("killing", total=self._kills_wanted)
        client = PatientClient(str(self._settings.state_dir / FRONT_SOCKET))
        try:
            await asyncio.to_thread(self._household.start)
            async with asyncio.TaskGroup() as group:
                for _ in range(BATCHES_AT_A_TIME):
                    group.create_task(self._submit_on_end(client))
                await self._kill_on_end(lambda: progress.advance(task))
                self._is_over.set()
            self._household.check()
            batches = await self._wait_for_all(client)
            verdict = Verdict()
            for batch in batches:
                name = (batch.metadata or {})["name"]
                verdict.check(batch, name, self._sizes[name], await client.read_lines(batch))
        finally:
            await client.close()
            await asyncio.to_thread(self._household.stop)
        return KillReport(
            kills=dict(self._kills),
            batches=len(batches),
            acknowledged=len(self._acknowledged),
            requests=verdict.requests,
            lost=verdict.lost,
            twice=verdict.twice,
            wrong=verdict.wrong,
            unfinished=verdict.unfinished,
            forgotten=sorted(set(self._acknowledged) - {batch.id for batch in batches}),
            duration_s=time.monotonic() - began_s,
        )

    async def _kill_on_end(self, advance: Callable[[], None]) -> None:
        while self._kills.total() < self._kills_wanted:
            await asyncio.sleep(self._generator.expovariate(1.0 / self._pause_s))
            victim = self._generator.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            if await self._household.kill(victim):
                self._kills[victim] += 1
                advance()

    async def _submit_on_end(self, client: PatientClient) -> None:
        while not self._is_over.is_set():
            name = f"b{len(self._sizes)}"
            self._sizes[name] = self._generator.randint(*REQUESTS)
            batch = await client.submit(make_input(name, self._sizes[name]), {"name": name})
            self._acknowledged.append(batch.id)
            while not (await client.get(batch.id)).status.ended:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_over.wait(), POLL_S)
                    return

    async def _wait_for_all(self, client: PatientClient) -> list[Batch]:
        until_s = time.monotonic() + END_LIMIT_S
        while True:
            batches = await client.list_batches()
            if all(batch.status.ended for batch in batches) or time.monotonic() > until_s:
                return batches
            await asyncio.sleep(POLL_S)


def make_settings(folder: Path) -> Settings:
    """Short leases, and no request is given up: whoever holds it when it is killed is not to blame."""
    jobs = {"lease_ms": 1_500, "max_attempts": 100, "suspicions": 100, "retry_delay_s": 0.05, "commit_period_ms": 50}
    harvest = {"report_period_ms": 100, "allotment_ttl_ms": 1_000, "max_window": 16}
    return Settings.model_validate({"state_dir": folder, "jobs": jobs, "harvest": harvest, "model": {"name": "light"}})


def render(report: KillReport) -> Table:
    """The report as a table."""
    table = Table("", "", title="Kills at random moments", show_header=False)
    kills = ", ".join(f"{count} {name}" for name, count in sorted(report.kills.items()))
    table.add_row("killed", f"{sum(report.kills.values())} ({kills})")
    table.add_row("batches, requests", f"{report.batches:,}, {report.requests:,}")
    table.add_row("acknowledged batches that are gone", str(len(report.forgotten)))
    table.add_row("batches that did not complete", str(len(report.unfinished)))
    table.add_row("requests lost", str(len(report.lost)))
    table.add_row("requests answered twice", str(len(report.twice)))
    table.add_row("wrong answers or counts", str(len(report.wrong)))
    table.add_row("took", f"{report.duration_s:.0f} s")
    return table


def main(
    kills: Annotated[int, typer.Option(min=1, help="How often something is killed.")] = 300,
    pause_ms: Annotated[int, typer.Option(min=1, help="From one kill to the next, on average.")] = 300,
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Of the deployment.")] = 3,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for kills.json.")] = None,
) -> None:
    """Prints what became of the requests; exits with 1 if one was lost, done twice or answered wrongly."""
    console = Console(highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="conserve-kills-") as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        report = asyncio.run(KillRun(Path(folder), kills, pause_ms / 1e3, replicas, seed).run(progress))
    console.print(render(report))
    for name in ("forgotten", "unfinished", "lost", "twice", "wrong"):
        for problem in getattr(report, name)[:SHOWN]:
            console.print(f"{name}: {problem}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), "seed": seed, **report.model_dump()}
        (out / "kills.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not report.is_clean:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
