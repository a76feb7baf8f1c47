"""What a replica can do for offline requests while its online ones meet their objectives, by its latency model."""

from __future__ import annotations

from typing import Final

from conserve.policy.harvest_rate import IterationCosts
from conserve.policy.replica_capacity import Headroom
from conserve.policy.token_budget import EFFICIENT_SHARE

USUAL_TOKENS: Final = 256.0
"""Of a prompt and of an answer, where nothing was seen yet."""


def find_headroom(
    costs: IterationCosts,
    online_decodes: float,
    tbt_slo_ms: float,
    prompt_tokens: float = USUAL_TOKENS,
    output_tokens: float = USUAL_TOKENS,
) -> Headroom | None:
    """Offline tokens a second, and how many requests in flight they take; None where the costs are not known.

    Each iteration has a token of each offline request, and as many prompt tokens as keep their number. It takes as long
    as the next tokens of online requests can wait, and no longer than is efficient (`token_budget`).

    Args:
        costs: Of the engine.
        online_decodes: Online requests that decode at a time.
        tbt_slo_ms: How long their next tokens may take; `inf` for any time.
        prompt_tokens: Of an offline request, on average.
        output_tokens: Of its answer.
    """
    if not costs.known:
        return None
    output_tokens = max(1.0, output_tokens)
    request_ms = max(1e-6, costs.decode_ms + prompt_tokens / output_tokens * costs.prompt_token_ms)
    online_ms = costs.overhead_ms + online_decodes * costs.decode_ms
    longest_ms = costs.overhead_ms / (1.0 - EFFICIENT_SHARE)
    # Where less than one decodes on average, nobody does for a part of the time.
    busy_share = min(1.0, online_decodes)
    requests = tokens_per_s = 0.0
    for share, limit_ms in ((busy_share, min(longest_ms, tbt_slo_ms)), (1.0 - busy_share, longest_ms)):
        if share <= 0:
            continue
        in_flight = max(0.0, limit_ms - online_ms) / request_ms
        requests = max(requests, in_flight)
        tokens_per_s += share * in_flight * (1.0 + prompt_tokens / output_tokens) / max(online_ms, limit_ms) * 1e3
    return Headroom(tokens_per_s, requests)
