"""Follows the results of a batch until it has ended, over as many connections as that takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import httpx
from openai.types import Batch

from conserve.cli.console import fail, make_client

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})

_CONNECT_S = 10.0
_READ_S = 60.0  # The application sends a blank line every 15 seconds.
_MOST_FAILURES = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_PASSING_STATUSES = (429, 502, 503, 504)


class _Passing(Exception):
    """What may be over at the next try."""


def follow_results(url: str, batch_id: str) -> Iterator[bytes]:
    """Yields each result line of a batch once, in the order in which the requests were done, until it has ended.

    A connection that breaks is made again and goes on where it was; after eight failures in a row it is given up.

    Raises:
        typer.Exit: the application refuses, or the results break off again and again; that was shown.
        httpx.TransportError: nothing answers.
        openai.APIError: the batch cannot be read.
    """
    client = make_client(url)
    lines = failures = 0
    while True:
        # Read before the stream is opened: what has ended by now is complete in it.
        batch = client.batches.retrieve(batch_id)
        problem: Exception | None = None
        try:
            for line in _read_stream(url, batch_id, lines, client.auth_headers):
                yield line
                lines, failures = lines + 1, 0
        except (httpx.TransportError, _Passing) as error:
            problem = error
        if problem is None and batch.status in ENDED:
            if lines >= _count_done(batch):
                return
            # It broke off without saying so.
            problem = _Passing(f"the results of {batch_id} end after {lines} of {_count_done(batch)} lines")
        if problem is not None:
            failures += 1
            if failures >= _MOST_FAILURES:
                raise fail(str(problem)) if isinstance(problem, _Passing) else problem
            time.sleep(min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S))


def _count_done(batch: Batch) -> int:
    counts = batch.request_counts
    return counts.completed + counts.failed if counts else 0


def _read_stream(url: str, batch_id: str, after: int, headers: dict[str, str]) -> Iterator[bytes]:
    address = f"{url.rstrip('/')}/v1/batches/{batch_id}/results"
    query: dict[str, str | int] = {"after": after, "follow": "true"}
    timeout = httpx.Timeout(_CONNECT_S, read=_READ_S)
    with httpx.stream("GET", address, params=query, headers=headers, timeout=timeout) as response:
        if response.is_error:
            response.read()
            message = f"{_find_message(response)} (HTTP {response.status_code})"
            raise _Passing(message) if response.status_code in _PASSING_STATUSES else fail(message)
        yield from _split(response.iter_bytes())


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines that are not blank. What a broken connection leaves of a line is dropped."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in lines if line)


def _find_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:300] or "no reason given"
