"""`python -m loadtests.flex_latency --base-url ...`: how much later flex requests are answered on an idle deployment.

The same chat request, streamed, with `service_tier: "flex"` and without, by turns: milliseconds to the first token and
to the end.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import openai
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtests.report import describe_machine

Tier = Literal["default", "flex"]
TIERS: Final[tuple[Tier, ...]] = ("default", "flex")
LONGEST_PAUSE_S: Final = 0.5
"""Between two requests, drawn evenly, so that they fall anywhere into the periods of the offline tier."""
TIMEOUT_S: Final = 120.0


class Timing(NamedTuple):
    """Of one request."""

    first_token_ms: float
    end_ms: float


class Latency(BaseModel):
    """Of one tier, in milliseconds: median, and longest."""

    first_token_ms: float
    longest_first_token_ms: float
    end_ms: float
    longest_end_ms: float

    @classmethod
    def of(cls, timings: list[Timing]) -> Latency:
        """That of some requests."""
        first, end = ([timing[index] for timing in timings] for index in (0, 1))
        return cls(
            first_token_ms=statistics.median(first),
            longest_first_token_ms=max(first),
            end_ms=statistics.median(end),
            longest_end_ms=max(end),
        )


def ask(client: openai.OpenAI, model: str, tier: Tier, number: int, tokens: int) -> Timing:
    """Streams one answer. Raises openai.OpenAIError."""
    began_s = time.perf_counter()
    messages: list[Any] = [{"role": "user", "content": f"{number}. Count to a hundred."}]
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=tokens, temperature=0, stream=True, service_tier=tier
    )
    first_s = 0.0
    for chunk in stream:
        if not first_s and chunk.choices and chunk.choices[0].delta.content:
            first_s = time.perf_counter()
    end_s = time.perf_counter()
    return Timing(((first_s or end_s) - began_s) * 1e3, (end_s - began_s) * 1e3)


def measure(client: openai.OpenAI, model: str, turns: int, tokens: int) -> dict[str, Latency]:
    """By tier. Raises openai.OpenAIError."""
    generator = random.Random(1)
    timings: dict[Tier, list[Timing]] = {tier: [] for tier in TIERS}
    for turn in track(range(turns + 1), "asking", console=Console(stderr=True), transient=True):
        for tier in TIERS if turn % 2 else TIERS[::-1]:
            timing = ask(client, model, tier, turn, tokens)
            if turn:  # The first one loads what the first use loads.
                timings[tier].append(timing)
            time.sleep(generator.uniform(0.0, LONGEST_PAUSE_S))
    return {tier: Latency.of(found) for tier, found in timings.items()}


def main(
    base_url: Annotated[str, typer.Option(help="Of the deployment.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="By default the first one that it serves.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Requests of each tier.")] = 25,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer, at most.")] = 16,
    api_key: Annotated[str, typer.Option(help="Of a tenant, where there are any.")] = "none",
    out: Annotated[Path | None, typer.Option(help="Folder for flex.json.")] = None,
) -> None:
    """Prints what was measured, and writes `flex.json`."""
    console = Console(highlight=False)
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key=api_key, timeout=TIMEOUT_S, max_retries=0)
    try:
        name = model or next(iter(client.models.list())).id
        found = measure(client, name, turns, tokens)
    except (openai.OpenAIError, StopIteration) as error:
        console.print(f"Not measured: {error or 'no model is served'}")
        raise typer.Exit(1) from None
    console.print(render(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), "turns": turns, "tokens": tokens}
        content |= {tier: latency.model_dump() for tier, latency in found.items()}
        (out / "flex.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def render(found: dict[str, Latency]) -> Table:
    """The table that is printed."""
    table = Table(title="Streamed chat requests on an idle deployment", title_justify="left")
    for name in ("", "first token, ms", "end, ms"):
        table.add_column(name, justify="right" if name else "left")
    for tier, one in found.items():
        first = f"{one.first_token_ms:.0f} (to {one.longest_first_token_ms:.0f})"
        table.add_row(tier, first, f"{one.end_ms:.0f} (to {one.longest_end_ms:.0f})")
    first_ms, end_ms = (
        getattr(found["flex"], name) - getattr(found["default"], name) for name in ("first_token_ms", "end_ms")
    )
    table.add_row("difference of the medians", f"{first_ms:.0f}", f"{end_ms:.0f}")
    return table


if __name__ == "__main__":
    typer.run(main)
