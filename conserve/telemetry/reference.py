"""`python -m conserve.telemetry.reference > docs/metrics.md`: the catalogue of metrics as a page."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from conserve.telemetry.catalogue import SECTIONS
from conserve.telemetry.metric import EXPORT_PREFIX, Metric

INTRODUCTION: Final = (Path(__file__).parent / "reference_head.md").read_text()


def write_reference() -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION.rstrip()]
    for title, metrics in SECTIONS.items():
        parts.append(f"## {title}\n{_table(metrics)}")
    return "\n\n".join(parts) + "\n"


def _table(metrics: Iterable[Metric]) -> str:
    lines = ["| metric | kind | unit | labels | meaning |", "| --- | --- | --- | --- | --- |"]
    for metric in metrics:
        labels = ", ".join(f"`{label.name}`" for label in metric.labels)
        buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}." if metric.buckets else ""
        name = f"`{EXPORT_PREFIX}{metric.name}`"
        lines.append(f"| {name} | {metric.kind} | {metric.unit} | {labels} | {metric.meaning}{buckets} |")
    labels_of = {label for metric in metrics for label in metric.labels}
    for label in sorted(labels_of, key=lambda one: one.name):
        lines_of = f"- `{label.name}`: {label.meaning}; {label.most} values at most."
        lines.append(lines_of if lines[-1].startswith("- ") else f"\n{lines_of}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(write_reference())
