"""The plots of a load test: latency distributions, and how load and harvest went on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from loadtests.coserving.plots import DOTS_PER_INCH, PLOT_SETTINGS
from loadtests.front.figures import ALONE, BESIDE
from loadtests.front.timeline import Phase, chats_in_flight, kv_usage, offline_rates
from loadtests.latency import pool, tbt_groups, ttft_groups

COLORS: Final = {ALONE: "#000000", BESIDE: "#0072B2"}
LABELS: Final = {ALONE: "online alone", BESIDE: "online beside batches"}
OFFLINE_COLOR: Final = "#009E73"
KV_COLOR: Final = "#CC79A7"
RATE_STEP_S: Final = 2.0
LEAST_PERCENTILE: Final = 2.0
"""Where the axis of a latency begins."""
GAP_SHARE: Final = 0.02
"""Of the axis of time, between two phases."""


def write_plots(phases: Sequence[Phase], out: Path) -> list[Path]:
    """Writes `latency.png` and `timeline.png`; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(PLOT_SETTINGS):
        for name, figure in (("latency", draw_latency(phases)), ("timeline", draw_timeline(phases))):
            path = out / f"{name}.png"
            figure.savefig(path, dpi=DOTS_PER_INCH)
            paths.append(path)
    return paths


def draw_latency(phases: Sequence[Phase]) -> Figure:
    """The share of requests (gaps) that were at most so slow, on a logarithmic time axis."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, label in zip(panels, ("TTFT", "TBT", "End to end"), strict=True):
        samples = {phase.name: _samples(phase, label) for phase in phases}
        for name, values in samples.items():
            _draw_cdf(axes, values, COLORS[name], LABELS[name])
        axes.set_xscale("log")
        # Now and then two tokens come in one packet, with a gap of nearly nothing between them.
        shortest = [float(np.percentile(values, LEAST_PERCENTILE)) for values in samples.values() if values]
        if shortest:
            axes.set_xlim(left=max(0.01, 0.8 * min(shortest)))
        axes.set_xlabel(f"{label}, ms")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("Share at most so slow")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylim(0, 1.02)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_timeline(phases: Sequence[Phase]) -> Figure:
    """Chats in flight, offline tokens/s and KV use, one phase after the other on one axis of time."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    online, offline, memory = figure.subplots(3, 1, sharex=True)
    shift_s = 0.0
    gap_s = GAP_SHARE * sum(phase.duration_s for phase in phases)
    for phase in phases:
        origin_s = phase.records.start_s - shift_s
        times_s, counts = chats_in_flight(phase.records, phase.end_s)
        online.step(np.asarray(times_s) - origin_s, counts, where="post", color=COLORS[phase.name], linewidth=1.2)
        within = [one for one in phase.readings if phase.records.start_s <= one.read_s <= phase.end_s]
        times_s, rates = offline_rates(within, RATE_STEP_S)
        offline.plot(np.asarray(times_s) - origin_s, rates, color=OFFLINE_COLOR, linewidth=1.6)
        offline.fill_between(np.asarray(times_s) - origin_s, rates, color=OFFLINE_COLOR, alpha=0.15, linewidth=0)
        times_s, shares = kv_usage(within)
        memory.plot(np.asarray(times_s) - origin_s, shares, color=KV_COLOR, linewidth=1.4)
        for axes in (online, offline, memory):
            axes.axvspan(shift_s, shift_s + phase.duration_s, color=COLORS[phase.name], alpha=0.04, linewidth=0)
        online.annotate(
            LABELS[phase.name],
            (shift_s + phase.duration_s / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=COLORS[phase.name],
        )
        shift_s += phase.duration_s + gap_s
    online.set_ylabel("Chats in flight")
    offline.set_ylabel("Offline tokens/s")
    memory.set_ylabel("KV cache in use")
    online.yaxis.set_major_locator(MaxNLocator(integer=True))
    offline.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    memory.yaxis.set_major_formatter(PercentFormatter(1.0))
    memory.set_xlabel("Time, s (the pause between the phases is left out)")
    for axes in (online, offline, memory):
        axes.set_ylim(bottom=0)
    memory.set_xlim(0, max(1.0, shift_s - gap_s))
    return figure


def _samples(phase: Phase, label: str) -> list[float]:
    chats = phase.records.chats
    if label == "TTFT":
        return pool(ttft_groups(chats))
    if label == "TBT":
        return pool(tbt_groups(chats))
    return [(record.ended_s - record.intended_s) * 1e3 for record in chats if record.error is None]


def _draw_cdf(axes: Axes, samples: Sequence[float], color: str, label: str) -> None:
    values = np.sort(np.asarray(samples, dtype=float))
    shares = np.arange(1, len(values) + 1) / max(1, len(values))
    axes.step(values, shares, where="post", color=color, linewidth=1.8, label=label)
