"""`conserve plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from conserve.cli.console import JsonOption, fail, say_progress, show_json, show_table
from conserve.cli.simulation_options import MeasuredOption, ProfileOption, read_profile, read_requests
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.plan_input import PlanInput, draw_requests
from conserve.simulator.plan_report import list_answers, list_variants, to_dict, write_report
from conserve.simulator.planning import Plan, PlanError, make_plan
from conserve.simulator.workload import Arrival, OfflineShape, scale_rate

_LEAST_REQUESTS = 100


def plan(
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Azure CSV, BurstGPT CSV or Mooncake JSONL with online requests.")
    ] = None,
    trace_scale: Annotated[
        float, typer.Option("--trace-scale", min=1e-6, help="So many times as many requests as in the trace.")
    ] = 1.0,
    rate_per_s: Annotated[
        float | None, typer.Option("--rate", min=1e-6, help="Without a trace: online requests a second.", metavar="R")
    ] = None,
    prompt_tokens: Annotated[float, typer.Option("--prompt-tokens", min=1, help="Their mean prompt.")] = 1_024,
    output_tokens: Annotated[float, typer.Option("--output-tokens", min=1, help="Their mean answer.")] = 256,
    burst_cv: Annotated[
        float, typer.Option("--burst-cv", min=0.05, max=20, help="How much the gaps between them vary; 1: Poisson.")
    ] = 1.0,
    ttft_slo_ms: Annotated[float, typer.Option("--ttft-slo-ms", min=1e-3, help="Objective of the P99.")] = 1_000.0,
    tbt_slo_ms: Annotated[float, typer.Option("--tbt-slo-ms", min=1e-3, help="Objective of the P99.")] = 100.0,
    profile: ProfileOption = "h100/llama-3.1-8b",
    measured: MeasuredOption = None,
    batch_requests: Annotated[int, typer.Option("--batch-requests", min=1, help="Requests of the backlog.")] = 100_000,
    batch_prompt_tokens: Annotated[
        str, typer.Option("--batch-prompt-tokens", help="Of one of them: N, or FROM:TO.", metavar="N")
    ] = "2000:6000",
    batch_output_tokens: Annotated[
        str, typer.Option("--batch-output-tokens", help="Of its answer: N, or FROM:TO.", metavar="N")
    ] = "128:256",
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", min=1, max=4_096, help="Of each engine.")] = 128,
    max_num_batched_tokens: Annotated[int, typer.Option("--max-num-batched-tokens", min=16, max=1_000_000)] = 2_048,
    dollars_per_hour: Annotated[
        float | None, typer.Option("--dollars-per-hour", min=0, help="Of one replica, in place of the profile's.")
    ] = None,
    duration_s: Annotated[
        float, typer.Option("--duration", min=60, max=1e6, help="Seconds of the trace, at most.", metavar="S")
    ] = 3_600.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for plan.html, plan.png and plan.json.")] = None,
    as_json: JsonOption = False,
) -> None:
    """How many replicas online traffic needs, what batch work they can do besides, and what it would cost elsewhere."""
    if (trace is None) == (rate_per_s is None):
        raise fail("--trace or --rate: one of the two is needed", 2)
    found = read_profile(profile, measured)
    shape = OfflineShape(
        _parse_range("--batch-prompt-tokens", batch_prompt_tokens),
        _parse_range("--batch-output-tokens", batch_output_tokens),
    )
    if trace is not None:
        requests = [one for one in read_requests(trace) if one.arrival_s < duration_s]
        duration_s = min(duration_s, requests[-1].arrival_s)
        arrivals = [Arrival(one.arrival_s, one.prompt_tokens, one.output_tokens) for one in requests]
        if trace_scale != 1.0:
            arrivals = list(scale_rate(arrivals, trace_scale, seed))
    else:
        arrivals = draw_requests(rate_per_s or 0.0, duration_s, prompt_tokens, output_tokens, burst_cv, seed)
    if len(arrivals) < _LEAST_REQUESTS or duration_s <= 0:
        where = "--trace" if trace is not None else "--rate, --duration"
        raise fail(f"{where}: {len(arrivals)} online requests are too few; at least {_LEAST_REQUESTS} are needed", 2)
    given = PlanInput(
        arrivals=arrivals,
        duration_s=duration_s,
        ttft_slo_ms=ttft_slo_ms,
        tbt_slo_ms=tbt_slo_ms,
        profile=found,
        batch=shape,
        batch_requests=batch_requests,
        limits=EngineLimits(max_num_seqs, max_num_batched_tokens),
        seed=seed,
        dollars_per_hour=dollars_per_hour,
    )
    _check_fits(given)
    try:
        made = make_plan(given, lambda line: say_progress(f"simulating {line}"))
    except PlanError as error:
        raise fail(str(error), 2) from None
    if as_json:
        show_json(to_dict(made))
    else:
        _show(made)
    if folder is not None:
        try:
            paths = write_report(made, folder)
        except OSError as error:
            raise fail(f"--out: {folder} cannot be written: {error.strerror or error}") from None
        say_progress(f"written: {', '.join(map(str, paths))}")


def _show(made: Plan) -> None:
    answers = Table(show_header=False)
    answers.add_column("")
    answers.add_column("", justify="right")
    for question, answer in list_answers(made):
        answers.add_row(question, answer)
    show_table(answers)
    for title, variants in (
        ("Other objectives, in the busiest ten minutes", made.by_slo),
        ("Other arrivals, likewise", made.by_burst),
    ):
        table = Table(title=title, title_justify="left")
        for column in ("", "replicas", "P99 beside batch work", "million batch tokens a day"):
            table.add_column(column, justify="right" if column else "left")
        for row in list_variants(variants):
            table.add_row(*row)
        show_table(table)


def _check_fits(given: PlanInput) -> None:
    room = given.profile.costs.kv_blocks * given.profile.costs.block_size // 2
    longest = max(arrival.prompt_tokens + arrival.output_tokens for arrival in given.arrivals)
    for option, tokens in (
        ("--trace" if longest > 0 else "--rate", longest),
        ("--batch-prompt-tokens", given.batch.prompt_tokens[1] + given.batch.output_tokens[1]),
    ):
        if tokens > room:
            raise fail(
                f"{option}: a request of {tokens:,} tokens takes more than half of the KV cache of "
                f"{given.profile.name} ({2 * room:,} tokens)",
                2,
            )


def _parse_range(option: str, text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        found = (int(first), int(last or first))
    except ValueError:
        raise fail(f"{option}: {text!r} is not N or FROM:TO", 2) from None
    if not 1 <= found[0] <= found[1]:
        raise fail(f"{option}: {text!r}: FROM must be at least 1, and no more than TO", 2)
    return found
