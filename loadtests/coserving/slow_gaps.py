"""What happened in the engine while an online request waited for its next token longer than its objective."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

from loadtests.coserving.results import RunResult
from loadtests.report import SlowGaps


def explain_gaps(repeats: Iterable[RunResult], limit_ms: float) -> SlowGaps | None:
    """Sorts the gaps above `limit_ms` by what they were spent on; None without a log of iterations."""
    counts = {"several_iterations": 0, "online_prompts": 0, "offline_work": 0, "outside": 0}
    is_logged = False
    for result in repeats:
        iterations = result.iterations
        is_logged = is_logged or bool(iterations)
        ends_s = [iteration.end_s for iteration in iterations]
        for record in result.measured_online if iterations else ():
            for earlier, later in pairwise(record.events):
                if (later.at_s - earlier.at_s) * 1e3 <= limit_ms:
                    continue
                first, end = bisect_right(ends_s, earlier.at_s), bisect_right(ends_s, later.at_s)
                last = iterations[end - 1] if end > first else None
                if last is None or (end - first == 1 and (last.end_s - last.start_s) * 1e3 <= limit_ms):
                    counts["outside"] += 1
                elif end - first > 1:
                    counts["several_iterations"] += 1
                elif last.offline_tokens:
                    counts["offline_work"] += 1
                else:
                    counts["online_prompts"] += 1
    return SlowGaps(**counts) if is_logged else None


def find_iteration_wait_ms(result: RunResult, due_s: float) -> float:
    """How long the iteration that was running at `due_s` went on."""
    index = bisect_right([iteration.end_s for iteration in result.iterations], due_s)
    if index == len(result.iterations) or result.iterations[index].start_s > due_s:
        return 0.0
    return (result.iterations[index].end_s - due_s) * 1e3
