"""The page of a load test: one HTML file with its figures and plots in it, which needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from loadtests.front.cost import (
    APPLICATION,
    BARE,
    LEAST_THROUGHPUT,
    MOST_TTFT_MS,
    FrontCost,
    describe_bursts,
    split_stages,
)
from loadtests.front.entrances import GRPC, HTTP
from loadtests.front.figures import ALONE, AT_ONCE, BESIDE
from loadtests.report import Percentiles, Ratio, Report, RunReport, write_whole

Row = tuple[str, ...]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p { max-width: 48rem; } .dim { color: #666; } .bad { color: #b00020; }
table { border-collapse: collapse; margin: .6rem 0; } img { width: 100%; height: auto; }
th, td { white-space: nowrap; padding: .25rem .9rem .25rem 0; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
tbody tr { border-bottom: 1px solid #ddd; }
"""


def write_page(
    path: Path, report: Report, plots: Sequence[Path], cost: FrontCost | None, problems: Sequence[str]
) -> None:
    """Writes the page."""
    alone, beside = report.runs[ALONE], report.runs[BESIDE]
    parts = [
        f"<h1>Load test of {html.escape(report.model)}</h1>",
        f'<p class="dim">{html.escape(f"{report.machine}; requests: {report.source}, seed {report.seed}")}</p>',
        *(f'<p class="bad">{html.escape(problem)}</p>' for problem in problems),
        f"<p>{html.escape(_summarise(beside, report))}</p>",
        "<h2>Online requests, alone and beside batches</h2>",
        _table(("", "online alone", "beside batches", "ratio"), _online_rows(report, alone, beside)),
        '<p class="dim">Latency counts from the moment a request was meant to be sent. A P99 of so few requests is '
        "close to their slowest. In brackets: 95 % bootstrap interval.</p>",
        *(f'<img alt="{plot.stem}" src="{_embed(plot)}">' for plot in plots[:1]),
        "<h2>Load and harvest over time</h2>",
        *(f'<img alt="{plot.stem}" src="{_embed(plot)}">' for plot in plots[1:]),
        "<h2>Harvested</h2>",
        _table(("", "beside batches"), _offline_rows(beside)),
        *(_describe_entrances(report) if GRPC in report.runs else []),
        *(_describe_cost(cost) if cost is not None else []),
    ]
    body = "\n".join(parts)
    title = f"Load test of {html.escape(report.model)}"
    write_whole(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
    )


def _summarise(beside: RunReport, report: Report) -> str:
    rate, total = beside.offline_tokens_per_s, report.ratios.get("total_vs_online_only")
    if rate is None or total is None:
        return "What was harvested beside the online requests is not known."
    ttft = report.ratios.get("ttft_p99_vs_online_only")
    latency = f", and the P99 of their first tokens was {ttft.median:.2f} times that without batches" if ttft else ""
    return (
        f"Beside the online requests the engines did {rate:,.0f} tokens/s of batch work{latency}. "
        f"All work together was {total.median:.1f} times that of the online requests alone."
    )


def _online_rows(report: Report, alone: RunReport, beside: RunReport) -> list[Row]:
    rows: list[Row] = []
    for label, name in (("TTFT", "ttft"), ("TBT", "tbt"), ("End to end", "end_to_end")):
        for at in ("p50", "p90", "p99"):
            ratio = report.ratios.get(f"{name}_{at}_vs_online_only")
            shown = _format_ratio(ratio)
            values = [_format_ms(getattr(run, f"{name}_ms"), at) for run in (alone, beside)]
            rows.append((f"{label} {at}", *values, shown))
    rows.append(("Answered / failed", *(f"{run.online_requests} / {run.online_errors}" for run in (alone, beside)), ""))
    rows.append(("Online tokens/s", *(_format(run.online_tokens_per_s) for run in (alone, beside)), ""))
    rows.append(("The client itself late, p99", *(_format_ms(run.send_lag_ms, "p99") for run in (alone, beside)), ""))
    return rows


