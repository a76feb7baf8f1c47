"""The copies that are measured are real ones, and the table says what was measured."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadtests import checkpoint_cost
from loadtests.checkpoint_cost import measure_copies
from loadtests.checkpoint_report import CheckpointReport, Resumption, render
from loadtests.report import Ratio

REPORT = CheckpointReport(
    copy_gb_per_s=4.0,
    plain_gb_per_s=5.0,
    copy_ratio=Ratio(median=0.8, min=0.7, max=0.9),
    resumptions={
        "float32": Resumption(
            restored_ms=50.0,
            recomputed_ms=400.0,
            ratio=Ratio(median=0.125, min=0.1, max=0.2),
            recomputed_tokens=64.0,
        )
    },
    on_tokens_per_s=990.0,
    off_tokens_per_s=1_000.0,
    throughput_ratio=Ratio(median=0.99, min=0.98, max=1.01),
    copied_blocks_per_s=7.0,
    preemptions=0,
)


def test_both_kinds_of_copies_are_made_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_cost, "BLOCKS", 2)
    monkeypatch.setattr(checkpoint_cost, "COPY_ROUNDS", 4)
    ours, plain = measure_copies()
    assert len(ours) == len(plain) == 2
    assert min(*ours, *plain) > 0


def test_the_table_has_ratios_with_their_spread_and_verdicts() -> None:
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(render(REPORT))
    printed = " ".join(console.export_text().split())
    for expected in (
        "copy of blocks / plain copy 0.800 0.700 to 0.900 >= 0.7 >= 0.9 met",
        "resume / recompute, float32 1/8.0 1/10.0 to 1/5.0 <= 1/6 <= 1/20 met, unsure",
        "tokens recomputed, float32 64 <= 128 <= 0 met",
        "throughput, on / off 0.990 0.980 to 1.010 >= 0.97 >= 0.995 met",
        "7.0 blocks a second",
        "50 and 400 ms (float32)",
    ):
        assert expected in printed
