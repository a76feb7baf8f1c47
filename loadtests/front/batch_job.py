"""One batch as a client sees it: submitted, asked about until it has ended, its result lines counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from loadtests.batch_file import ENDPOINT
from loadtests.front.calls import CallError, Calls
from loadtests.front.record_file import BatchRecord

ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
GIVEN_UP: Final = "given up"
CANCEL_TIMEOUT_S: Final = 5.0

T = TypeVar("T")
Timing = Callable[[str, float, Exception | None], None]
"""Told of each call: its name, how long it took in ms, and what went wrong."""


class BatchJob:
    """A batch.

    Args:
        calls: The server.
        intended_s: When it is meant to be submitted, by `clock`.
        on_call: Told of each call, and of the time from `intended_s` to the end, as `turnaround`.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, calls: Calls, intended_s: float, on_call: Timing, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._calls = calls
        self._on_call = on_call
        self._clock = clock
        self._intended_s = intended_s
        self._created_s: float | None = None
        self._ended_s: float | None = None
        self._batch: dict[str, Any] = {}
        self._polls = 0
        self._error: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was created and has not ended, as far as it is known."""
        return bool(self._batch) and self._error is None and self._batch["status"] not in (*ENDED, GIVEN_UP)

    def submit(self, path: Path, window: str = "24h") -> None:
        """Sends the file and creates the batch; what goes wrong is in the record."""
        file_id = self._call("upload", lambda: self._calls.upload(path))
        if file_id is None:
            return
        body = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": window}
        self._batch = self._call("create", lambda: self._calls.post("/v1/batches", body)) or {}
        if self._batch:
            self._created_s = self._clock()

    def poll(self) -> None:
        """Asks how it is; once it has ended, looks whether each request has its one result line."""
        if not self.is_open:
            return
        self._polls += 1
        found = self._call("poll", lambda: self._calls.get_json(f"/v1/batches/{self._batch['id']}"))
        if found is None:
            return
        self._batch = found
        if self._batch["status"] not in ENDED:
            return
        self._ended_s = self._clock()
        self._check_results()
        problem = None if self._batch["status"] == "completed" else CallError(f"it is {self._batch['status']}")
        self._on_call("turnaround", (self._ended_s - self._intended_s) * 1e3, problem)

    def give_up(self) -> None:
        """Cancels it, so that no work is left behind on the server."""
        if self.is_open:
            path = f"/v1/batches/{self._batch['id']}/cancel"
            self._call("cancel", lambda: self._calls.post(path, {}, CANCEL_TIMEOUT_S))
            self._batch = {**self._batch, "status": GIVEN_UP}

    def to_record(self) -> BatchRecord:
        """What is known of it now."""
        counts = self._batch.get("request_counts") or {}
        return BatchRecord(
            batch_id=self._batch.get("id"),
            intended_s=self._intended_s,
            created_s=self._created_s,
            ended_s=self._clock() if self._ended_s is None else self._ended_s,
            status=self._batch.get("status", "not created"),
            total=counts.get("total") or 0,
            completed=counts.get("completed") or 0,
            failed=counts.get("failed") or 0,
            polls=self._polls,
            error=self._error,
        )

    def _check_results(self) -> None:
        files = [self._batch.get(name) for name in ("output_file_id", "error_file_id")]
        lines = sum(self._count_lines(f"/v1/files/{file_id}/content") for file_id in files if file_id)
        counts = self._batch["request_counts"]
        if self._error is None and lines != counts["total"]:
            self._error = f"{lines} result lines for {counts['total']} requests"

    def _count_lines(self, path: str) -> int:
        return len((self._call("results", lambda: self._calls.get(path)) or b"").splitlines())

    def _call(self, name: str, call: Callable[[], T]) -> T | None:
        began_s = self._clock()
        problem: Exception | None = None
        result = None
        try:
            result = call()
        except (CallError, OSError) as error:
            problem, self._error = error, f"{name}: {error}"
        self._on_call(name, (self._clock() - began_s) * 1e3, problem)
        return result
