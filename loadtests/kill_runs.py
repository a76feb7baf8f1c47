"""`python -m loadtests.kill_runs`: batches run while processes of the offline queue are killed at random moments.

Replicas, the controller, the front and Redis. Batches of two tenants and several priorities run, and beside them flex
requests, whole and streamed. Everything but the engine is what runs in the application: harvesters, the controller
with its keeper and its watch over the embedded Redis, and the HTTP routes; with `--real` it is the application itself,
with a real model. In the end every request of every accepted batch must have exactly one answer, the right one, as
every flex request must, and of those nothing may be left in Redis. Exits with 1 if not.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from conserve.config import JobsSettings
from conserve.jobs.batch import Batch
from conserve.telemetry.logs import configure_program_logs
from loadtests.interruptible import run_interruptible
from loadtests.killing.application import ApplicationHousehold
from loadtests.killing.client import PatientClient
from loadtests.killing.flex import FlexClients
from loadtests.killing.household import KEYS, Household, Victim
from loadtests.killing.ledger import Verdict
from loadtests.killing.light import LightHousehold
from loadtests.killing.questions import Questions, make_input
from loadtests.killing.regeneration import Regeneration, read_log
from loadtests.killing.roles import ENGINE_LOG
from loadtests.report import describe_machine

BATCHES_AT_A_TIME: Final = 3
REQUESTS: Final = (1, 120)
"""Of a batch, drawn evenly."""
REAL_REQUESTS: Final = (4, 24)
WEIGHTS: Final[dict[Victim, int]] = {Victim.REPLICA: 4, Victim.CONTROLLER: 2, Victim.FRONT: 2, Victim.REDIS: 2}
PRIORITIES: Final = (-1, 0, 0, 1)
"""Of batches, drawn evenly."""
POLL_S: Final = 0.05
LONGEST_IDLE_S: Final = 10.0
"""After a kill, until there has to be work again or something else is killed."""
LEFT_LIMIT_S: Final = 90.0
"""So long what flex requests have left behind may be there after the last batch."""
END_LIMIT_S: Final = 600.0
"""So long batches may take after the last kill."""
JOURNAL_TOKENS: Final = JobsSettings().journal_tokens
PAUSE_MS: Final = {False: 300, True: 20_000}
"""From one kill to the next, on average, without and with a real model."""
SHOWN: Final = 10


class Again(BaseModel):
    """Tokens that were generated again; see `KillReport`."""

    attempts: int
    continued: int
    most: int
    over_interval: int


class KillReport(BaseModel):
    """What is written to `kills.json`.

    Attributes:
        kills: By kind of process.
        batches, acknowledged: Batches there are in the end, and those whose creation was answered.
        requests: Of all of them.
        flex, flex_tries: Flex requests that were answered, and how often they were asked for.
        lost, twice, wrong, unfinished: As in `Verdict`.
        forgotten: Batches that were acknowledged and are not there.
        left: What there is in Redis, in the end, of flex requests and of quotas in use.
        again: Further attempts, those that went on behind the beginning, most tokens that one of them has generated
            again, and attempts with more than a journal interval of them; None where engines write no log.
        duration_s: Of the whole.
    """

    kills: dict[str, int]
    batches: int
    acknowledged: int
    requests: int
    flex: int
    flex_tries: int
    lost: list[str]
    twice: list[str]
    wrong: list[str]
    unfinished: list[str]
    forgotten: list[str]
    left: list[str]
    again: Again | None
    duration_s: float

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, done twice or wrong, and nothing is left behind."""
        return not (self.lost or self.twice or self.wrong or self.unfinished or self.forgotten or self.left)


