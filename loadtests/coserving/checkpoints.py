"""KV blocks of offline requests in host memory: how many, how fast, and what is left to compute again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conserve.engine.page import Counters
from loadtests.coserving.results import RunResult
from loadtests.report import CheckpointReport


def describe_checkpoints(repeats: Sequence[RunResult]) -> CheckpointReport:
    """What the schedulers and workers counted within the windows."""
    counters = [result.counters for result in repeats]
    copy_s = sum(each.copy_s for each in counters)

    def count(name: str) -> int:
        return round(sum(float(getattr(each, name)) for each in counters))

    return CheckpointReport(
        block_tokens=round(max(each.host_block_tokens for each in counters)),
        saved_blocks=count("saved_blocks"),
        restored_blocks=count("restored_blocks"),
        restored_in_vain=count("restored_in_vain"),
        dropped_blocks=count("dropped_blocks"),
        uncovered_blocks=count("uncovered_blocks"),
        failed_copies=count("failed_copies"),
        copy_gb_per_s=count_checkpoint_bytes(counters) / copy_s / 1e9 if copy_s else None,
        copy_share=copy_s / sum(result.window_s for result in repeats),
        copy_wait_ms=1e3 * sum(each.copy_wait_s for each in counters),
        host_share=max(each.host_blocks / each.host_slots if each.host_slots else 0.0 for each in counters),
    )


def count_checkpoint_bytes(counters: Iterable[Counters]) -> int:
    """Bytes copied to host memory and back."""
    return round(sum(each.copied_blocks * each.host_block_bytes for each in counters))
