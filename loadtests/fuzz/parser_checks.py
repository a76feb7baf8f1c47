"""What must hold of the parsers, whatever they are given."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from conserve.jobs.batch import BatchEndpoint
from conserve.jobs.validation import MAX_PROBLEMS, InputValidator
from conserve.simulator.traces import TraceError, parse_trace
from loadtests.fuzz.corpus import MODEL

MOST_LINES, LONGEST_LINE_BYTES = 64, 1 << 13


def check_input(content: bytes) -> None:
    """Reads an input file as the keeper does.

    Raises:
        AssertionError: What was found does not fit together.
    """
    endpoints = list(BatchEndpoint)
    endpoint = endpoints[len(content) % len(endpoints)]
    whole = InputValidator(endpoint, [MODEL], MOST_LINES, LONGEST_LINE_BYTES)
    ranges = list(whole.check([content]))
    step = 1 + len(content) % 97
    pieces = InputValidator(endpoint, [MODEL], MOST_LINES, LONGEST_LINE_BYTES)
    assert list(pieces.check(content[at : at + step] for at in range(0, len(content), step))) == ranges
    assert pieces.problems == whole.problems
    assert len(whole.problems) <= MAX_PROBLEMS + 1
    ids = [json.loads(content[one.offset : one.offset + one.length])["custom_id"] for one in ranges]
    assert len(set(ids)) == len(ids)
    json.dumps([problem.model_dump() for problem in whole.problems]).encode("ascii")
    if not whole.problems:
        assert len(ranges) == whole.total > 0
        assert whole.size.requests == whole.total


def check_trace(content: bytes) -> None:
    """Reads a trace, as strictly as it can be read and as leniently.

    Raises:
        AssertionError: What was found does not fit together.
    """
    path = Path("trace")
    problems: list[str] = []
    found = []
    for heard in (None, problems):
        try:
            found = parse_trace(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=""), path, heard)
        except TraceError as error:
            problems.append(str(error))
    assert all(problem.startswith("trace: ") for problem in problems)
    arrivals = [request.arrival_s for request in found]
    assert arrivals == sorted(arrivals)
    assert all(math.isfinite(one) for one in arrivals)
    assert all(request.prompt_tokens >= 1 and request.output_tokens >= 1 for request in found)


CHECKS: Final[dict[str, Callable[[bytes], None]]] = {"jsonl": check_input, "traces": check_trace}
