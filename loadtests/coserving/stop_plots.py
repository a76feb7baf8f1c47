"""The plot of stopped passes, as PNG and SVG: where they stopped, and how soon after the signal."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from loadtests.coserving.plots import PLOT_SETTINGS, choose_styles, make_title, save_figure, sort_runs
from loadtests.coserving.results import WorkloadResults
from loadtests.coserving.stops import list_stopped

SHOWN_SIGNAL_QUANTILE = 0.995
"""Single stragglers would squeeze all others into a corner."""


def write_stop_plots(results: WorkloadResults, out: Path) -> list[Path]:
    """Writes `<workload>-stops.*` if passes were stopped; returns the paths."""
    if not any(list_stopped(result) for result in results.runs):
        return []
    with mpl.rc_context(PLOT_SETTINGS):
        return save_figure(draw_stops(results), out / f"{results.workload}-stops")


def draw_stops(results: WorkloadResults) -> Figure:
    """Share of the stops up to each layer, and up to each time from the signal; one line a run."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    layers_axes, signal_axes = figure.subplots(1, 2)
    runs = sort_runs({result.run for result in results.runs})
    styles = choose_styles(runs)
    longest_ms = 0.0
    for run in runs:
        stopped = [iteration for result in results.of(run) for iteration in list_stopped(result)]
        if not stopped:
            continue
        style = styles[run]
        signals_ms = [1e3 * (each.stopped_s - each.announced_s) for each in stopped if each.announced_s > 0]
        layers = [each.stop_layer for each in stopped]
        for axes, values, label in (
            (layers_axes, layers, f"{run} ({len(stopped)} stops)"),
            (signal_axes, signals_ms, f"{run} ({len(signals_ms)} with a signal)"),
        ):
            if values:
                axes.ecdf(values, color=style.color, linestyle=style.line, linewidth=style.width, label=label)
        if signals_ms:
            longest_ms = max(longest_ms, float(np.quantile(signals_ms, SHOWN_SIGNAL_QUANTILE)))
    layers_axes.set_xlabel("Stopped before layer")
    layers_axes.set_ylabel("Share of stops")
    signal_axes.set_xlabel("From the announcement of a request to the stop, ms")
    if longest_ms:
        signal_axes.set_xlim(0, 1.1 * longest_ms)
    for axes in (layers_axes, signal_axes):
        if axes.lines:
            axes.legend(frameon=False, loc="lower right")
    figure.suptitle(make_title(results), fontsize=11)
    return figure
