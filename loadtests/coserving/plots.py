"""The plots of the co-serving benchmark, each as PNG and SVG: a workload's latencies and timeline, and its frontier.

Colours are those of Okabe and Ito and of Tol's muted scheme, told apart with any colour vision; the lines of the six
runs differ by their dashes, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from loadtests.coserving.results import (
    CEILING,
    CONSERVE,
    OFFLINE_ONLY,
    ONLINE_ONLY,
    RELAXED,
    RUNS,
    STOCK_COSERVE,
    STOCK_TUNED,
    CalibrationPoint,
    RunResult,
    WorkloadResults,
)
from loadtests.latency import pool

FloatArray = NDArray[np.float64]
DOTS_PER_INCH = 150
TIMELINE_BINS = 40
CURVE_POINTS = 400
PLOT_SETTINGS: Final[Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "svg.hashsalt": "conserve",  # the same plot gives the same file
}


class Style(NamedTuple):
    """How a run is drawn, in every plot."""

    color: str
    line: Literal["-", "--", "-.", ":"] = "-"
    width: float = 1.6


_STYLES = {
    ONLINE_ONLY: Style("#000000"),
    OFFLINE_ONLY: Style("#009E73", "--"),
    STOCK_COSERVE: Style("#D55E00", "--"),
    STOCK_TUNED: Style("#E69F00", "-."),
    CEILING: Style("#56B4E9", "--"),
    CONSERVE: Style("#0072B2", "-", 2.2),
    RELAXED: Style("#0072B2", "-.", 1.4),
}
_ABLATION_STYLES = tuple(Style(color, ":") for color in ("#AA4499", "#999933", "#882255", "#44AA99", "#661100"))


def write_plots(results: WorkloadResults, out: Path) -> list[Path]:
    """Writes the plots for which there are results, `<workload>.*` and `<workload>-frontier.*`; returns the paths."""
    written: list[Path] = []
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(PLOT_SETTINGS):
        if any(result.ttft_groups for result in results.runs):
            written += save_figure(draw_workload(results), out / results.workload)
        if any(point.ttft_p99_ms is not None for point in results.frontier):
            written += save_figure(draw_frontier(results), out / f"{results.workload}-frontier")
    return written


def draw_workload(results: WorkloadResults) -> Figure:
    """TTFT and TBT of all runs above the timeline of `conserve` (without it, none)."""
    conserve = results.of(CONSERVE)
    figure = Figure(figsize=(10, 8.5 if conserve else 4.8), layout="constrained")
    heights = (5, 2, 3) if conserve else (1,)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    runs = sort_runs({result.run for result in results.runs})
    styles = choose_styles(runs)
    objective = results.objective
    for column, label in enumerate(("TTFT", "TBT")):
        axes = figure.add_subplot(grid[0, column])
        for run in runs:
            repeats = results.of(run)
            groups = [group for each in repeats for group in (each.ttft_groups if label == "TTFT" else each.tbt_groups)]
            _draw_survival(axes, pool(groups), styles[run])
        limit_ms = None if objective is None else objective.ttft_slo_ms if label == "TTFT" else objective.tbt_slo_ms
        _label_survival(axes, label, limit_ms)
    if conserve:
        repeat = min(result.repeat for result in conserve)
        online = figure.add_subplot(grid[1, :])
        offline = figure.add_subplot(grid[2, :], sharex=online)
        _draw_timeline(online, offline, [result for result in results.runs if result.repeat == repeat], styles)
        offline.set_xlabel(f"Time in the measured window of repeat {repeat}, s")
    drawn = [run for run in runs if any(result.ttft_groups for result in results.of(run))]
    figure.legend(
        handles=[_legend_entry(run, styles[run]) for run in drawn],
        title=make_title(results),
        title_fontsize=11,
        loc="outside upper center",
        ncols=min(len(drawn), 5),
        frameon=False,
    )
    return figure


def draw_frontier(results: WorkloadResults) -> Figure:
    """P99 TTFT against offline tokens/s, one point a size, one line an engine."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    series: dict[str, list[CalibrationPoint]] = {}
    for point in results.frontier:
        if point.ttft_p99_ms is not None:
            series.setdefault(_series_name(point), []).append(point)
    spare = iter(_ABLATION_STYLES * len(series))
    for name, points in sorted(series.items()):
        style = {"conserve": _STYLES[CONSERVE], "stock": _STYLES[STOCK_TUNED]}.get(name) or next(spare)
        points.sort(key=lambda point: tuple(point.knobs.values()))
        rates = [point.offline.total_per_s for point in points]
        ttft_ms = [point.ttft_p99_ms or math.nan for point in points]
        axes.plot(rates, ttft_ms, style.line, color=style.color, linewidth=style.width, marker="o", label=name)
        for point, rate, value_ms in zip(points, rates, ttft_ms, strict=True):
            axes.annotate(
                _name_size(point, points),
                (rate, value_ms),
                xytext=(7, -12),
                textcoords="offset points",
                color=style.color,
            )
    if results.objective is not None:
        _mark_objective(axes.axhline, results.objective.ttft_slo_ms, label="TTFT objective")
    axes.set_yscale("log")
    _format_log(axes, "y")
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel("Offline prompt and output tokens/s (more is better)")
    axes.set_ylabel("P99 TTFT, ms (less is better)")
    axes.legend(frameon=False)
    axes.set_title(f"{make_title(results)}\nNumbers at the points: sizes of a pass, tokens", fontsize=11)
    return figure


def sort_runs(names: Iterable[str]) -> list[str]:
    """The six runs in their order, then the ablations in alphabetical order."""
    return sorted(names, key=lambda name: (RUNS.index(name) if name in RUNS else len(RUNS), name))


