"""What a replica says of itself to those who route online requests."""

from __future__ import annotations

from dataclasses import dataclass

from conserve.engine.contract import EngineStats
from conserve.engine.page import Counters
from conserve.engine.stats import GAUGES
from conserve.policy.outlook import Outlook, limit_prompt_tokens
from conserve.policy.overload import Conditions


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
        iteration_tokens = limit_prompt_tokens(
            iteration_tokens, iteration_ms, costs.overhead_ms, costs.prompt_token_ms, sizes.tbt_slo_ms
        )
    return Outlook(
        counters.arrival_wait_ms if is_busy else 0.0,
        stats.waiting_prompt_tokens,
        iteration_ms,
        costs.prompt_token_ms,
        iteration_tokens,
        sizes.max_num_seqs - online,
        free_kv_tokens,
    )


def describe_conditions(counters: Counters | None, sizes: EngineSizes, running: int) -> Conditions:
    """What decides about letting a request in.

    With vLLM's own scheduler, where offline requests hold slots and memory to their end, it is prompts alone: what is
    held cannot be told apart.

    Args:
        counters: Of our scheduler; None for vLLM's own.
        sizes: Of the engine.
        running: Online sequences that decode.
    """
    most = float(sizes.max_num_batched_tokens)
    if counters is None:
        return Conditions(Outlook(0.0, 0.0, 0.0, GAUGES.prompt_token_ms, most), 0.0, sizes.max_num_seqs)
    overhead_ms, token_ms = counters.iteration_ms, counters.prompt_token_ms
    iteration_ms = overhead_ms + counters.decode_ms * running
    if running and token_ms > 0:
        most = limit_prompt_tokens(most, iteration_ms, overhead_ms, token_ms, sizes.tbt_slo_ms)
    free_kv_tokens = sizes.kv_tokens
    if running:
        free_kv_tokens = counters.kv_free_blocks * counters.kv_block_tokens + counters.kv_offline_tokens
    return Conditions(
        Outlook(
            counters.arrival_wait_ms if running else 0.0,
            iteration_ms=iteration_ms,
            prompt_token_ms=token_ms,
            iteration_tokens=most,
            free_kv_tokens=free_kv_tokens,
        ),
        counters.decode_ms,
        sizes.max_num_seqs,
        sizes.kv_tokens,
    )
