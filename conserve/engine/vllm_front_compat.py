"""What is asked of vLLM's `AsyncLLM` besides requests; names as of vLLM 0.32, see `vllm_compat`."""

from __future__ import annotations

import math

from conserve.engine.vllm_compat import AsyncLLM


def count_kv_tokens(client: AsyncLLM) -> float:
    """Tokens that fit into the KV memory of an engine that has started; `inf` where it has none."""
    cache = client.vllm_config.cache_config
    return float(cache.num_gpu_blocks * cache.block_size) if cache.num_gpu_blocks else math.inf


def count_queued_tokens(client: AsyncLLM) -> int:
    """Prompt tokens of all requests that have no token yet; of those that are half computed, too, all count."""
    return int(client.get_num_queued_tokens())


def count_unfinished(client: AsyncLLM) -> int:
    """Requests that the engine has not finished; those do not count whose client is slow to fetch the end."""
    return int(client.output_processor.get_num_unfinished_requests())
