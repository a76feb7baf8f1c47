"""The tables of the co-serving benchmark: the runs, the figures they are held to, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loadtests.coserving.figures import Figure, Subject, list_figures
from loadtests.coserving.losses import explain_losses
from loadtests.coserving.results import RELAXED, STOCK_TUNED
from loadtests.report import Percentiles, Ratio, Report, RunReport

UNKNOWN = "-"
STYLES = {"goal met": "bold green", "met": "green", "missed": "bold red", "not measured": "dim"}
_SUBJECTS: dict[Subject, str] = {
    "errors": "Errors",
    "ttft": "TTFT",
    "tbt": "TBT",
    "offline": "Offline work",
    "model": "Latency model",
    "stops": "Stopped passes",
    "checkpoints": "KV checkpoints",
}


def print_workload(console: Console, report: Report) -> None:
    """Prints everything about a workload; made for 120 columns."""
    figures = list_figures(report)
    console.print()
    console.print(render_runs(report))
    console.print()
    console.print(render_figures(figures))
    losses = explain_losses(report, figures)
    if losses:
        console.print()
        console.print(_render_losses(losses))
    console.print()


def render_runs(report: Report) -> RenderableType:
    """One row a run; what is not known is a dash."""
    table = Table(
        title=_title(report), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("", no_wrap=True)
    for latency in ("TTFT", "TBT"):
        for at in ("p50", "p90", "p99"):
            table.add_column(f"{latency}\n{at}", justify="right", no_wrap=True)
    for column in ("SLO\nkept", "\nerrors", "offline\nprompt", "offline\noutput", "\nall", "\npreempted"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, run in report.runs.items():
        table.add_row(
            name,
            *(_format_ms(values, at) for values in (run.ttft_ms, run.tbt_ms) for at in ("p50", "p90", "p99")),
            _format(None if run.slo_attainment is None else 100 * run.slo_attainment, "{:.0f} %"),
            _format(run.online_errors, "{:,}"),
            _format(run.offline_prompt_tokens_per_s, "{:,.0f}"),
            _format(run.offline_output_tokens_per_s, "{:,.1f}"),
            _format(run.total_tokens_per_s, "{:,.0f}"),
            _format(run.preemptions, "{:,}"),
        )
    return Group(table, *_captions(_describe_runs(report)))


def render_figures(figures: Iterable[Figure]) -> RenderableType:
    """One row a figure, with its verdict."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("Figure", no_wrap=True)
    for column in ("must", "goal", "measured", "interval", "repeat by repeat"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    unsure = False
    for figure in figures:
        verdict = figure.verdict
        unsure = unsure or figure.unsure
        table.add_row(
            figure.label,
            figure.must.text,
            figure.goal.text if figure.goal is not None else "",
            *_format_ratio(figure.measured),
            Text(f"{verdict}, unsure" if figure.unsure else verdict, style=STYLES[verdict]),
        )
    lines = [
        "Ratios are of conserve to the run named, of pooled repeats. Interval: of latencies 95 % bootstrap over "
        "requests; of rates the lowest and highest repeat."
    ]
    if unsure:
        lines.append("Unsure: the interval holds values on both sides of what must be reached.")
    return Group(table, *_captions(lines))


def _render_losses(losses: Mapping[Subject, Iterable[str]]) -> RenderableType:
    parts: list[RenderableType] = [Text("Where the time goes", style="bold")]
    for subject, lines in losses.items():
        parts.append(Padding(Text(_SUBJECTS[subject], style="cyan"), (0, 0, 0, 2), expand=False))
        parts += [Padding(Text(line), (0, 0, 0, 4), expand=False) for line in lines]
    return Group(*parts)


def _title(report: Report) -> str:
    repeats = f"{report.repeats} repeat{'s' if report.repeats > 1 else ''}"
    return f"{report.workload}: {report.model} on {report.machine}, {repeats}"


def _describe_runs(report: Report) -> list[str]:
    lines = ["TTFT and TBT in ms; offline and all (online and offline, prompt and output) in tokens/s."]
    if report.objectives is not None:
        goals = report.objectives
        line = f"Objectives: TTFT {goals.ttft_ms:,.0f} ms, TBT {goals.tbt_ms:,.0f} ms"
        if goals.tightness is not None:
            line += f", {goals.tightness:g}x the P99 of online-only"
        lines.append(f"{line}. SLO kept: share of requests with the first token and every gap within them.")
    relaxed = report.runs.get(RELAXED)
    if relaxed is not None and relaxed.knobs:
        lines.append(
            f"{RELAXED} is told to keep TTFT {relaxed.knobs['ttft_slo_ms']:,.0f} ms and TBT "
            f"{relaxed.knobs['tbt_slo_ms']:,.0f} ms, nine tenths of the P99 of {STOCK_TUNED}."
        )
    if report.online_load is not None:
        load = report.online_load
        lines.append(
            f"Online load: {load.requests_per_s:.2f} requests/s on average, {100 * load.share:.0f} % of the "
            f"{load.capacity_requests_per_s:.2f} that the stock engine serves at full batches. "
            f"Arrivals: {report.source}."
        )
    requests = [run.online_requests for run in report.runs.values() if run.online_requests]
    if requests:
        fewest, most = min(requests), max(requests)
        count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        lines.append(
            f"{count} online requests a run, all repeats together. Rates: over the measured windows, no fill, no drain."
        )
    if any(run.online_errors for run in report.runs.values()):
        lines.append(
            "Errors: online requests that failed or were given up. They are not in the percentiles, "
            "which look better for it."
        )
    lines += _describe_tuning(report, report.runs.get(STOCK_TUNED))
    return [*lines, *(report.notes or ())]


def _describe_tuning(report: Report, run: RunReport | None) -> list[str]:
    if run is None or run.knobs is None:
        return []
    tried = sum(point.grid == STOCK_TUNED for point in report.calibration or ())
    setting = ", ".join(f"{name} {value:g}" for name, value in run.knobs.items())
    return [f"stock-tuned: {setting}" + (f" (best of {tried} settings)." if tried else ".")]


def _captions(lines: Iterable[str]) -> list[RenderableType]:
    return [Padding(Text(line, style="dim"), (0, 0, 0, 2), expand=False) for line in lines]


def _format(value: float | None, form: str) -> str:
    return form.format(value) if value is not None else UNKNOWN


def _format_ms(values: Percentiles | None, at: str) -> str:
    return f"{getattr(values, at):,.0f}" if values is not None else UNKNOWN


def _format_ratio(ratio: Ratio | None) -> tuple[str, str, str]:
    if ratio is None:
        return UNKNOWN, "", ""
    interval = (
        f"{_format_number(ratio.min)} to {_format_number(ratio.max)}"
        if ratio.min is not None and ratio.max is not None
        else ""
    )
    repeats = ""
    if ratio.repeat_median is not None and ratio.repeat_min is not None and ratio.repeat_max is not None:
        spread = f"{_format_number(ratio.repeat_min)} to {_format_number(ratio.repeat_max)}"
        repeats = f"{_format_number(ratio.repeat_median)} ({spread})"
    return _format_number(ratio.median), interval, repeats


def _format_number(value: float) -> str:
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
