"""The offline requests a replica holds a lease on: running, or finished and not yet committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conserve.engine.contract import TokenRecord
from conserve.jobs.claims import ClaimedRequest


@dataclass
class _Held:
    claimed: ClaimedRequest
    task: asyncio.Task[None] | None = None
    record: TokenRecord | None = None


@dataclass
class HeldWork:
    """Leased requests by batch and line. A request stays held from its claim until it is committed or given back."""

    _held: dict[str, dict[int, _Held]] = field(default_factory=dict)

    @property
    def running_count(self) -> int:
        """Requests that are being worked on (finished ones that wait for their commit do not count)."""
        return sum(held.task is not None for lines in self._held.values() for held in lines.values())

    def count_running(self) -> dict[str, int]:
        """The same by batch."""
        return {
            batch_id: sum(held.task is not None for held in lines.values()) for batch_id, lines in self._held.items()
        }

    @property
    def has_alone(self) -> bool:
        """Whether one of those is to run alone: nothing may be claimed beside it."""
        return any(held.claimed.alone and held.task for lines in self._held.values() for held in lines.values())

    def add(self, claimed: ClaimedRequest, task: asyncio.Task[None], record: TokenRecord | None = None) -> None:
        """Takes a request that `task` works on; `record` has the tokens that it produces, if they are kept."""
        self._held.setdefault(claimed.batch_id, {})[claimed.line] = _Held(claimed, task, record)

    def finish(self, claimed: ClaimedRequest) -> None:
        """Marks a request as done and waiting for its commit."""
        held = self._held.get(claimed.batch_id, {}).get(claimed.line)
        if held is not None and held.claimed.fence == claimed.fence:
            held.task = held.record = None

    def drop(self, batch_id: str, fences: Mapping[int, str]) -> list[asyncio.Task[None]]:
        """Forgets claims (line -> fence), but none that is newer than the one named.

        Returns:
            The tasks of those still running, to be cancelled.
        """
        lines = self._held.get(batch_id, {})
        dropped = [
            lines.pop(line) for line, fence in fences.items() if line in lines and lines[line].claimed.fence == fence
        ]
        self._forget_if_empty(batch_id)
        return [held.task for held in dropped if held.task is not None]

    def drop_finished(self, batch_id: str, lines: Iterable[int]) -> None:
        """Forgets finished requests whose commit was answered; a newer claim of the line that runs again stays."""
        held_lines = self._held.get(batch_id, {})
        for line in lines:
            if line in held_lines and held_lines[line].task is None:
                del held_lines[line]
        self._forget_if_empty(batch_id)

    def _forget_if_empty(self, batch_id: str) -> None:
        if not self._held.get(batch_id, True):
            del self._held[batch_id]

    def batch_ids(self) -> list[str]:
        """Batches of which anything is held."""
        return list(self._held)

    def fences(self, batch_id: str) -> dict[int, str]:
        """Line -> fence of everything held of a batch."""
        return {line: held.claimed.fence for line, held in self._held.get(batch_id, {}).items()}

    def running_lines(self, batch_id: str) -> set[int]:
        """Lines of a batch that are being worked on."""
        return {line for line, held in self._held.get(batch_id, {}).items() if held.task is not None}

    def running_tasks(self, batch_id: str) -> list[asyncio.Task[None]]:
        """The tasks that work on a batch."""
        return [held.task for held in self._held.get(batch_id, {}).values() if held.task is not None]

    def records(self, batch_id: str) -> list[tuple[ClaimedRequest, TokenRecord]]:
        """What is being worked on of a batch and has a record."""
        lines = self._held.get(batch_id, {})
        return [(held.claimed, held.record) for held in lines.values() if held.record is not None]
