"""The plots of a soak: memory of each process, and what there is of everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.coserving.plots import DOTS_PER_INCH, PLOT_SETTINGS
from loadtests.soak.sampling import QueueSample, Sample

WARM_UP_COLOR: Final = "#eeeeee"
LABELLED: Final = 8
"""So many of the largest processes have names in the plot."""


def write_plots(samples: Sequence[Sample], warm_up_s: float, out: Path) -> list[Path]:
    """Writes `memory.png` and `counts.png`; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(PLOT_SETTINGS):
        for name, draw in (("memory", draw_memory), ("counts", draw_counts)):
            path = out / f"{name}.png"
            draw(samples, warm_up_s).savefig(path, dpi=DOTS_PER_INCH)
            paths.append(path)
    return paths


def draw_memory(samples: Sequence[Sample], warm_up_s: float) -> Figure:
    """Memory of each process, and of all together."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    whole, single = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    minutes = [sample.at_s / 60 for sample in samples]
    whole.plot(minutes, [sample.rss_mib for sample in samples], color="#000000")
    whole.set_ylabel("All, MiB")
    last = samples[-1].processes
    largest = sorted(last, key=lambda name: -last[name].rss_mib)
    for place, name in enumerate(largest):
        found = [(sample.at_s / 60, sample.processes[name].rss_mib) for sample in samples if name in sample.processes]
        label = name if place < LABELLED else None
        single.plot(*zip(*found, strict=True), linewidth=1, label=label)
    single.set_ylabel("Each process, MiB")
    single.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    _finish((whole, single), warm_up_s)
    return figure


def draw_counts(samples: Sequence[Sample], warm_up_s: float) -> Figure:
    """Load, open files, keys and memory of Redis, files in shared memory, KV blocks."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True).flatten()
    minutes = [sample.at_s / 60 for sample in samples]
    _draw(panels[0], minutes, [sample.clients for sample in samples], "Online clients")
    files = [sum(process.files for process in sample.processes.values()) for sample in samples]
    _draw(panels[1], minutes, files, "Open files of all processes")
    _draw(panels[2], minutes, [sample.shared_files for sample in samples], "Files in shared memory")
    _draw_queue(panels[3], samples, lambda queue: queue.kv_usage, "KV blocks in use, share")
    _draw_queue(panels[4], samples, lambda queue: queue.keys - queue.kept_keys, "Keys beside batches and files")
    _draw_queue(panels[5], samples, lambda queue: queue.memory_mib - queue.kept_memory_mib, "Redis beside them, MiB")
    _finish(panels, warm_up_s)
    return figure


def _draw_queue(axes: Axes, samples: Sequence[Sample], read: Callable[[QueueSample], float], label: str) -> None:
    found = [(sample.at_s / 60, read(sample.queue)) for sample in samples if sample.queue is not None]
    _draw(axes, [at for at, _ in found], [value for _, value in found], label)


def _draw(axes: Axes, minutes: Sequence[float], values: Sequence[float], label: str) -> None:
    axes.plot(minutes, values, color="#0072B2", linewidth=1)
    axes.set_ylabel(label)


def _finish(panels: Sequence[Axes], warm_up_s: float) -> None:
    for axes in panels:
        axes.axvspan(0, warm_up_s / 60, color=WARM_UP_COLOR, zorder=0)
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("Minutes; grey: warm-up")
