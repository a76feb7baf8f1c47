"""`python -m loadtests.routing`: time to the first token with our routing and with Ray Serve's, by turns.

Two replicas, chats that come at random times, and batch work on one of them at a time: small batches, one after the
other, each of which is taken by whichever replica asks first. Rounds of the two rules alternate, with the same chats.
Exit code 0 when the P99 is as much shorter as it has to be, 1 when not or if something failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx
import typer
from openai import AsyncOpenAI, OpenAIError
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from conserve.launch.interruption import Interruption
from conserve.telemetry.logs import configure_program_logs
from loadtests.arrivals import poisson, until
from loadtests.chat_load import ChatLoad, ChatRecord
from loadtests.chat_prompts import draw_prompts
from loadtests.client_priority import go_before_others
from loadtests.engine_status import StatusReader
from loadtests.latency import percentile_ratio, percentiles, pool, ttft_groups
from loadtests.report import Percentiles, Ratio, describe_machine, write_json
from loadtests.supervision import BringUpError, Stack, bring_up, hold_folder, make_local_stack, say, supervise

Rule = Literal["slo", "serve"]
RULES: Final[tuple[Rule, ...]] = ("slo", "serve")
RULE_HEADER: Final = "x-conserve-routing"
ROUTER: Final = "deployments.testing.compared_router.ComparedRouter"
REPLICAS: Final = 2
MOST_RATIO: Final = 0.8
STATE_FOLDER: Final = ".routing-state"
SAMPLE_PERIOD_S: Final = 0.5
REQUEST_TIMEOUT_S: Final = 120.0
CONTROL_RETRIES: Final = 10
"""Of calls about batches; chats are not tried again."""
WARM_UP_S: Final = 20.0
SENTENCE: Final = "The fox and the dog went to the river again. "
BATCH_OUTPUT_TOKENS: Final = 48


class RuleFigures(BaseModel):
    """Of one rule. `round_p99_ms` are those of its rounds, one after the other."""

    requests: int
    errors: int
    first_error: str | None
    ttft_ms: Percentiles
    round_p99_ms: list[float]


class RoutingFigures(BaseModel):
    """What was measured. `busier_share` is the mean share of the offline requests that the busier replica had."""

    machine: str
    engine_mode: str
    rounds: int
    round_s: float
    rate_per_s: float
    words: int
    rules: dict[Rule, RuleFigures]
    p99_ratio: Ratio
    p50_ratio: Ratio
    busier_share: float
    offline_requests: float
    batches: int


class OfflineLoad:
    """Small batches, one after the other.

    Args:
        client: Of the application.
        model: Its model.
        requests: Of each batch.
        words: Of each request's prompt, some tokens more.
    """

    def __init__(self, client: AsyncOpenAI, model: str, requests: int, words: int) -> None:
        self._client = client
        self._model = model
        self._requests = requests
        self._sentences = words // len(SENTENCE.split())
        self.batches = 0

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        while True:
            content = "\n".join(json.dumps(self._make_line(number)) for number in range(self._requests)).encode()
            file = await self._client.files.create(file=("input.jsonl", content), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status not in ("completed", "failed", "expired", "cancelled"):
                await asyncio.sleep(SAMPLE_PERIOD_S)
                batch = await self._client.batches.retrieve(batch.id)
            self.batches += 1

    def _make_line(self, number: int) -> dict[str, Any]:
        text = f"{self.batches}.{number}: " + SENTENCE * self._sentences
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": f"Tell this in other words. {text}"}],
            "max_tokens": BATCH_OUTPUT_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
        }
        return {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


async def measure(
    base_url: str,
    *,
    rounds: int,
    round_s: float,
    rate_per_s: float,
    offline: int,
    words: int,
    engine_mode: str,
    announce: Callable[[str], None],
) -> RoutingFigures:
    """Runs the rounds. Raises `OpenAIError` and `ValueError`: it cannot be measured."""
    client = AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key="none", timeout=REQUEST_TIMEOUT_S, max_retries=CONTROL_RETRIES
    )
    async with client, httpx.AsyncClient(base_url=base_url) as http:
        model = (await client.models.list()).data[0].id
        loads = {
            rule: ChatLoad(
                client.with_options(default_headers={RULE_HEADER: rule}), model, request_timeout_s=REQUEST_TIMEOUT_S
            )
            for rule in RULES
        }
        batches = OfflineLoad(client, model, offline, words)
        shares: list[tuple[int, int]] = []
        working = asyncio.create_task(batches.run())
        watching = asyncio.create_task(_watch(StatusReader(http), shares))
        records: dict[Rule, list[list[ChatRecord]]] = {rule: [] for rule in RULES}
        try:
            announce("warming up")
            await loads["serve"].run(until(WARM_UP_S, poisson(rate_per_s, 99)), draw_prompts(99))
            shares.clear()
            for number in range(rounds):
                for rule in RULES if number % 2 else RULES[::-1]:
                    arrivals = until(round_s, poisson(rate_per_s, number))
                    found = await loads[rule].run(arrivals, draw_prompts(number * 2 + (rule == "slo")))
                    records[rule].append(found)
                    announce(f"round {number + 1} of {rounds}, {rule}: P99 {_p99(found):,.0f} ms of {len(found)} chats")
                    if working.done():
                        working.result()
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.wait([working, watching])
    return _summarise(
        records,
        shares,
        engine_mode=engine_mode,
        round_s=round_s,
        rate_per_s=rate_per_s,
        words=words,
        batches=batches.batches,
    )


async def _watch(reader: StatusReader, shares: list[tuple[int, int]]) -> None:
    while True:
        report = await reader.read()
        counts = [replica.offline_running or 0 for replica in report.replicas] if report is not None else []
        if sum(counts):
            shares.append((max(counts), sum(counts)))
        await asyncio.sleep(SAMPLE_PERIOD_S)


def _summarise(
    records: dict[Rule, list[list[ChatRecord]]],
    shares: list[tuple[int, int]],
    *,
    engine_mode: str,
    round_s: float,
    rate_per_s: float,
    words: int,
    batches: int,
) -> RoutingFigures:
    pooled = {rule: ttft_groups(itertools.chain(*found)) for rule, found in records.items()}
    p99, p50 = (percentile_ratio(pooled["slo"], pooled["serve"], percentile) for percentile in (99, 50))
    if p99 is None or p50 is None:
        raise ValueError("no chat was answered")
    return RoutingFigures(
        machine=describe_machine(),
        engine_mode=engine_mode,
        rounds=len(records["slo"]),
        round_s=round_s,
        rate_per_s=rate_per_s,
        words=words,
        rules={rule: _describe(found, pooled[rule]) for rule, found in records.items()},
        p99_ratio=p99,
        p50_ratio=p50,
        busier_share=statistics.fmean(most / total for most, total in shares) if shares else 0.0,
        offline_requests=statistics.fmean(total for _, total in shares) if shares else 0.0,
        batches=batches,
    )


def _describe(rounds: list[list[ChatRecord]], groups: list[list[float]]) -> RuleFigures:
    found = percentiles(pool(groups))
    if found is None:
        raise ValueError("no chat was answered")
    everything = [*itertools.chain(*rounds)]
    return RuleFigures(
        requests=len(everything),
        errors=sum(record.error is not None for record in everything),
        first_error=next((record.error for record in everything if record.error is not None), None),
        ttft_ms=found,
        round_p99_ms=[_p99(found) for found in rounds],
    )


def _p99(records: list[ChatRecord]) -> float:
    found = percentiles(pool(ttft_groups(records)))
    return found.p99 if found is not None else 0.0


def render(figures: RoutingFigures) -> Table:
    """The table that is printed."""
    table = Table(
        title=f"TTFT of chats beside batch work on one of {REPLICAS} replicas at a time, engine.mode "
        f"{figures.engine_mode}",
        title_justify="left",
    )
    for column in ("", "chats", "failed", "p50, ms", "p90, ms", "p99, ms", "p99 of rounds, ms"):
        table.add_column(column, justify="right" if column else "left")
    for rule, one in figures.rules.items():
        spread = f"{min(one.round_p99_ms):,.0f} to {max(one.round_p99_ms):,.0f}"
        shown = [f"{value:,.0f}" for value in (one.ttft_ms.p50, one.ttft_ms.p90, one.ttft_ms.p99)]
        table.add_row(rule, str(one.requests), str(one.errors), *shown, spread)
    ratios = [f"{one.median:.2f} ({one.min:.2f} to {one.max:.2f})" for one in (figures.p50_ratio, figures.p99_ratio)]
    table.add_row("slo / serve", "", "", ratios[0], "", ratios[1], "")
    return table


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each rule.")] = 6,
    round_s: Annotated[float, typer.Option(min=5, help="Seconds of a round.")] = 40.0,
    rate: Annotated[float, typer.Option(min=0.05, help="Chats a second.")] = 1.0,
    offline: Annotated[int, typer.Option(min=1, help="Requests of a batch.")] = 6,
    words: Annotated[int, typer.Option(min=10, help="Words of a request of a batch.")] = 900,
    engine_mode: Annotated[str, typer.Option(help="As of the setting.")] = "conserve",
    out: Annotated[Path, typer.Option(help="Folder for routing.json.")] = Path("out/routing"),
    config: Annotated[Path, typer.Option(envvar="CONSERVE_CONFIG", help="What to bring up.")] = Path(
        "serve_config.yaml"
    ),
) -> None:
    """TTFT with our routing and with Ray Serve's, by turns."""
    configure_program_logs()
    console = Console(highlight=False)
    environ = os.environ | {
        "CONSERVE_REPLICAS": str(REPLICAS),
        "CONSERVE_ENGINE__MODE": engine_mode,
        "CONSERVE_TEST_ROUTER": ROUTER,
    }

    def work(stack: Stack | None, interruption: Interruption) -> int:
        if stack is None:
            return 1
        try:
            url = bring_up(stack, lambda line: say(console, line)).base_url
            go_before_others(lambda line: say(console, line))
            figures = interruption.run(
                measure(
                    url,
                    rounds=rounds,
                    round_s=round_s,
                    rate_per_s=rate,
                    offline=offline,
                    words=words,
                    engine_mode=engine_mode,
                    announce=lambda line: say(console, line),
                )
            )
        except (BringUpError, OpenAIError, ValueError) as error:
            say(console, f"Not measured: {error}", style="bold red")
            return 1
        write_json(out / f"routing-{engine_mode}.json", figures.model_dump())
        console.print(render(figures))
        say(console, f"The busier replica had {figures.busier_share:.0%} of the offline requests.")
        is_missed = figures.p99_ratio.median > MOST_RATIO
        if is_missed:
            say(console, f"Missed: P99 ratio {figures.p99_ratio.median:.2f} > {MOST_RATIO}", style="bold red")
        return int(is_missed)

    with hold_folder(out):
        raise typer.Exit(
            supervise(functools.partial(make_local_stack, config, out / STATE_FOLDER, environ), console, work)
        )


if __name__ == "__main__":
    typer.run(main)
