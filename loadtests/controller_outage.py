"""`python -m loadtests.controller_outage`: chats and a batch with the controller at work, and without it, by turns.

A round without it begins when another cluster takes the controller's lease and does nothing with it: no allotments, no
keeper, as if its process were dead and did not come back. Rounds of the two kinds alternate, with the same chats.
Exit code 0 when online requests are as fast and offline work goes on as it has to, 1 if not, 130 after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx
import typer
from openai import AsyncOpenAI, OpenAIError
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from conserve.config import EMBEDDED_REDIS, Settings
from conserve.jobs import embedded
from conserve.jobs.connection import connect
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.keys import Keys
from conserve.jobs.leadership import LEASE_MS
from conserve.jobs.link import OUTAGES
from conserve.launch.interruption import Interruption
from conserve.launch.serve_config import read_serve_config
from conserve.telemetry.logs import configure_program_logs
from loadtests.arrivals import poisson, until
from loadtests.chat_load import ChatLoad, ChatRecord
from loadtests.chat_prompts import draw_prompts
from loadtests.client_priority import go_before_others
from loadtests.engine_status import StatusReader, StatusReport
from loadtests.latency import percentile_ratio, percentiles, pool, ttft_groups
from loadtests.report import Percentiles, Ratio, describe_machine, write_json
from loadtests.supervision import BringUpError, Stack, bring_up, hold_folder, make_local_stack, say, supervise

Kind = Literal["with", "without"]
KINDS: Final[tuple[Kind, ...]] = ("with", "without")
LEAST_OFFLINE: Final = 0.8
STATE_FOLDER: Final = ".outage-state"
REQUEST_TIMEOUT_S: Final = 120.0
WARM_UP_S: Final = 20.0
RETURN_S: Final = 10.0
"""Until the controller is at work again after a round without it: it looks at the lease once a second."""
HOLD_PERIOD_S: Final = 0.5
BATCH_TEXT: Final = "The fox and the dog went to the river again. " * 30
BATCH_OUTPUT_TOKENS: Final = 48


class KindFigures(BaseModel):
    """Of the rounds of one kind. Offline tokens are prompt and output."""

    requests: int
    errors: int
    ttft_ms: Percentiles
    offline_tokens_per_s: float
    round_offline_tokens_per_s: list[float]


class OutageFigures(BaseModel):
    """What was measured. Ratios are without / with a controller."""

    machine: str
    rounds: int
    round_s: float
    rate_per_s: float
    kinds: dict[Kind, KindFigures]
    p50_ratio: Ratio
    p99_ratio: Ratio
    offline_ratio: float


@contextlib.asynccontextmanager
async def keep_from_work(settings: Settings) -> AsyncIterator[None]:
    """Holds the controller's lease under a name that no cluster has."""
    redis: Any = await connect(settings)
    key, name = Keys(settings.jobs.namespace).controller, f"outage-{secrets.token_hex(8)}"

    async def hold() -> None:
        while True:
            await asyncio.sleep(HOLD_PERIOD_S)
            await redis.set(key, name, px=LEASE_MS)

    await redis.set(key, name, px=LEASE_MS)
    holding = asyncio.create_task(hold())
    try:
        yield
        if holding.done():
            holding.result()
    finally:
        holding.cancel()
        await asyncio.wait([holding])
        await redis.delete(key)
        await redis.aclose()


async def measure(
    base_url: str,
    settings: Settings,
    *,
    rounds: int,
    round_s: float,
    rate_per_s: float,
    batch: int,
    announce: Callable[[str], None],
) -> OutageFigures:
    """Runs the rounds. Raises `OpenAIError`, `ValueError` and those of Redis: it cannot be measured."""
    client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=REQUEST_TIMEOUT_S)
    async with client, httpx.AsyncClient(base_url=base_url) as http:
        model = (await client.models.list()).data[0].id
        load = ChatLoad(client, model, request_timeout_s=REQUEST_TIMEOUT_S)
        reader = StatusReader(http)
        await _submit(client, model, batch)
        announce("warming up")
        await load.run(until(WARM_UP_S, poisson(rate_per_s, 99)), draw_prompts(99))
        records: dict[Kind, list[list[ChatRecord]]] = {kind: [] for kind in KINDS}
        rates: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
        for number in range(rounds):
            for kind in KINDS if number % 2 else KINDS[::-1]:
                async with keep_from_work(settings) if kind == "without" else contextlib.nullcontext():
                    chats = load.run(
                        until(round_s, poisson(rate_per_s, number)), draw_prompts(2 * number + (kind == "with"))
                    )
                    before = await reader.read()
                    found, _ = await asyncio.gather(chats, asyncio.sleep(round_s))
                    rate = _find_rate(before, await reader.read())
                records[kind].append(found)
                rates[kind].append(rate)
                announce(f"round {number + 1} of {rounds}, {kind} a controller: {rate:,.0f} offline tokens a second")
                await asyncio.sleep(RETURN_S)
    return summarise(records, rates, round_s=round_s, rate_per_s=rate_per_s)


