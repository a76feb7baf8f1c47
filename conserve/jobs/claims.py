"""What replicas and the queue say to each other about single requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from conserve.jobs.journal import Journal


@dataclass(frozen=True, slots=True)
class ClaimedRequest:
    """One request leased to a claimer: line `line` (from 1) is `length` bytes at `offset` of the input file.

    `fence` identifies this claim; every further move needs it. `attempt` counts from 1. One that is to run `alone` is
    suspected of bringing replicas down: it waits until nothing else of a batch runs there, then calls `begin`.
    `journal` is what it has produced before, if it was journaled.
    """

    batch_id: str
    line: int
    offset: int
    length: int
    fence: str
    attempt: int
    alone: bool = False
    journal: Journal | None = None


@dataclass(frozen=True, slots=True)
class RenewResult:
    """`lost`: lines whose lease is no longer the caller's; it should stop them. `cancelled`: stop the whole batch."""

    lost: frozenset[int]
    cancelled: bool


@dataclass(frozen=True, slots=True)
class ResultRef:
    """Where the finished line of one request lies: `length` bytes at `offset` of a result segment."""

    line: int
    fence: str
    kind: Literal["output", "error"]
    segment: str
    offset: int
    length: int
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A committed result as it is read back: a place in a segment, or an error made by the queue itself."""

    kind: Literal["output", "error"]
    segment: str | None
    offset: int = 0
    length: int = 0
    code: str = ""
    message: str = ""
