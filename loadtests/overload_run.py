"""`python -m loadtests.overload_run`: online load beyond capacity, at the application itself with its real engine.

First the capacity is measured: chats a second that are answered in a closed loop of many clients. Then chats come as a
Poisson process at multiples of that, however long answers take (open loop). A batch has work to do all the time. In
the end the load goes back to the lowest one, and it is seen when offline work comes back.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.table import Table

from conserve.launch.interruption import Interruption
from conserve.launch.serve_config import ServeConfig
from conserve.telemetry.logs import configure_program_logs
from loadtests import arrivals
from loadtests.batch_file import ENDPOINT, make_lines
from loadtests.chat_load import ChatLoad
from loadtests.chat_prompts import ChatPrompt, draw_prompts
from loadtests.documents import read_documents
from loadtests.engine_status import StatusReader
from loadtests.front_cost import read_config
from loadtests.overload_figures import (
    REFUSAL,
    Objectives,
    OfflineSample,
    OverloadPhase,
    OverloadReport,
    find_return,
    make_phase,
)
from loadtests.report import describe_machine, write_json
from loadtests.supervision import TAKE_ALL, BringUpError, Stack, bring_up, hold_folder, make_local_stack, say, supervise

DEFAULT_LOADS: Final = (0.5, 1.0, 2.0, 3.0)
STATE_FOLDER: Final = "state"
SAMPLE_S: Final = 0.25
RETRY_S: Final = 0.1
"""A client of the closed loop that was refused asks again."""
WARM_UP_PART: Final = 0.2
"""Of each phase; what comes in it counts for nothing."""
BATCH_REQUESTS: Final = 20_000
"""More than there will be time for."""
SUMMARY_TOKENS: Final = 48
TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class OverloadPlan:
    """What is sent.

    Attributes:
        loads: In multiples of the capacity, ascending; the lowest one comes again in the end.
        phase_s: How long each lasts.
        clients: Of the closed loop that measures the capacity.
        seed: Of arrivals and prompts.
        refuses: Whether the application was told to refuse; None: it runs already, and nobody knows.
    """

    loads: tuple[float, ...]
    phase_s: float
    clients: int
    seed: int
    refuses: bool | None


class NotMeasuredError(RuntimeError):
    """The application is not in a state in which this can be measured. The message says why."""


class OverloadRun:
    """Runs a plan against an application.

    Args:
        plan: What is sent.
        base_url: Where.
        objectives: Of chats.
        announce: Is told what happens.
    """

    def __init__(
        self, plan: OverloadPlan, base_url: str, objectives: Objectives, announce: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._base_url = base_url.rstrip("/")
        self._objectives = objectives
        self._announce = announce
        self._prompts: Iterator[ChatPrompt] = draw_prompts(plan.seed)
        self._samples: list[OfflineSample] = []

    async def run(self) -> OverloadReport:
        """Measures.

        Raises:
            OpenAIError: the application refuses the batch, or is away.
            NotMeasuredError: it serves no model, answers no chat, or does no offline work, or has done all of it.
        """
        plan = self._plan
        async with (
            AsyncOpenAI(base_url=f"{self._base_url}/v1", api_key="none", timeout=TIMEOUT_S) as client,
            httpx.AsyncClient(base_url=self._base_url, timeout=10.0) as http,
        ):
            served = (await client.models.list()).data
            if not served:
                raise NotMeasuredError("the application names no model")
            load = ChatLoad(client, served[0].id, request_timeout_s=TIMEOUT_S)
            async with self._offer_batch(client, served[0].id) as batch_id:
                sampler = asyncio.create_task(self._sample(StatusReader(http)))
                try:
                    await self._wait_for_offline_work(client, batch_id)
                    capacity = await self._find_capacity(load)
                    self._announce(f"capacity: {capacity:.2f} chats/s")
                    phases = []
                    for number, multiple in enumerate(plan.loads):
                        begin_s = time.monotonic()
                        phases.append(await self._offer(load, multiple, capacity, number))
                    overload_ended_s = begin_s + plan.phase_s
                    phases.append(await self._offer(load, plan.loads[0], capacity, len(plan.loads)))
                    if (await client.batches.retrieve(batch_id)).status != "in_progress":
                        raise NotMeasuredError("the batch has ended before the load did")
                finally:
                    sampler.cancel()
                    await asyncio.gather(sampler, return_exceptions=True)
        return OverloadReport(
            capacity_per_s=capacity,
            refuses=plan.refuses,
            phase_s=plan.phase_s,
            clients=plan.clients,
            seed=plan.seed,
            ttft_slo_ms=self._objectives.ttft_ms,
            tbt_slo_ms=self._objectives.tbt_ms,
            phases=phases,
            offline_back_s=find_return(self._samples, overload_ended_s, phases[0].offline_tokens_per_s),
        )

    @asynccontextmanager
    async def _offer_batch(self, client: AsyncOpenAI, model: str) -> AsyncIterator[str]:
        """A batch with more work than there is time for; it is cancelled in the end."""
        lines = make_lines(read_documents(), BATCH_REQUESTS, model, SUMMARY_TOKENS)
        content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        file = await client.files.create(file=("summaries.jsonl", content), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        try:
            yield batch.id
        finally:
            with suppress(OpenAIError):
                await client.batches.cancel(batch.id)

    async def _wait_for_offline_work(self, client: AsyncOpenAI, batch_id: str) -> None:
        """Until the batch has been validated and some of it was computed."""
        until_s = time.monotonic() + TIMEOUT_S
        while not self._samples or self._samples[-1].tokens <= self._samples[0].tokens:
            if time.monotonic() > until_s:
                status = (await client.batches.retrieve(batch_id)).status
                what = "no offline tokens are counted" if self._samples else "its status has no offline tokens"
                raise NotMeasuredError(f"{what} after {TIMEOUT_S:g} s; the batch is {status}")
            await asyncio.sleep(SAMPLE_S)

    async def _sample(self, status: StatusReader) -> None:
        while True:
            report = await status.read()
            tokens = report.total("offline_computed_tokens") if report is not None else None
            if report is not None and tokens is not None:
                self._samples.append(OfflineSample(report.read_s, tokens))
            await asyncio.sleep(SAMPLE_S)

    async def _find_capacity(self, load: ChatLoad) -> float:
        begin_s = time.monotonic() + WARM_UP_PART * self._plan.phase_s
        end_s = time.monotonic() + self._plan.phase_s
        answered = 0
        trouble = "all were refused"

        async def ask() -> None:
            nonlocal answered, trouble
            while time.monotonic() < end_s:
                record = await load.send(next(self._prompts))
                if record.error is None:
                    answered += begin_s <= record.ended_s < end_s
                elif record.error.startswith(REFUSAL):
                    await asyncio.sleep(RETRY_S)
                else:
                    trouble = record.error
                    await asyncio.sleep(1.0)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.clients):
                group.create_task(ask())
        if not answered:
            raise NotMeasuredError(f"no chat was answered: {trouble}")
        return answered / (end_s - begin_s)

    async def _offer(self, load: ChatLoad, multiple: float, capacity: float, number: int) -> OverloadPhase:
        begin_s, length_s = time.monotonic(), self._plan.phase_s
        times = arrivals.until(length_s, arrivals.poisson(multiple * capacity, self._plan.seed + number))
        records = await load.run(times, self._prompts)
        window_s = (begin_s + WARM_UP_PART * length_s, begin_s + length_s)
        phase = make_phase(multiple, records, self._samples, self._objectives, window_s)
        self._announce(f"{multiple:g}x: {phase.goodput_per_s:.2f} of {phase.offered_per_s:.2f} chats/s in time")
        return phase


def render(report: OverloadReport) -> Table:
    """The report as a table."""
    title = (
        f"Capacity {report.capacity_per_s:.2f} chats/s; in time: first token {report.ttft_slo_ms:g} ms, "
        f"mean time between the others {report.tbt_slo_ms:g} ms"
    )
    table = Table(title=title, title_justify="left")
    for name in (
        "load",
        "offered/s",
        "answered/s",
        "good/s",
        "refused/s",
        "TTFT p99, ms",
        "first in time",
        "offline tok/s",
    ):
        table.add_column(name, justify="right")
    for one in report.phases:
        table.add_row(
            f"{one.load:g}x",
            f"{one.offered_per_s:.2f}",
            f"{one.answered_per_s:.2f}",
            f"{one.goodput_per_s:.2f}",
            f"{one.refused_per_s:.2f}",
            f"{one.ttft_p99_ms:,.0f}",
            f"{one.in_time:.1%}",
            f"{one.offline_tokens_per_s:,.0f}",
        )
    return table


def conduct(
    plan: OverloadPlan,
    read: Callable[[], ServeConfig],
    base_url: str | None,
    out: Path,
    console: Console,
    stack: Stack | None,
    interruption: Interruption,
) -> int:
    """Brings the application up if there is a stack, measures, prints and writes; the exit code."""

    def announce(line: str) -> None:
        say(console, line)

    slo = read().settings.slo
    objectives = Objectives(slo.ttft_slo_ms, slo.tbt_slo_ms)
    try:
        url = bring_up(stack, announce).base_url if stack is not None else base_url or ""
        report = interruption.run(OverloadRun(plan, url, objectives, announce).run())
    except (BringUpError, OpenAIError, NotMeasuredError) as error:
        where = f" at {base_url}" if base_url else ""
        say(console, f"Not measured{where}: {error}", style="bold red")
        return 1
    console.print(render(report))
    back = "not back" if report.offline_back_s is None else f"back after {report.offline_back_s:.1f} s"
    say(console, f"goodput at the highest load: {report.share:.0%} of the best; offline work: {back}")
    write_json(out / "overload.json", {"machine": describe_machine(), "share": report.share, **report.model_dump()})
    for problem in report.problems:
        say(console, f"Failed: {problem}", style="bold red")
    return 1 if report.problems else 0


def main(
    load: Annotated[
        list[float] | None, typer.Option(min=0.01, help="Multiples of the capacity; 0.5, 1, 2 and 3 by default.")
    ] = None,
    phase_s: Annotated[float, typer.Option(min=10, help="Seconds of each load.")] = 60.0,
    clients: Annotated[int, typer.Option(min=1, help="Of the closed loop that measures the capacity.")] = 48,
    seed: Annotated[int, typer.Option(help="Of arrivals and prompts.")] = 7,
    refuse: Annotated[bool, typer.Option(help="Or take everything in, to see what comes of it.")] = True,
    base_url: Annotated[
        str | None, typer.Option(help="An application that runs already, with the objectives of --config.")
    ] = None,
    config: Annotated[Path, typer.Option(envvar="CONSERVE_CONFIG", help="What to bring up.")] = Path(
        "serve_config.yaml"
    ),
    out: Annotated[Path, typer.Option(help="Folder for overload.json.")] = Path("out/overload"),
) -> None:
    """Online load at and beyond capacity beside a batch; exits with 1 if less than 90 % of the best goodput is left."""
    configure_program_logs()
    console = Console(highlight=False)
    if base_url and not refuse:
        raise typer.BadParameter("what runs already refuses as it was told to", param_hint="--no-refuse")
    loads = tuple(sorted(set(load or DEFAULT_LOADS)))
    plan = OverloadPlan(loads, phase_s, clients, seed, None if base_url else refuse)
    environ = {**os.environ, TAKE_ALL: "true" if refuse else "false"}
    make_stack = None if base_url else functools.partial(make_local_stack, config, out / STATE_FOLDER, environ)
    read = functools.partial(read_config, config, None if base_url else out / STATE_FOLDER, environ)
    with hold_folder(out):
        raise typer.Exit(supervise(make_stack, console, functools.partial(conduct, plan, read, base_url, out, console)))


if __name__ == "__main__":
    typer.run(main)
