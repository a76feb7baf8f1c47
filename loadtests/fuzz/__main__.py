"""`python -m loadtests.fuzz`: sends each surface what strangers may send it, and fails where an answer is wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from conserve.telemetry.logs import configure_program_logs
from loadtests.fuzz.report import Findings, SurfaceReport, render, write_reports

SHOWN: Final = 10


class Surface(StrEnum):
    """What is tried."""

    HTTP = "http"
    RAW_HTTP = "raw-http"
    GRPC = "grpc"
    JSONL = "jsonl"
    TRACES = "traces"
    QUEUE = "queue"


def try_surface(surface: Surface, inputs: int, seed: int) -> SurfaceReport:
    """Tries one surface with so many inputs."""
    probe = _find_probe(surface)
    began_s = time.monotonic()
    findings = probe(inputs, seed)
    return findings.to_report(surface, seed, time.monotonic() - began_s)


def _find_probe(surface: Surface) -> Callable[[int, int], Findings]:
    # What a surface needs takes many seconds to import.
    match surface:
        case Surface.HTTP:
            from loadtests.fuzz.http_surface import try_http

            return try_http
        case Surface.RAW_HTTP:
            from loadtests.fuzz.raw_http import try_raw_http

            return try_raw_http
        case Surface.GRPC:
            from loadtests.fuzz.grpc_surface import try_grpc

            return try_grpc
        case Surface.QUEUE:
            from loadtests.fuzz.queue_histories import try_queue

            return try_queue
        case Surface.JSONL:
            from loadtests.fuzz.parsers import try_parser

            return partial(try_parser, "jsonl")
        case Surface.TRACES:
            from loadtests.fuzz.parsers import try_parser

            return partial(try_parser, "traces")


def main(
    surface: Annotated[
        list[Surface] | None, typer.Option(help="Which; several are tried in turn, all if none.")
    ] = None,
    inputs: Annotated[int, typer.Option(min=1, help="For each of them.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="The same one sends the same inputs.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for fuzz.json.")] = None,
) -> None:
    """Prints a table; ends with 1 where a fault was found."""
    configure_program_logs(logging.CRITICAL)
    logging.disable(logging.CRITICAL)  # What Ray, uvicorn and asyncio say of wrong requests.
    console = Console(highlight=False)
    reports = []
    for one in surface or list(Surface):
        report = try_surface(one, inputs, seed)
        reports.append(report)
        for fault in report.faults[:SHOWN]:
            console.print(f"{one}: {fault.kind}\n  {fault.input}\n  {fault.detail}", markup=False, soft_wrap=True)
        if out is not None:
            write_reports(out, reports)
    console.print(render(reports))
    if any(report.fault_count for report in reports):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
