"""The page of a soak: one HTML file with its figures and plots in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtests.report import write_whole
from loadtests.soak.growth import Growth
from loadtests.soak.report import SoakReport

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.dim { color: #666; } .bad { color: #b00020; }
table { border-collapse: collapse; margin: .6rem 0; } img { width: 100%; height: auto; }
th, td { white-space: nowrap; padding: .25rem .9rem .25rem 0; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
tbody tr { border-bottom: 1px solid #ddd; }
"""
HEADINGS: Final = ("", "at first", "at last", "in half an hour", "allowed", "share", "")


def write_page(path: Path, report: SoakReport, plots: Sequence[Path], machine: str) -> None:
    """Writes the page."""
    title = f"Soak of {report.minutes:.0f} minutes, {report.engine} engine"
    load = ", ".join(f"{count:,} {name}" for name, count in sorted(report.load.items()))
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="dim">{html.escape(machine)}; warm-up {report.warm_up_minutes:.1f} minutes</p>',
        *(f'<p class="bad">{html.escape(problem)}</p>' for problem in report.problems),
        f"<p>{html.escape(load)}</p>",
        *(f'<img alt="{plot.stem}" src="{_embed(plot)}">' for plot in plots),
        "<h2>Growth</h2>",
        _table(report.growths),
        '<p class="dim">A line through the samples after the warm-up (Theil and Sen).</p>',
        *(f"<p>Ended: {html.escape(', '.join(report.ended))}</p>" for _ in report.ended[:1]),
        *(f"<p>Begun: {html.escape(', '.join(report.begun))}</p>" for _ in report.begun[:1]),
    ]
    body = "\n".join(parts)
    write_whole(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
    )


def list_cells(growth: Growth) -> tuple[str, ...]:
    """A row of the table."""
    return (
        growth.name,
        f"{growth.start:,.4g} {growth.unit}",
        f"{growth.end:,.4g}",
        f"{growth.growth:+.3g}",
        f"{growth.allowed:.3g}",
        f"{growth.share:+.1%}",
        "flat" if growth.is_flat else "grows",
    )


def _table(growths: Sequence[Growth]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in HEADINGS)
    rows = ""
    for growth in growths:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in list_cells(growth))
        begin = "<tr>" if growth.is_flat else '<tr class="bad">'
        rows += f"{begin}{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _embed(plot: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(plot.read_bytes()).decode()}"