class KillRun:
    """One run.

    Args:
        household: In which is killed.
        kills: How many.
        pause_s: From one to the next, on average.
        requests: Fewest and most of a batch.
        generator: Draws everything.
        weights: How often each is killed, relative to the others.
        token_log: What the engines write down, if they do.
    """

    def __init__(
        self,
        household: Household,
        kills: int,
        pause_s: float,
        requests: tuple[int, int],
        generator: random.Random,
        weights: Mapping[Victim, int] = WEIGHTS,
        token_log: Path | None = None,
    ) -> None:
        self._household = household
        self._kills_wanted = kills
        self._pause_s = pause_s
        self._requests = requests
        self._generator = generator
        self._weights = weights
        self._token_log = token_log
        self._kills: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._acknowledged: list[str] = []
        self._is_over = asyncio.Event()

    async def run(self, progress: Progress) -> KillReport:
        """Starts everything, kills, waits for the batches, counts, and stops everything."""
        began_s = time.monotonic()
        task = progress.add_task("killing", total=self._kills_wanted)
        clients: list[PatientClient] = []
        batches: list[Batch] = []
        try:
            await asyncio.to_thread(self._household.start)
            clients += [self._household.connect(key) for key in KEYS.values()]
            verdict = Verdict(await self._household.learn(clients[0]))
            flex = FlexClients(clients, verdict, self._generator)
            async with asyncio.TaskGroup() as group:
                for number in range(BATCHES_AT_A_TIME):
                    client = clients[number % len(clients)]
                    group.create_task(self._submit_on_end(client, verdict.questions))
                group.create_task(flex.run(self._is_over.is_set))
                await self._kill_on_end(lambda: progress.advance(task))
                self._is_over.set()
            self._household.check()
            for client in clients:
                own = [batch for batch in await self._wait_for_all(client) if _name(batch)]
                for batch in own:
                    verdict.check(batch, _name(batch), self._sizes[_name(batch)], await client.read_lines(batch))
                batches += own
            left = await self._wait_until_nothing_is_left()
        finally:
            for client in clients:
                await client.close()
            await asyncio.to_thread(self._household.stop)
        return KillReport(
            kills=dict(self._kills),
            batches=len(batches),
            acknowledged=len(self._acknowledged),
            requests=verdict.requests,
            flex=verdict.flex,
            flex_tries=flex.tries,
            lost=verdict.lost,
            twice=verdict.twice,
            wrong=verdict.wrong,
            unfinished=verdict.unfinished,
            forgotten=sorted(set(self._acknowledged) - {batch.id for batch in batches}),
            left=left,
            again=_read_again(self._token_log),
            duration_s=time.monotonic() - began_s,
        )

    async def _kill_on_end(self, advance: Callable[[], None]) -> None:
        while self._kills.total() < self._kills_wanted:
            await self._wait_for_work()
            await asyncio.sleep(self._generator.expovariate(1.0 / self._pause_s))
            victim = self._generator.choices(list(self._weights), list(self._weights.values()))[0]
            if await self._household.kill(victim):
                self._kills[victim] += 1
                advance()

    async def _wait_for_work(self) -> None:
        """Until the engines have produced something since the last kill, so that it is work that kills fall into."""
        if self._token_log is None:
            return
        until_s = time.monotonic() + LONGEST_IDLE_S
        known = _measure(self._token_log)
        while _measure(self._token_log) == known and time.monotonic() < until_s:  # noqa: ASYNC110 - a file
            await asyncio.sleep(POLL_S)

    async def _submit_on_end(self, client: PatientClient, questions: Questions) -> None:
        while not self._is_over.is_set():
            name = f"b{len(self._sizes)}"
            self._sizes[name] = self._generator.randint(*self._requests)
            content = make_input(questions, name, self._sizes[name])
            batch = await client.submit(content, {"name": name}, self._generator.choice(PRIORITIES))
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

    async def _wait_until_nothing_is_left(self) -> list[str]:
        until_s = time.monotonic() + LEFT_LIMIT_S
        while True:
            left = await self._household.find_left()
            if not left or time.monotonic() > until_s:
                return left
            await asyncio.sleep(POLL_S)


def _name(batch: Batch) -> str:
    return (batch.metadata or {}).get("name", "")


def _measure(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _read_again(token_log: Path | None) -> Again | None:
    if token_log is None or not token_log.exists():
        return None
    with token_log.open(encoding="ascii") as lines:
        found: Regeneration = read_log(lines)
    return Again(
        attempts=len(found.again),
        continued=found.continued,
        most=max(found.again, default=0),
        over_interval=found.count_over(JOURNAL_TOKENS),
    )


def render(report: KillReport) -> Table:
    """The report as a table."""
    table = Table("", "", title="Kills at random moments", show_header=False)
    kills = ", ".join(f"{count} {name}" for name, count in sorted(report.kills.items()))
    table.add_row("killed", f"{sum(report.kills.values())} ({kills})")
    table.add_row("batches, requests", f"{report.batches:,}, {report.requests:,}")
    table.add_row("acknowledged batches that are gone", str(len(report.forgotten)))
    table.add_row("batches that did not complete", str(len(report.unfinished)))
    table.add_row("flex requests answered, tries", f"{report.flex:,}, {report.flex_tries:,}")
    table.add_row("requests lost", str(len(report.lost)))
    table.add_row("requests answered twice", str(len(report.twice)))
    table.add_row("wrong answers or counts", str(len(report.wrong)))
    table.add_row("left in Redis of flex requests and quotas", str(len(report.left)))
    if report.again is not None:
        again = report.again
        table.add_row("further attempts, continued", f"{again.attempts:,}, {again.continued:,}")
        table.add_row("most tokens that one generated again", str(again.most))
        table.add_row(f"that generated more than {JOURNAL_TOKENS} again", str(again.over_interval))
    table.add_row("took", f"{report.duration_s:.0f} s")
    return table


def main(
    kills: Annotated[int, typer.Option(min=1, help="How often something is killed.")] = 300,
    pause_ms: Annotated[int | None, typer.Option(min=1, help="From one kill to the next, on average.")] = None,
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Of the deployment.")] = 3,
    only: Annotated[
        list[Victim] | None, typer.Option(help="Kill nothing but this; may be given several times.")
    ] = None,
    real: Annotated[bool, typer.Option("--real", help="The whole application with a real model.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for kills.json.")] = None,
) -> None:
    """Prints what became of the requests; exits with 1 if one was lost, done twice or answered wrongly."""
    configure_program_logs()
    console = Console(highlight=False)
    weights = {victim: weight for victim, weight in WEIGHTS.items() if not only or victim in only}
    pause_s = (PAUSE_MS[real] if pause_ms is None else pause_ms) / 1e3
    with (
        tempfile.TemporaryDirectory(prefix="conserve-kills-") as name,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        folder, generator = Path(name), random.Random(seed)
        household: Household = (ApplicationHousehold if real else LightHousehold)(folder, replicas, generator)
        token_log = None if real else folder / ENGINE_LOG
        requests = REAL_REQUESTS if real else REQUESTS
        run = KillRun(household, kills, pause_s, requests, generator, weights, token_log)
        report = run_interruptible(run.run(progress))
    console.print(render(report))
    for name in ("forgotten", "unfinished", "lost", "twice", "wrong", "left"):
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
