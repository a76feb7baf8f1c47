"""What a replica says of itself to those who route online requests."""

from __future__ import annotations

from dataclasses import dataclass

from conserve.engine.contract import EngineStats
from conserve.engine.page import Counters
from conserve.engine.stats import GAUGES
from conserve.policy.outlook import Outlook
from conserve.policy.token_budget import EFFICIENT_SHARE, limit_prompts_ms


@dataclass(frozen=True)
class EngineSizes:
    """Limits of an engine.

    Attributes:
        max_num_seqs: Sequences in one iteration.
        max_num_batched_tokens: Tokens in one iteration.
        kv_tokens: Tokens that fit into its KV memory.
        tbt_slo_ms: How long those who decode may wait for their next token.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: float
    tbt_slo_ms: float


def describe_outlook(stats: EngineStats, counters: Counters | None, sizes: EngineSizes, queued_tokens: int) -> Outlook:
    """What an online request would find.

    Our scheduler takes it before all offline work, so that it waits for one iteration, which may be stopped. vLLM's own
    computes the prompts of offline requests that run to their end first, and nobody gives up a slot.

    Args:
        stats: Of the engine, now.
        counters: Of our scheduler; None for vLLM's own.
        sizes: Of the engine.
        queued_tokens: Prompt tokens of all requests without a token yet.
    """
    online = stats.online_running + stats.online_waiting
    is_busy = bool(online + stats.offline_running)
    # The last iteration's figure stays when the engine falls idle.
    free_kv_tokens = max(0.0, 1.0 - stats.kv_usage) * sizes.kv_tokens if is_busy else sizes.kv_tokens
    if counters is None:
        token_ms = GAUGES.prompt_token_ms
        offline_tokens = max(0.0, queued_tokens - stats.waiting_prompt_tokens) if stats.offline_running else 0.0
        return Outlook(
            (GAUGES.waits.mean_ms if is_busy else 0.0) + offline_tokens * token_ms,
            stats.waiting_prompt_tokens,
            0.0,
            token_ms,
            sizes.max_num_batched_tokens,
            sizes.max_num_seqs - online - stats.offline_running,
            free_kv_tokens,
        )
    costs = stats.costs
    iteration_ms = costs.overhead_ms + costs.decode_ms * stats.online_running
    iteration_tokens = float(sizes.max_num_batched_tokens)
    if stats.online_running and costs.prompt_token_ms > 0:
        # Beside those who decode a long prompt is computed in parts, as `Deadlines.limit_prompts_ms` has it.
        available_ms = min(sizes.tbt_slo_ms, costs.overhead_ms / (1 - EFFICIENT_SHARE))
        limit_ms = limit_prompts_ms(available_ms, iteration_ms)
        iteration_tokens = min(iteration_tokens, max(1.0, (limit_ms - iteration_ms) / costs.prompt_token_ms))
    return Outlook(
        counters.arrival_wait_ms if is_busy else 0.0,
        stats.waiting_prompt_tokens,
        iteration_ms,
        costs.prompt_token_ms,
        iteration_tokens,
        sizes.max_num_seqs - online,
        free_kv_tokens,
    )