def _offline_rows(beside: RunReport) -> list[Row]:
    return [
        ("Offline tokens/s", _format(beside.offline_tokens_per_s)),
        ("of them prompts", _format(beside.offline_prompt_tokens_per_s)),
        ("of them outputs", _format(beside.offline_output_tokens_per_s)),
        ("measured over", "" if beside.offline_duration_s is None else f"{beside.offline_duration_s:.0f} s"),
        ("Batch requests done / failed", f"{beside.offline_requests or 0} / {beside.offline_failed or 0}"),
        ("All tokens/s", _format(beside.total_tokens_per_s)),
    ]


def _describe_entrances(report: Report) -> list[str]:
    single = [report.runs[name] for name in (HTTP, GRPC)]
    rows: list[Row] = []
    for label, name in (("TTFT", "ttft"), ("TBT", "tbt"), ("End to end", "end_to_end")):
        for at in ("p50", "p90"):
            ratio = report.ratios.get(f"{name}_{at}_grpc_vs_http")
            rows.append(
                (f"{label} {at}", *(_format_ms(getattr(run, f"{name}_ms"), at) for run in single), _format_ratio(ratio))
            )
    rounds = [report.runs[AT_ONCE.format(name)] for name in (HTTP, GRPC)]
    rate = report.ratios.get("output_tokens_grpc_vs_http")
    rows.append(("Chats, one at a time", *(_format(run.online_requests) for run in single), ""))
    rows.append(("TTFT p50, many at once", *(_format_ms(run.ttft_ms, "p50") for run in rounds), ""))
    rows.append(("TBT p50, many at once", *(_format_ms(run.tbt_ms, "p50") for run in rounds), ""))
    rows.append(
        (
            "Output tokens/s, many at once",
            *(_format(run.online_output_tokens_per_s) for run in rounds),
            _format_ratio(rate),
        )
    )
    rows.append(("Chats, many at once", *(_format(run.online_requests) for run in rounds), ""))
    return [
        "<h2>Chats over gRPC, beside the same over HTTP</h2>",
        "<p>One at a time, then in rounds of as many as the engine takes, over HTTP and over gRPC by turns; as long at "
        "both, with other words, so that none is in the prefix cache.</p>",
        _table(("", "HTTP", "gRPC", "ratio"), rows),
        '<p class="dim">In brackets: 95 % bootstrap interval; of output tokens/s the lowest and highest round.</p>',
    ]


def _describe_cost(cost: FrontCost) -> list[str]:
    ours, bare = cost.ttft_ms[APPLICATION], cost.ttft_ms[BARE]
    difference = cost.ttft_p50_difference_ms
    rows: list[Row] = [
        (
            "TTFT p50",
            f"{ours.p50:.1f} ms",
            f"{bare.p50:.1f} ms",
            f"{difference.value:+.1f} ms ({difference.low:+.1f} to {difference.high:+.1f})",
            f"at most +{MOST_TTFT_MS:g} ms",
        ),
        ("TTFT p90", f"{ours.p90:.1f} ms", f"{bare.p90:.1f} ms", f"{ours.p90 - bare.p90:+.1f} ms", ""),
    ]
    bursts = describe_bursts(cost)
    rows += [(*row, "" if row is not bursts[-1] else f"at least {LEAST_THROUGHPUT:.0%}") for row in bursts]
    stages: list[Row] = [(name, f"{added_ms:+.1f} ms") for name, added_ms in split_stages(cost)]
    return [
        "<h2>What the front door costs</h2>",
        f"<p>{cost.turns} chats and {cost.rounds} rounds of {cost.requests_at_once} at once, by turns with a bare vLLM "
        "server of the same settings on the same cores.</p>",
        _table(("", APPLICATION, BARE, "difference", "allowed"), rows),
        _table(("Where the difference of the first tokens goes", "adds"), stages),
    ]


def _table(header: Row, rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _embed(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _format_ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    known = ratio.min is not None and ratio.max is not None
    return f"{ratio.median:.2f}" + (f" ({ratio.min:.2f}-{ratio.max:.2f})" if known else "")


def _format(value: float | None) -> str:
    return "not known" if value is None else f"{value:,.0f}"


def _format_ms(values: Percentiles | None, at: str) -> str:
    return "not known" if values is None else f"{getattr(values, at):,.0f} ms"
