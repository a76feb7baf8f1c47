"""Request traces: when requests arrived and how long their prompts and outputs were.

Three public formats are read, told apart by their content: Azure's CSV (`TIMESTAMP`, `ContextTokens`,
`GeneratedTokens`), BurstGPT's CSV (`Timestamp` in seconds, `Request tokens`, `Response tokens`) and Mooncake's JSONL
(`timestamp` in ms, `input_length`, `output_length`, `hash_ids` of 512-token prefix blocks).
"""

from __future__ import annotations

import csv
import json
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX_BLOCK_TOKENS: Final = 512
"""Tokens of the prompt that one of Mooncake's `hash_ids` stands for."""


class TraceError(ValueError):
    """A trace cannot be used; the message names the file and, where it is one line's fault, the line and the field."""


@dataclass(frozen=True)
class TraceRequest:
    """One request.

    Attributes:
        arrival_s: Seconds from the start of the trace.
        prompt_tokens, output_tokens: At least 1.
        prefix_ids: Prompts that begin with the same ids begin with the same tokens; empty where nothing is known.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()


# A trace that says more than this is wrong, and what is worked out from it would not be finite.
_LATEST_S: Final = 1e12
_Tokens = Annotated[int, Field(ge=0, le=10**9)]


class _Row(BaseModel, ABC):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    @abstractmethod
    def to_request(self) -> TraceRequest:
        """Arrival times count from any origin."""


class _AzureRow(_Row):
    timestamp: datetime = Field(alias="TIMESTAMP")
    context_tokens: _Tokens = Field(alias="ContextTokens")
    generated_tokens: _Tokens = Field(alias="GeneratedTokens")

    def to_request(self) -> TraceRequest:
        seconds = (self.timestamp - datetime(1970, 1, 1, tzinfo=self.timestamp.tzinfo)).total_seconds()
        return TraceRequest(seconds, self.context_tokens, self.generated_tokens)


class _BurstGptRow(_Row):
    timestamp: float = Field(alias="Timestamp", ge=-_LATEST_S, le=_LATEST_S)
    request_tokens: _Tokens = Field(alias="Request tokens")
    response_tokens: _Tokens = Field(alias="Response tokens")

    def to_request(self) -> TraceRequest:
        return TraceRequest(self.timestamp, self.request_tokens, self.response_tokens)


class _MooncakeRow(_Row):
    timestamp: float = Field(ge=-_LATEST_S * 1e3, le=_LATEST_S * 1e3)
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: tuple[int, ...] = ()

    def to_request(self) -> TraceRequest:
        return TraceRequest(self.timestamp / 1e3, self.input_length, self.output_length, self.hash_ids)


def read_trace(path: Path, problems: list[str] | None = None) -> list[TraceRequest]:
    """Reads a trace of any of the formats, in the order of arrival, the first request at 0 s.

    A request without prompt or output tokens failed when the trace was taken, and is left out.

    Args:
        path: The file.
        problems: Gets what is wrong with lines that cannot be used, which are left out then. None: the first such line
            is an error.

    Raises:
        TraceError: the file is of none of the formats, a line of it is wrong, or it holds no request.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        return parse_trace(file, path, problems)


def parse_trace(file: Iterable[str], path: Path, problems: list[str] | None = None) -> list[TraceRequest]:
    """As `read_trace`, from text that is at hand, or a file that is open; `path` is what messages call it.

    Raises:
        TraceError: as there.
    """
    try:
        found = [row.to_request() for row in _read_rows(path, file, problems)]
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: is no text file: {error}") from None
    requests = sorted(
        (request for request in found if request.prompt_tokens and request.output_tokens),
        key=lambda request: request.arrival_s,
    )
    if not requests:
        raise TraceError(f"{path}: holds no request")
    start_s = requests[0].arrival_s
    return [replace(request, arrival_s=request.arrival_s - start_s) for request in requests]


