"""A request in the simulator: how long it is, how far it is, and what it holds."""

from __future__ import annotations

import math


class SimRequest:
    """One request.

    Attributes:
        number, key: Unlike all others; in the order of arrival. The key is for policies, which know requests by name.
        online: Whether somebody waits for it; otherwise it is a line of a batch.
        arrival_s: When it came.
        prompt_tokens, output_tokens: At least 1.
        prefix, prefix_tokens: Requests of the same prefix begin with the same tokens; 0 of them for none.
        batch_id: Batch that it is a line of.
        pool: Of replicas that it is for.
        computed: Tokens whose KV is there; of a decoding request as of when it began to decode.
        produced: Output tokens, likewise.
        best_prompt: Prompt tokens that have been computed at some time: those count as new work only once.
        cached: Tokens that it has found in the prefix cache, and shares with others.
        saved_tokens: Leading tokens in host memory.
        preemptions: How often it was preempted.
        first_token_s: When its first token came; `inf` before.
        joined_tick, end_tick: Of the decodes that it is one of.
    """

    __slots__ = (
        "arrival_s",
        "batch_id",
        "best_prompt",
        "cached",
        "computed",
        "end_tick",
        "first_token_s",
        "joined_tick",
        "key",
        "number",
        "online",
        "output_tokens",
        "pool",
        "preemptions",
        "prefix",
        "prefix_tokens",
        "produced",
        "prompt_tokens",
        "saved_tokens",
    )

    def __init__(
        self,
        number: int,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        *,
        online: bool,
        prefix: int = 0,
        prefix_tokens: int = 0,
        batch_id: str = "",
        pool: int = 0,
    ) -> None:
        self.number = number
        self.key = str(number)
        self.online = online
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.prefix = prefix
        self.prefix_tokens = min(prefix_tokens, prompt_tokens - 1) if prefix else 0
        self.batch_id = batch_id
        self.pool = pool
        self.computed = self.produced = self.best_prompt = self.cached = self.saved_tokens = self.preemptions = 0
        self.joined_tick = self.end_tick = 0
        self.first_token_s = math.inf

    @property
    def to_compute(self) -> int:
        """Tokens to compute before its next token: of the prompt, and after a preemption of what it has produced."""
        return self.prompt_tokens + self.produced - self.computed

    @property
    def total_tokens(self) -> int:
        """All tokens that it has so far."""
        return self.prompt_tokens + self.produced
