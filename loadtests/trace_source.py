"""Where a load takes its requests from: real traces, or generated ones with the same statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from conserve.simulator.trace_statistics import STATISTICS, Kind, TraceStatistics, generate_trace
from loadtests.traces import TraceError, TraceRequest, cut_window, read_trace

__all__ = ["GENERATED", "STATISTICS", "Kind", "TraceSource", "TraceStatistics", "generate_trace"]

GENERATED: Final = "generated"
_SUFFIXES = (".csv", ".jsonl")


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
