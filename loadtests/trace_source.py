"""Where a load takes its requests from: real traces, or generated ones with the same statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from loadtests.traces import TraceError, TraceRequest, cut_window, read_trace

Kind = Literal["conv", "code"]
"""Conversations, or code completion: longer prompts, shorter outputs, and far burstier."""
GENERATED: Final = "generated"
_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class TraceStatistics:
    """What a generated trace has in common with a real one.

    Attributes:
        rate_per_s: Mean rate.
        gap_cv: Standard deviation over mean of the gaps between arrivals.
        gaps: Their distribution; gaps of a high variation fit a log-normal one better than a gamma one.
        prompt_quantiles, output_quantiles: (share, tokens), from share 0 to share 1. In between, the logarithm of the
            tokens is linear in the share.
    """

    rate_per_s: float
    gap_cv: float
    gaps: Literal["gamma", "lognormal"]
    prompt_quantiles: tuple[tuple[float, int], ...]
    output_quantiles: tuple[tuple[float, int], ...]


STATISTICS: Final[dict[Kind, TraceStatistics]] = {
    "conv": TraceStatistics(
        5.5,
        1.1,
        "gamma",
        ((0, 30), (0.1, 207), (0.25, 396), (0.5, 1_020), (0.75, 1_189), (0.9, 2_734), (0.99, 4_142), (1, 5_000)),
        ((0, 10), (0.1, 54), (0.25, 85), (0.5, 129), (0.75, 395), (0.9, 424), (0.99, 601), (1, 800)),
    ),
    "code": TraceStatistics(
        2.6,
        13.0,
        "lognormal",
        ((0, 10), (0.1, 147), (0.25, 578), (0.5, 1_469), (0.75, 2_744), (0.9, 5_187), (0.99, 7_436), (1, 7_437)),
        ((0, 6), (0.1, 7), (0.25, 9), (0.5, 13), (0.75, 24), (0.9, 55), (0.99, 249), (1, 600)),
    ),
}
"""Measured on AzureLLMInferenceTrace_conv.csv and _code.csv (2023), rare extremes cut off."""


def generate_trace(statistics: TraceStatistics, requests: int, seed: int) -> list[TraceRequest]:
    """Requests with the given statistics; the same seed gives the same requests."""
    generator = np.random.default_rng(seed)
    mean_s, cv = 1.0 / statistics.rate_per_s, statistics.gap_cv
    if statistics.gaps == "gamma":
        gaps_s = generator.gamma(1.0 / cv**2, mean_s * cv**2, requests)
    else:
        sigma = float(np.sqrt(np.log(1.0 + cv**2)))
        gaps_s = generator.lognormal(np.log(mean_s) - sigma**2 / 2, sigma, requests)
    arrivals_s = np.cumsum(gaps_s)
    lengths = [
        np.rint(np.exp(np.interp(generator.random(requests), *_to_points(quantiles)))).astype(int)
        for quantiles in (statistics.prompt_quantiles, statistics.output_quantiles)
    ]
    return [
        TraceRequest(float(arrival_s - arrivals_s[0]), int(prompt), int(output))
        for arrival_s, prompt, output in zip(arrivals_s, *lengths, strict=True)
    ]


def _to_points(quantiles: Sequence[tuple[float, int]]) -> tuple[list[float], list[float]]:
    return [share for share, _ in quantiles], [float(np.log(tokens)) for _, tokens in quantiles]


class TraceSource:
    """Where a benchmark takes its requests from.

    Args:
        path: A trace, or a folder of traces; None for generated ones. Of several in a folder, the one whose name
            contains `conv` or `code` is taken for that kind.
        problems: Gets what is wrong with lines that cannot be used, which are left out then. None: the first such line
            is an error.
    """

    def __init__(self, path: Path | None, problems: list[str] | None = None) -> None:
        self._path = path
        self._problems = problems
        self._traces: dict[Path, list[TraceRequest]] = {}

    def name(self, kind: Kind) -> str:
        """The file's name, or `generated`.

        Raises:
            TraceError: there is no file for this kind.
        """
        return GENERATED if self._path is None else self._find(self._path, kind).name

    def draw(self, kind: Kind, requests: int, seed: int) -> list[TraceRequest]:
        """So many requests in a row; the same seed gives the same requests.

        Raises:
            TraceError: the trace cannot be read, or is too short.
        """
        if self._path is None:
            return cut_window(generate_trace(STATISTICS[kind], requests + 1, seed), requests, seed)
        path = self._find(self._path, kind)
        if path not in self._traces:
            try:
                self._traces[path] = read_trace(path, self._problems)
            except OSError as error:
                raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            return cut_window(self._traces[path], requests, seed)
        except ValueError as error:
            raise TraceError(f"{path}: {error}") from None

    @staticmethod
    def _find(path: Path, kind: Kind) -> Path:
        if path.is_file():
            return path
        if not path.is_dir():
            raise TraceError(f"{path}: there is no such trace or folder")
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        named = [file for file in files if kind in file.name.lower()]
        chosen = named or files
        if len(chosen) != 1:
            found = ", ".join(file.name for file in chosen) or "no .csv or .jsonl file"
            raise TraceError(f"{path}: one trace with `{kind}` in its name is needed (there is {found})")
        return chosen[0]
