"""What an online request would find at a replica: the time to its first token, as far as the replica can tell."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from conserve.policy.token_budget import EFFICIENT_SHARE, limit_prompts_ms

WAIT_MEMORY_S: Final = 2.0
"""How long a replica has been found busy counts 1/e after so much time."""
UNKNOWN_TOKEN_MS: Final = 0.1
"""Of a prompt token where no replica has learnt what its iterations cost: they are compared by their tokens then."""


class Outlook(NamedTuple):
    """What a replica says about a request that would come now.

    Attributes:
        wait_ms: Until its engine turns to the request: the rest of an iteration that is not stopped for it, and offline
            work that goes before it. Offline work that is stopped counts for the time that a stop takes.
        prompt_tokens: Of online requests before it that have no token yet.
        iteration_ms: Time of an iteration besides its prompt tokens: its overhead, and those who decode.
        prompt_token_ms: Time of each prompt token; 0 where it is not known.
        iteration_tokens: Prompt tokens that an iteration takes, 1 at least.
        free_slots: Requests more that can run at once without another one ending.
        free_kv_tokens: Tokens that fit into the KV memory without anybody being preempted.
    """

    wait_ms: float = 0.0
    prompt_tokens: float = 0.0
    iteration_ms: float = 0.0
    prompt_token_ms: float = 0.0
    iteration_tokens: float = 1.0
    free_slots: float = math.inf
    free_kv_tokens: float = math.inf

    @property
    def token_ms(self) -> float:
        """Time of a prompt token in a full iteration, the iteration's own time included."""
        token_ms = self.prompt_token_ms or UNKNOWN_TOKEN_MS
        return token_ms + self.iteration_ms / max(1.0, self.iteration_tokens)


def predict_ttft_ms(outlook: Outlook, ahead_ms: float, tokens: float) -> float:
    """Time to the first token of a request that comes now.

    Args:
        outlook: Of the replica.
        ahead_ms: Time of the prompts before it.
        tokens: Of its prompt that have to be computed.
    """
    token_ms = outlook.prompt_token_ms or UNKNOWN_TOKEN_MS
    # The last one is not full, and takes its own time all the same.
    iterations = max(1, math.ceil(tokens / max(1.0, outlook.iteration_tokens)))
    return outlook.wait_ms + ahead_ms + tokens * token_ms + iterations * outlook.iteration_ms


def limit_prompt_tokens(
    most: float, decodes_ms: float, overhead_ms: float, token_ms: float, tbt_slo_ms: float
) -> float:
    """Prompt tokens of an iteration in which others decode: a long prompt is computed in parts beside those.

    Args:
        most: Tokens of the largest iteration.
        decodes_ms: Time of the iteration without any.
        overhead_ms: Time of the smallest iteration.
        token_ms: Time of each, more than 0.
        tbt_slo_ms: How long those who decode may wait for their next token.
    """
    available_ms = min(tbt_slo_ms, overhead_ms / (1 - EFFICIENT_SHARE))
    limit_ms = limit_prompts_ms(available_ms, decodes_ms)
    return min(most, max(1.0, (limit_ms - decodes_ms) / token_ms))


def predict_wait_ms(length_ms: float, stop_ms: float, let_go_ms: float) -> float:
    """How long a request waits on average that comes during an iteration, at any moment of it.

    The rest of the iteration, where that is no more than `let_go_ms`; if it is more, the iteration is stopped.

    Args:
        length_ms: Of the iteration.
        stop_ms: From the arrival until it has stopped; `inf` if it cannot be stopped.
        let_go_ms: A rest no longer than that comes to its end.
    """
    if length_ms <= 0:
        return 0.0
    waited = min(length_ms, max(0.0, let_go_ms) if stop_ms < length_ms else math.inf)
    stopped = length_ms - waited
    return (waited * waited / 2 + (stopped * stop_ms if stopped else 0.0)) / length_ms


class WaitRecord:
    """How long a request would have waited for an engine that was busy, at any moment of the latest seconds."""

    def __init__(self) -> None:
        self._area = 0.0
        self._seconds = 0.0
        self._seen_s = -math.inf

    def observe(self, began_s: float, ended_s: float, stop_ms: float = math.inf, let_go_ms: float = 0.0) -> float:
        """An iteration has ended; time since the one before was idle.

        Args:
            began_s: When it began.
            ended_s: When it ended.
            stop_ms: As of `predict_wait_ms`.
            let_go_ms: As of `predict_wait_ms`.

        Returns:
            The mean, in ms.
        """
        began_s = max(began_s, self._seen_s)
        passed_s = min(ended_s - self._seen_s, 10 * WAIT_MEMORY_S) if self._seconds else ended_s - began_s
        if passed_s <= 0:
            return self.mean_ms
        kept = math.exp(-passed_s / WAIT_MEMORY_S)
        length_s = ended_s - began_s
        self._area = kept * self._area + length_s * predict_wait_ms(length_s * 1e3, stop_ms, let_go_ms)
        self._seconds = kept * self._seconds + passed_s
        self._seen_s = ended_s
        return self.mean_ms

    @property
    def mean_ms(self) -> float:
        """As of the last iteration."""
        return self._area / self._seconds if self._seconds else 0.0