def choose_styles(runs: Iterable[str]) -> dict[str, Style]:
    """A style for each run; ablations take theirs in the order given."""
    spare = 0
    styles: dict[str, Style] = {}
    for run in runs:
        if run in _STYLES:
            styles[run] = _STYLES[run]
        else:
            styles[run] = _ABLATION_STYLES[spare % len(_ABLATION_STYLES)]
            spare += 1
    return styles


def bin_online(result: RunResult, edges_s: FloatArray) -> FloatArray:
    """Online tokens a second between each two edges, in seconds since the start of the window.

    A prompt counts as a whole when its first token comes, as in `TokenRates`.
    """
    tokens = [(record.events[0].at_s, record.prompt_tokens) for record in result.online if record.events]
    tokens += [event for record in result.online for event in record.events]
    return _bin_events(result, tokens, edges_s)


def bin_offline(result: RunResult, edges_s: FloatArray) -> FloatArray:
    """Offline tokens a second between each two edges, in seconds since the start of the window.

    Offline prompts are so long that few end in any bin: each is spread over the time since the one before was computed.
    What comes after the last one is not known (NaN).
    """
    outputs = _bin_events(result, [event for record in result.offline for event in record.events], edges_s)
    prompts = sorted((record.events[0].at_s, record.prompt_tokens) for record in result.offline if record.events)
    if not prompts:
        return outputs
    computed_s = np.array([time_s for time_s, _ in prompts]) - result.window_start_s
    total = np.interp(edges_s, computed_s, np.cumsum([tokens for _, tokens in prompts]), right=math.nan)
    return outputs + np.diff(total) / np.diff(edges_s)


def _bin_events(result: RunResult, events: Sequence[tuple[float, int]], edges_s: FloatArray) -> FloatArray:
    times_s = np.array([time_s for time_s, _ in events]) - result.window_start_s
    counts, _ = np.histogram(times_s, bins=edges_s, weights=[tokens for _, tokens in events])
    return np.asarray(counts / np.diff(edges_s))


def _draw_survival(axes: Axes, values: Sequence[float], style: Style) -> None:
    """The share of samples above each value; both axes are logarithmic, so that the tail is seen."""
    if not values:
        return
    shares = np.geomspace(1 / len(values), 1, CURVE_POINTS)
    axes.plot(np.quantile(values, 1 - shares), shares, style.line, color=style.color, linewidth=style.width)


def _label_survival(axes: Axes, label: str, limit_ms: float | None) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    _format_log(axes, "x")
    name = {"TTFT": "Time to first token (TTFT), ms", "TBT": "Time between tokens (TBT), ms"}[label]
    axes.set_xlabel(name)
    axes.set_ylabel("Share of requests slower" if label == "TTFT" else "Share of gaps longer")
    axes.set_yticks([1, 0.5, 0.1, 0.01, 0.001], ["100 %", "50 %", "10 %", "1 % (p99)", "0.1 %"])
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0.0007 if label == "TBT" else 0.002, 1.1)
    axes.axhline(0.01, color="#888888", linewidth=0.9)
    if limit_ms is not None:
        _mark_objective(axes.axvline, limit_ms)
        axes.annotate(
            f"objective {limit_ms:,.0f} ms",
            (limit_ms, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            color="#444444",
            fontsize=9,
        )


def _draw_timeline(online: Axes, offline: Axes, runs: Sequence[RunResult], styles: dict[str, Style]) -> None:
    window_s = max(result.window_s for result in runs)
    edges_s = np.linspace(0, window_s, TIMELINE_BINS + 1)
    for axes, names, kind in (
        (online, (ONLINE_ONLY, CONSERVE), "online"),
        (offline, (STOCK_TUNED, CEILING, CONSERVE), "offline"),
    ):
        for result in sorted(runs, key=lambda result: names.index(result.run) if result.run in names else -1):
            if result.run in names:
                style = styles[result.run]
                rates = (bin_online if kind == "online" else bin_offline)(result, edges_s)
                axes.stairs(
                    rates, edges_s, baseline=None, color=style.color, linewidth=style.width, linestyle=style.line
                )
                if result.run == CONSERVE:
                    axes.stairs(rates, edges_s, fill=True, color=style.color, alpha=0.15)
        axes.set_ylabel(f"{kind.capitalize()}\ntokens/s")
        axes.set_ylim(bottom=0)
    online.set_xlim(0, window_s)
    online.tick_params(labelbottom=False)


def make_title(results: WorkloadResults) -> str:
    return f"{results.workload}: {results.model} on {results.machine}"


def _legend_entry(name: str, style: Style) -> Line2D:
    return Line2D([], [], color=style.color, linestyle=style.line, linewidth=style.width, label=name)


def _mark_objective(draw_line: Callable[..., Line2D], limit_ms: float, label: str | None = None) -> None:
    draw_line(limit_ms, color="#444444", linestyle=(0, (1, 2)), linewidth=1.4, label=label)


def _format_log(axes: Axes, which: Literal["x", "y"]) -> None:
    """Plain numbers instead of powers, as many of a decade as there is room for."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 4 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _series_name(point: CalibrationPoint) -> str:
    """The engine, and what is switched off in it."""
    off = [name.removesuffix("_off") for name, value in point.knobs.items() if name.endswith("_off") and value]
    return f"{point.mode} without {', '.join(off)}" if off else point.mode


def _name_size(point: CalibrationPoint, points: Sequence[CalibrationPoint]) -> str:
    """The settings of a point in which the points of its line differ."""
    differing = [name for name in point.knobs if len({other.knobs.get(name) for other in points}) > 1]
    return " / ".join(f"{point.knobs[name]:g}" for name in differing)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.parent / f"{stem.name}{suffix}" for suffix in (".png", ".svg")]
    figure.savefig(paths[0], dpi=DOTS_PER_INCH)
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
