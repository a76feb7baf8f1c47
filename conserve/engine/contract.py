"""What callers of the engine see of it. Imports no vLLM, so that callers need none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conserve.policy.harvest_rate import IterationCosts

OnChunk = Callable[[Mapping[str, Any]], None]
"""Hears of each chunk of a streamed answer, as the HTTP API would send it."""


class EngineFault(RuntimeError):
    """The engine failed, not the request: another attempt may succeed."""


class EngineDied(EngineFault):
    """The engine ended while it worked on the request, which may be the cause."""


class EngineGone(EngineFault):
    """The engine had ended before: the request was not tried."""


class AttemptTimeout(EngineFault):
    """The request was not answered in time."""


class InvalidRequest(ValueError):
    """The request is wrong: another attempt would be, too. `param` names the field of its body."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class OfflineResult:
    """The answer to an offline request: an HTTP status code and the body that the HTTP API would have sent."""

    status_code: int
    body: dict[str, Any]
    prompt_tokens: int = 0
    output_tokens: int = 0


def _do_nothing() -> None:
    pass


@dataclass
class TokenRecord:
    """Tokens that an offline request has produced, kept so that another engine can go on after them.

    Whoever keeps it puts in what an earlier attempt has produced; the engine goes on after that or says why not, and
    adds what is new, in pieces. The end of an answer is not added: what ends is not continued.

    Attributes:
        token_ids: All that is known, from the beginning of the answer on.
        piece: Tokens are added so many at a time.
        on_tokens: Called when some were added.
        journaled: So many of `token_ids` are stored elsewhere; for who keeps the record.
        reused: Tokens of an earlier attempt that the engine has not generated again.
        restarted: Why it has not used them, or why nothing is added: see `conserve.policy.resumption.Obstacle`.
        open: Whether tokens are added and kept.
    """

    token_ids: list[int] = field(default_factory=list)
    piece: int = 1
    on_tokens: Callable[[], None] = _do_nothing
    journaled: int = 0
    reused: int = 0
    restarted: str | None = None
    open: bool = True

    @property
    def new_count(self) -> int:
        """Tokens that are not stored elsewhere yet."""
        return len(self.token_ids) - self.journaled if self.open else 0

    def add(self, token_ids: Sequence[int]) -> None:
        """Takes tokens that the engine has just produced."""
        if self.open and token_ids:
            self.token_ids += token_ids
            self.on_tokens()

    def begin_anew(self, reason: str) -> None:
        """Forgets what there is: the answer begins at its beginning."""
        self.token_ids.clear()
        self.journaled = 0
        self.restarted = reason

    def close(self) -> None:
        """Nothing more is added or kept."""
        self.open = False


@dataclass(frozen=True)
class EngineStats:
    """Requests in the engine now, and totals since it started.

    `*_busy_s` are seconds in which at least one request of the kind was in the engine, `engine_cpu_s` the CPU seconds
    used by the engine's own processes, `kv_usage` the share of KV blocks in use, 0 to 1. `costs` are what the latency
    model has learnt; nothing where the scheduler has none. `waiting_prompt_tokens` are those of `online_waiting`, as
    their router has estimated them. `kv_*` and `checkpoint_*` are as in `conserve.harvest.messages.CapacityReport`, and
    the tokens that came in time or late as in `Counters` of `conserve.engine.page`; 0 where the scheduler does not say.
    `stops` and what follows are as in the report, too, and None there.
    """

    online_running: int
    online_waiting: int
    offline_running: int
    kv_usage: float
    online_busy_s: float
    offline_busy_s: float
    engine_cpu_s: float
    online_requests: int
    offline_requests: int
    offline_prompt_tokens: int
    offline_output_tokens: int
    costs: IterationCosts = field(default_factory=IterationCosts)
    waiting_prompt_tokens: float = 0.0
    kv_tokens: int = 0
    kv_free_tokens: int = 0
    kv_reserved_tokens: int = 0
    kv_offline_tokens: int = 0
    checkpoint_tokens: int = 0
    checkpoint_free_tokens: int = 0
    first_tokens: int = 0
    late_first_tokens: int = 0
    next_tokens: int = 0
    late_next_tokens: int = 0
    stops: int | None = None
    resumed_passes: int | None = None
    offline_preemptions: int | None = None
    restored_tokens: int | None = None
    offline_computed_tokens: int | None = None
