"""Draws the figures of docs/concepts.md anew, beside itself: `python docs/images/draw.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

ONLINE: Final = "#5b8def"
OFFLINE: Final = "#e9a15b"
SAVED: Final = "#2e8b57"
STOP: Final = "#c0392b"
INK: Final = "#1f2530"
PALE: Final = "#eceff4"
FREE: Final = "#ffffff"

STYLE: Final = {
    "svg.hashsalt": "conserve",  # the same file each time
    "font.size": 10.0,
    "text.color": INK,
}


def start(width: float, height: float, across: float, up: float) -> tuple[Figure, Axes]:
    """An empty picture, `across` by `up` units large."""
    figure = plt.figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(-3, up))
    axes.axis("off")
    return figure, axes


def bar(axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str = "") -> None:
    """A piece of work, with a word in it."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1.2))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, color=INK)


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = PALE) -> None:
    """A part of the system."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=1", facecolor=colour, edgecolor=INK
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.5)


def arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    """From one to the other."""
    axes.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=12, color=colour, shrinkA=0, shrinkB=0))


def say(axes: Axes, x: float, y: float, text: str, colour: str = INK, where: str = "center") -> None:
    """A note."""
    axes.text(x, y, text, ha=where, va="center", color=colour, fontsize=9.5, linespacing=1.4)


def draw_arrival() -> Figure:
    """One engine in the milliseconds around the arrival of a chat."""
    figure, axes = start(10, 4.4, 100, 41)
    y, height = 20.0, 7.0
    layers = 8
    for layer in range(layers):
        bar(axes, 4 + layer * 2.5, y, 2.5, height, OFFLINE)
    say(axes, 4, y + height + 2.2, "an offline pass", where="left")
    stopped = 4 + layers * 2.5
    axes.plot([stopped - 1.4] * 2, [y - 3, y + height + 7], color=STOP, linewidth=1.4)
    say(axes, stopped - 1.4, y + height + 9, "1  the chat arrives", STOP)
    axes.plot([stopped] * 2, [y - 3, y + height], color=INK, linewidth=1.4)
    say(axes, stopped + 0.6, y - 6, "2  stopped before\nthe next layer", where="center")
    bar(axes, stopped + 0.6, y, 14, height, ONLINE, "3  its prompt")
    x = stopped + 15.2
    axes.plot([x, x], [y, y + height + 3.2], color=ONLINE, linewidth=1.4)
    say(axes, x, y + height + 5.0, "first token", ONLINE)
    axes.annotate("", (stopped - 1.4, y - 11.2), (x, y - 11.2), arrowprops={"arrowstyle": "<->", "color": INK})
    say(axes, (stopped + x) / 2, y - 14, "TTFT, within ttft_slo_ms")
    begin = x
    for number in range(3):
        for part in range(4):
            bar(axes, x + part * 2.5, y, 2.5, height, OFFLINE)
        if number == 0:
            say(axes, x + 5, y - 6, "4  the same pass goes on\nat the layer where it was")
        x += 10.3
        bar(axes, x, y, 3.6, height, ONLINE)
        x += 3.6
        axes.plot([x, x], [y, y + height + 3.2], color=ONLINE, linewidth=1.4)
        x += 0.5
    say(axes, begin + 28, y + height + 5.0, "next tokens", ONLINE)
    axes.annotate(
        "", (begin + 14.2, y - 11.2), (begin + 28.6, y - 11.2), arrowprops={"arrowstyle": "<->", "color": INK}
    )
    say(axes, begin + 21.4, y - 14, "TBT, within tbt_slo_ms")
    for part in range(3):
        bar(axes, x + part * 2.5, y, 2.5, height, OFFLINE)
    arrow(axes, (4, 3), (97, 3))
    say(axes, 96.5, 1.2, "time (not to scale)", where="right")
    return figure


def draw_checkpoints() -> Figure:
    """KV blocks of an offline request before, during and after a burst of chats."""
    figure, axes = start(10, 4.1, 100, 38)
    stages = [
        ("1  Memory gets scarce:\nblocks likely to be taken are copied", "ooooooo..", "sssss"),
        ("2  Chats arrive: they take the\nblocks at once, nothing is waited for", "ccccccccc", "sssssss"),
        ("3  Chats are done: the blocks come\nback, and the request goes on", "ooooooo..", "sssssss"),
    ]
    colours = {"o": OFFLINE, "c": ONLINE, ".": FREE, "s": SAVED}
    for number, (title, gpu, host) in enumerate(stages):
        left = 5 + number * 32
        say(axes, left, 34, title, where="left")
        say(axes, left, 27.5, "KV cache of the engine", where="left")
        say(axes, left, 3.4, "host memory", where="left")
        for y, row in ((21.5, gpu), (6.0, host + "." * (9 - len(host)))):
            for index, kind in enumerate(row):
                cell = Rectangle(
                    (left + index * 2.9, y), 2.6, 4.2, facecolor=colours[kind], edgecolor=INK, linewidth=0.8
                )
                axes.add_patch(cell)
    for index in range(5):
        arrow(axes, (6.3 + index * 2.9, 21), (6.3 + index * 2.9, 10.6), SAVED)
    for index in range(7):
        arrow(axes, (70.3 + index * 2.9, 10.4), (70.3 + index * 2.9, 21), SAVED)
    for x, colour, text in ((5, OFFLINE, "offline"), (17, ONLINE, "online"), (28, SAVED, "copy"), (38, FREE, "free")):
        axes.add_patch(Rectangle((x, -2.2), 2, 2.2, facecolor=colour, edgecolor=INK, linewidth=0.8))
        say(axes, x + 2.8, -1.1, text, where="left")
    return figure


def draw_controller() -> Figure:
    """Who says what to whom in a round of the controller."""
    figure, axes = start(10, 4.3, 100, 40)
    box(axes, 3, 13, 19, 15, "Replicas\n\nscheduler\nharvester")
    box(axes, 40.5, 13, 19, 15, "Redis\n\nreports\nallotments\nqueue")
    box(axes, 78, 13, 19, 15, "Controller\n\nreads all reports\ndeals windows")
    arrow(axes, (22, 26), (40.5, 26))
    say(axes, 31.2, 30.6, "1  report: load, headroom,\nfree KV memory", where="center")
    arrow(axes, (59.5, 26), (78, 26))
    say(axes, 68.7, 30, "2  4 times a second", where="center")
    arrow(axes, (78, 22), (59.5, 22))
    say(axes, 68.7, 18, "3  allotment: window,\nbatches in turn", where="center")
    arrow(axes, (40.5, 22), (22, 22))
    say(axes, 31.2, 24, "4  allotment")
    arrow(axes, (22, 16), (40.5, 16), OFFLINE)
    say(axes, 31.2, 12.2, "5  claims leases,\ncommits results", where="center")
    box(axes, 3, 1, 19, 5.5, "clients: chats", ONLINE)
    arrow(axes, (12.5, 6.5), (12.5, 13), ONLINE)
    box(axes, 40.5, 1, 19, 5.5, "clients: batches", OFFLINE)
    arrow(axes, (50, 6.5), (50, 13), OFFLINE)
    say(axes, 50, 37.5, "Chats pass neither Redis nor the controller: with both gone they are answered all the same.")
    return figure


def draw_demo() -> Figure:
    """The run of `make demo` in docs/benchmark.md: chat alone, and beside a batch."""
    figure, all_axes = plt.subplots(1, 3, figsize=(10, 2.9), facecolor="white", width_ratios=(2, 2, 1))
    panels = [
        ("Time to first token, ms", ["p50", "p99"], [140, 213], [163, 395], 500),
        ("Time between tokens, ms", ["p50", "p99"], [51, 90], [64, 104], 100),
        ("Tokens a second", ["all"], [64], [585], None),
    ]
    for axes, (title, names, alone, beside, objective) in zip(all_axes, panels, strict=True):
        places = range(len(names))
        for shift, values, colour, label in (
            (-0.2, alone, ONLINE, "chat alone"),
            (0.2, beside, OFFLINE, "with a batch"),
        ):
            bars = axes.bar([place + shift for place in places], values, 0.38, color=colour, label=label)
            axes.bar_label(bars, fontsize=9)
        if objective is not None:
            axes.axhline(objective, color=STOP, linestyle="--", linewidth=1, label="objective")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(list(places), names)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    all_axes[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.84))
    figure.tight_layout()
    return figure


FIGURES: Final = {
    "demo": draw_demo,
    "arrival": draw_arrival,
    "checkpoints": draw_checkpoints,
    "controller": draw_controller,
}


def draw_all(folder: Path) -> list[Path]:
    """Writes all figures into a folder and returns their paths."""
    made = []
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            path = folder / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)
            made.append(path)
    return made


if __name__ == "__main__":
    for one in draw_all(Path(__file__).parent):
        sys.stdout.write(f"{one}\n")
