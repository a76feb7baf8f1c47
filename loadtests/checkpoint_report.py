"""What was measured of KV checkpoints, as a table and as a file."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel
from rich import box
from rich.table import Table
from rich.text import Text

from loadtests.coserving.figures import Bound, Figure
from loadtests.coserving.table import STYLES
from loadtests.report import Ratio

BLOCK_TOKENS: Final = 128
"""Of the default model on a CPU."""
Dtype = Literal["float32", "bfloat16"]


class Resumption(BaseModel):
    """How soon a preempted request goes on.

    Attributes:
        restored_ms, recomputed_ms: Medians, from the last token of the request that took the blocks to the next of the
            one that had them.
        ratio: The first over the second, by pairs of turns.
        recomputed_tokens: After each preemption, with checkpoints, on average.
    """

    restored_ms: float
    recomputed_ms: float
    ratio: Ratio
    recomputed_tokens: float


class CheckpointReport(BaseModel):
    """What is written to `checkpoints.json`.

    Attributes:
        copy_ratio: Rate of copying blocks, as a share of that of a plain large copy.
        resumptions: By dtype of the model.
        on_tokens_per_s, off_tokens_per_s: Medians of the throughput of offline work where nothing is preempted.
        throughput_ratio: The first over the second, by pairs of turns.
        copied_blocks_per_s: Copied meanwhile.
        preemptions: Meanwhile; should be none.
    """

    copy_gb_per_s: float
    plain_gb_per_s: float
    copy_ratio: Ratio
    resumptions: dict[Dtype, Resumption]
    on_tokens_per_s: float
    off_tokens_per_s: float
    throughput_ratio: Ratio
    copied_blocks_per_s: float
    preemptions: int


def list_figures(report: CheckpointReport) -> list[Figure]:
    """What is held to a limit."""
    figures = [
        Figure(
            "copy of blocks / plain copy", "checkpoints", Bound(">= 0.7", 0.7), Bound(">= 0.9", 0.9), report.copy_ratio
        )
    ]
    for dtype, resumption in report.resumptions.items():
        label, ratio = f"resume / recompute, {dtype}", resumption.ratio
        figures.append(Figure(label, "checkpoints", Bound("<= 1/6", 1 / 6), Bound("<= 1/20", 0.05), ratio))
        tokens = Ratio(median=resumption.recomputed_tokens)
        label = f"tokens recomputed, {dtype}"
        figures.append(Figure(label, "checkpoints", Bound("<= 128", BLOCK_TOKENS), Bound("<= 0", 0.0), tokens))
    label = "throughput, on / off"
    must, goal = Bound(">= 0.97", 0.97), Bound(">= 0.995", 0.995)
    figures.append(Figure(label, "checkpoints", must, goal, report.throughput_ratio))
    return figures


def render(report: CheckpointReport) -> Table:
    """The table that is printed."""
    table = Table(title="KV checkpoints", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("measured", "lowest to highest", "must", "goal"):
        table.add_column(name, justify="right")
    table.add_column("")
    for figure in list_figures(report):
        table.add_row(
            figure.label,
            *_format(figure),
            figure.must.text,
            figure.goal.text if figure.goal is not None else "",
            Text(f"{figure.verdict}, unsure" if figure.unsure else figure.verdict, style=STYLES[figure.verdict]),
        )
    resumed = (
        f"{each.restored_ms:.0f} and {each.recomputed_ms:.0f} ms ({dtype})"
        for dtype, each in report.resumptions.items()
    )
    table.caption = (
        f"Copies: {report.copy_gb_per_s:.1f} and {report.plain_gb_per_s:.1f} GB/s. To the next token of a request with "
        f"about 1,000 tokens: {', '.join(resumed)}. Throughput: {report.on_tokens_per_s:.0f} and "
        f"{report.off_tokens_per_s:.0f} tokens/s; meanwhile {report.copied_blocks_per_s:.1f} blocks a second were "
        f"copied, and {report.preemptions} requests preempted."
    )
    table.caption_justify = "left"
    return table


def _format(figure: Figure) -> tuple[str, str]:
    ratio = figure.measured
    if ratio is None:
        return "", ""
    if ratio.min is None or ratio.max is None:
        return f"{ratio.median:.0f}", ""
    if "/" in figure.must.text:
        return f"1/{1 / ratio.median:.1f}", f"1/{1 / ratio.min:.1f} to 1/{1 / ratio.max:.1f}"
    return f"{ratio.median:.3f}", f"{ratio.min:.3f} to {ratio.max:.3f}"