def _read_rows(path: Path, file: Iterable[str], problems: list[str] | None) -> Iterator[_Row]:
    lines = iter(file)
    first = next(lines, "")
    if first.lstrip().startswith("{"):
        yield from _read_jsonl(path, first, lines, problems)
        return
    header = [name.strip() for name in first.strip().split(",")]
    for kind in (_AzureRow, _BurstGptRow):
        columns = {field.alias or name for name, field in kind.model_fields.items()}
        if columns <= set(header):
            yield from _read_csv(kind, path, csv.DictReader(lines, fieldnames=header), problems)
            return
    raise TraceError(
        f"{path}: line 1: is neither a line of Mooncake's JSONL nor the header of Azure's CSV (TIMESTAMP, "
        "ContextTokens, GeneratedTokens) or BurstGPT's CSV (Timestamp, Request tokens, Response tokens)"
    )


def _read_csv(kind: type[_Row], path: Path, reader: csv.DictReader[str], problems: list[str] | None) -> Iterator[_Row]:
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            # The header was read before, and this line is not counted yet.
            _complain(f"{path}: line {reader.line_num + 2}: is no CSV: {error}", problems)
            continue
        if values is None:
            return
        yield from _parse(kind, values, path, reader.line_num + 1, problems)


def _read_jsonl(path: Path, first: str, rest: Iterator[str], problems: list[str] | None) -> Iterator[_Row]:
    line, number = first, 1
    while line:
        if line.strip():
            try:
                values = json.loads(line)
            except RecursionError:
                _complain(f"{path}: line {number}: is nested too deeply", problems)
            except ValueError as error:  # Beside what is no JSON, numbers of thousands of digits.
                _complain(f"{path}: line {number}: is no JSON: {error}", problems)
            else:
                yield from _parse(_MooncakeRow, values, path, number, problems)
        line, number = next(rest, ""), number + 1


def _parse(kind: type[_Row], values: Any, path: Path, number: int, problems: list[str] | None) -> Iterator[_Row]:
    try:
        row = kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        value = "" if problem["type"] == "missing" else f" (it is {reprlib.repr(problem['input'])})"
        _complain(f"{path}: line {number}: {where or 'line'}: {problem['msg']}{value}", problems)
    else:
        yield row


def _complain(problem: str, problems: list[str] | None) -> None:
    if problems is None:
        raise TraceError(problem)
    problems.append(problem)


def cut_window(trace: Sequence[TraceRequest], requests: int, seed: int) -> list[TraceRequest]:
    """So many requests that follow each other in the trace, from a place that the seed decides.

    The arrivals count from the request before them.

    Raises:
        ValueError: the trace is too short.
    """
    latest = len(trace) - requests
    if latest < 1:
        raise ValueError(f"holds {len(trace)} requests where {requests + 1} are needed")
    start = int(np.random.default_rng(seed).integers(1, latest + 1))
    origin_s = trace[start - 1].arrival_s
    return [replace(request, arrival_s=request.arrival_s - origin_s) for request in trace[start : start + requests]]


def scale_time(window: Sequence[TraceRequest], rate_per_s: float) -> list[TraceRequest]:
    """The same arrivals, stretched or compressed as a whole so that their mean rate from 0 s on is `rate_per_s`.

    Raises:
        TraceError: they are all at 0 s.
    """
    end_s = window[-1].arrival_s
    if end_s <= 0:
        raise TraceError(f"{len(window)} requests in a row arrive at the same time: their rate cannot be changed")
    factor = len(window) / rate_per_s / end_s
    return [replace(request, arrival_s=request.arrival_s * factor) for request in window]


def scale_lengths(window: Iterable[TraceRequest], factor: float) -> list[TraceRequest]:
    """Prompts and outputs `factor` times as long, at least one token."""
    return [
        replace(
            request,
            prompt_tokens=max(1, round(request.prompt_tokens * factor)),
            output_tokens=max(1, round(request.output_tokens * factor)),
        )
        for request in window
    ]