async def _submit(client: AsyncOpenAI, model: str, count: int) -> None:
    def make_line(number: int) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"{number}: tell this in other words. {BATCH_TEXT}"}],
            "max_tokens": BATCH_OUTPUT_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
        }
        return json.dumps({"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})

    content = "\n".join(make_line(number) for number in range(count)).encode()
    file = await client.files.create(file=("input.jsonl", content), purpose="batch")
    await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def _find_rate(before: StatusReport | None, after: StatusReport | None) -> float:
    if before is None or after is None:
        raise ValueError("the status was not to be had")

    def count(report: StatusReport) -> float:
        found = [report.total(name) for name in ("offline_prompt_tokens", "offline_output_tokens")]
        return sum(one for one in found if one is not None)

    return (count(after) - count(before)) / (after.read_s - before.read_s)


def summarise(
    records: dict[Kind, list[list[ChatRecord]]], rates: dict[Kind, list[float]], *, round_s: float, rate_per_s: float
) -> OutageFigures:
    """Puts the chats and the offline rates of all rounds together. Raises `ValueError`: there is too little."""
    pooled = {kind: ttft_groups(itertools.chain(*found)) for kind, found in records.items()}
    p50, p99 = (percentile_ratio(pooled["without"], pooled["with"], percentile) for percentile in (50, 99))
    if p50 is None or p99 is None or not sum(rates["with"]):
        raise ValueError("no chat was answered, or there was no offline work")
    return OutageFigures(
        machine=describe_machine(),
        rounds=len(rates["with"]),
        round_s=round_s,
        rate_per_s=rate_per_s,
        kinds={kind: _describe([*itertools.chain(*records[kind])], pooled[kind], rates[kind]) for kind in KINDS},
        p50_ratio=p50,
        p99_ratio=p99,
        offline_ratio=sum(rates["without"]) / sum(rates["with"]),
    )


def _describe(records: Sequence[ChatRecord], groups: list[list[float]], rates: list[float]) -> KindFigures:
    found = percentiles(pool(groups))
    if found is None:
        raise ValueError("no chat was answered")
    return KindFigures(
        requests=len(records),
        errors=sum(record.error is not None for record in records),
        ttft_ms=found,
        offline_tokens_per_s=sum(rates) / len(rates),
        round_offline_tokens_per_s=rates,
    )


def render(figures: OutageFigures) -> Table:
    """The table that is printed."""
    table = Table(title=f"Rounds of {figures.round_s:g} s with a controller and without", title_justify="left")
    for column in ("controller", "chats", "failed", "TTFT p50, ms", "p99, ms", "offline tok/s", "of rounds"):
        table.add_column(column, justify="right" if column != "controller" else "left")
    for kind, one in figures.kinds.items():
        rates = one.round_offline_tokens_per_s
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        shown = [f"{value:,.0f}" for value in (one.ttft_ms.p50, one.ttft_ms.p99, one.offline_tokens_per_s)]
        table.add_row(kind, str(one.requests), str(one.errors), *shown, spread)
    ratios = [f"{one.median:.2f} ({one.min:.2f} to {one.max:.2f})" for one in (figures.p50_ratio, figures.p99_ratio)]
    table.add_row("without / with", "", "", *ratios, f"{figures.offline_ratio:.2f}", "")
    return table


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each kind.")] = 3,
    round_s: Annotated[float, typer.Option(min=10, help="Seconds of a round.")] = 60.0,
    rate: Annotated[float, typer.Option(min=0.05, help="Chats a second.")] = 0.5,
    batch: Annotated[int, typer.Option(min=1, help="Requests of the batch, which has to last.")] = 5_000,
    out: Annotated[Path, typer.Option(help="Folder for controller-outage.json.")] = Path("out/controller-outage"),
    config: Annotated[Path, typer.Option(envvar="CONSERVE_CONFIG", help="What to bring up.")] = Path(
        "serve_config.yaml"
    ),
) -> None:
    """Chats and a batch with the controller at work, and without it, by turns."""
    configure_program_logs()
    console = Console(highlight=False)
    state_dir = (out / STATE_FOLDER).absolute()

    def work(stack: Stack | None, interruption: Interruption) -> int:
        if stack is None:
            return 1
        try:
            url = bring_up(stack, lambda line: say(console, line)).base_url
            go_before_others(lambda line: say(console, line))
            settings = read_serve_config(config, {**os.environ, "CONSERVE_STATE_DIR": str(state_dir)}).settings
            if settings.jobs.redis_url == EMBEDDED_REDIS:
                settings = settings.with_redis_url(embedded.ensure_running(state_dir))
            figures = interruption.run(
                measure(
                    url,
                    settings,
                    rounds=rounds,
                    round_s=round_s,
                    rate_per_s=rate,
                    batch=batch,
                    announce=lambda line: say(console, line),
                )
            )
        except (BringUpError, OpenAIError, UnsuitableServerError, ValueError, *OUTAGES) as error:
            say(console, f"Not measured: {error}", style="bold red")
            return 1
        write_json(out / "controller-outage.json", figures.model_dump())
        console.print(render(figures))
        errors = sum(one.errors for one in figures.kinds.values())
        is_missed = errors > 0 or figures.offline_ratio < LEAST_OFFLINE
        if is_missed:
            say(
                console,
                f"Missed: {errors} chats failed, offline {figures.offline_ratio:.2f} (must {LEAST_OFFLINE})",
                style="bold red",
            )
        return int(is_missed)

    with hold_folder(out):
        raise typer.Exit(supervise(functools.partial(make_local_stack, config, state_dir), console, work))


if __name__ == "__main__":
    typer.run(main)
