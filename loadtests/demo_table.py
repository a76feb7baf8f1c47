"""The table at the end of the demonstration, and what its figures are of."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loadtests.demo_report import ALONE, HARVESTING
from loadtests.report import Percentiles, Ratio, Report, RunReport

SAMPLE_CHARS = 260


@dataclass(frozen=True)
class Sample:
    """A summary that the batch made, to be shown."""

    document: str
    summary: str


def render_table(report: Report) -> RenderableType:
    """Online latency alone and while harvesting, and what was harvested; figures that are not known are left out."""
    alone, harvesting = report.runs[ALONE], report.runs[HARVESTING]
    table = Table(title=f"{report.model} on {report.machine}", title_justify="left", header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("chat alone", "harvesting", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, name in (("TTFT", "ttft"), ("TBT", "tbt")):
        for at in ("p50", "p99"):
            table.add_row(
                f"{label} {at}",
                _format_ms(getattr(alone, f"{name}_ms"), at),
                _format_ms(getattr(harvesting, f"{name}_ms"), at),
                _format_ratio(report.ratios.get(f"{name}_{at}_vs_online_only")),
            )
    table.add_row("Chats done/failed", _format_chats(alone), _format_chats(harvesting), "", end_section=True)
    for label, left, right, ratio in _offline_rows(report, alone, harvesting):
        if right is not None:
            table.add_row(label, left or "", right, ratio or "")
    return Group(table, *(Padding(Text(line, style="dim"), (0, 0, 0, 2), expand=False) for line in _captions(report)))


def render_samples(samples: Sequence[Sample]) -> RenderableType:
    """Some of the batch's summaries, shortened."""
    parts: list[RenderableType] = [Text("Two of the summaries" if len(samples) == 2 else "A summary", style="bold")]
    for sample in samples:
        text = textwrap.shorten(sample.summary, SAMPLE_CHARS, placeholder=" ...")
        parts.append(Padding(Text.assemble((f"{sample.document}: ", "cyan"), text), (0, 0, 0, 2), expand=False))
    return Group(*parts)


def print_result(console: Console, report: Report, samples: Sequence[Sample]) -> None:
    """Prints the table and the samples."""
    console.print()
    console.print(render_table(report))
    if samples:
        console.print()
        console.print(render_samples(samples))
    console.print()


def _offline_rows(
    report: Report, alone: RunReport, harvesting: RunReport
) -> list[tuple[str, str | None, str | None, str | None]]:
    batch = report.batch
    busy_s, share = harvesting.offline_busy_s, harvesting.offline_busy_share
    return [
        (
            "Batch done/failed/of",
            None,
            f"{batch.completed} / {batch.failed} / {batch.total}" if batch is not None else None,
            None,
        ),
        ("Offline prompt tok/s", None, _format(harvesting.offline_prompt_tokens_per_s, "{:,.0f}"), None),
        ("Offline output tok/s", None, _format(harvesting.offline_output_tokens_per_s, "{:.1f}"), None),
        (
            "All tok/s",
            _format(alone.total_tokens_per_s, "{:.0f}"),
            _format(harvesting.total_tokens_per_s, "{:,.0f}"),
            _format_ratio(report.ratios.get("total_vs_online_only")),
        ),
        (
            "Engine harvested",
            None,
            f"{busy_s:.0f} s ({100 * share:.0f} %)" if busy_s is not None and share is not None else None,
            None,
        ),
        ("Engine CPU time", _format_cpu(alone), _format_cpu(harvesting), None),
        ("CPU harvested", None, _format(harvesting.harvested_cpu_s, "{:.0f} s"), None),
    ]


def _captions(report: Report) -> list[str]:
    alone, harvesting = report.runs[ALONE], report.runs[HARVESTING]
    online = [run.online_requests or 0 for run in (alone, harvesting)]
    lines = [
        "TTFT: time to first token, from the moment the chat was meant to be sent. TBT: time between tokens. "
        f"p99 of {online[0]} and {online[1]} chats is close to their slowest. In brackets: 95 % bootstrap interval."
    ]
    if harvesting.offline_duration_s is not None:
        lines.append(
            f"Offline figures are over the {harvesting.offline_duration_s:.0f} s from the batch's creation to its end, "
            "start and end included. All tokens: online and offline, prompt and output."
        )
    if harvesting.offline_busy_s is not None:
        lines.append(
            "Engine harvested: seconds with at least one offline request in the engine, and their share of that."
        )
    if harvesting.engine_cpu_s is not None:
        lines.append("Engine CPU time: of the engine's processes, and the cores that they kept busy on average.")
    if harvesting.harvested_cpu_s is not None:
        lines.append("CPU harvested: engine CPU time beyond what chat alone takes in as many seconds.")
    return lines


def _format(value: float | None, form: str) -> str | None:
    return form.format(value) if value is not None else None


def _format_ms(values: Percentiles | None, at: str) -> str:
    if values is None:
        return "not known"
    value_ms: float = getattr(values, at)
    return f"{value_ms:.0f} ms" if value_ms < 10_000 else f"{value_ms / 1e3:.1f} s"


def _format_ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    interval = f" ({ratio.min:.1f}-{ratio.max:.1f})" if ratio.min is not None and ratio.max is not None else ""
    return f"{ratio.median:.2f}{interval}"


def _format_chats(run: RunReport) -> str:
    return f"{run.online_requests} / {run.online_errors}"


def _format_cpu(run: RunReport) -> str | None:
    if run.engine_cpu_s is None or not run.engine_cpu_duration_s:
        return None
    return f"{run.engine_cpu_s:.0f} s, {run.engine_cpu_s / run.engine_cpu_duration_s:.1f} cores"
