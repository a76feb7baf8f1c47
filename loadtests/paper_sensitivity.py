"""How the published ablation would look under other assumptions than those of `paper_table`.

    python -m loadtests.paper_sensitivity

H100, Llama 3.1 8B. Each line changes one assumption for all figures; the rest is as in `paper_table`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from conserve.simulator.metrics import Metrics
from conserve.simulator.scenarios import Scenario
from conserve.simulator.workload import OfflineShape
from loadtests.paper_table import BURSTGPT, compare_ladder

DOCUMENTS: Final = (2_000, 12_000)
CASES: Final[dict[str, Scenario]] = {
    "load 15 %": replace(BURSTGPT, online_share=0.15),
    "load 30 %, as in the table": BURSTGPT,
    "load 50 %": replace(BURSTGPT, online_share=0.5),
    "load 70 %": replace(BURSTGPT, online_share=0.7),
    "online prompts twice as long": replace(BURSTGPT, prompt_tokens=(100, 3_000)),
    "online prompts four times as long": replace(BURSTGPT, prompt_tokens=(200, 6_000)),
    "gaps between arrivals with a CV of 4": replace(BURSTGPT, burst_cv=4.0),
    "load 50 %, CV of 4": replace(BURSTGPT, online_share=0.5, burst_cv=4.0),
    "outputs of 512 to 1,024 offline tokens": replace(BURSTGPT, offline=OfflineShape(DOCUMENTS, (512, 1_024))),
    "outputs of 1,024 to 2,048 offline tokens": replace(BURSTGPT, offline=OfflineShape(DOCUMENTS, (1_024, 2_048))),
    "outputs of 1,024 to 2,048, CV of 4": replace(
        BURSTGPT, offline=OfflineShape(DOCUMENTS, (1_024, 2_048)), burst_cv=4.0
    ),
}


@dataclass(frozen=True)
class Line:
    """The ladder of the ablation under one assumption."""

    case: str
    sarathi: Metrics
    scheduler: Metrics
    layers: Metrics
    checkpoints: Metrics


PUBLISHED: Final = "| published | 375 -> 73 | 1,399 -> 686 -> 523 | 8,810 -> 11,366 | 1.29 | - | - |"


def list_lines(cases: Sequence[str]) -> Iterator[Line]:
    """Simulates the cases of these names."""
    for case in cases:
        yield Line(case, *compare_ladder(CASES[case]))


def to_markdown(lines: Sequence[Line]) -> str:
    """A table, with what was published in its first line."""
    rows = [
        "| assumption | P99 TBT, ms | P99 TTFT, ms | offline tok/s | checkpoints over none, x "
        "| preempted a minute | computed twice, % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        PUBLISHED,
    ]
    for line in lines:
        without, with_ = line.layers, line.checkpoints
        twice = 100 * without.recomputed_tokens / max(1, without.offline_tokens)
        cells = (
            line.case,
            _chain(*(metrics.tbt.percentile(0.99) for metrics in (line.sarathi, line.scheduler))),
            _chain(*(metrics.ttft.percentile(0.99) for metrics in (line.sarathi, line.scheduler, line.layers))),
            _chain(*(metrics.offline_tokens_per_s for metrics in (without, with_))),
            f"{with_.offline_tokens / max(1, without.offline_tokens):.2f}",
            f"{without.offline_preemptions / without.window_s * 60:,.0f}",
            f"{twice:.1f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _chain(*values: float) -> str:
    return " -> ".join(f"{value:,.0f}" for value in values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="paper_sensitivity", description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    table = to_markdown([*list_lines(list(CASES))])
    print(table)
    if options.out is not None:
        options.out.write_text(table + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
