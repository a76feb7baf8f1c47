"""Every name of vLLM that this project uses, in one place.

Tested with vLLM 0.32. The names marked (unstable) are documented upstream as subject to change, or have moved before;
`tests/unit/engine/test_vllm_compat.py` says which one is gone when they move. Our schedulers are subclasses of vLLM's
and use its attributes under their own names: those are listed in `RELIED_ON`, which the same test goes through.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Set
from typing import NamedTuple

from vllm import __version__ as vllm_version
from vllm.config import VllmConfig
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue  # private
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.generate.base.serving import PRIORITY_HEADER  # unstable
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # unstable
from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # unstable
from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest, EmbeddingCompletionRequest  # unstable
from vllm.exceptions import VLLMClientError  # unstable
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.import_utils import resolve_obj_by_qualname as find_by_name
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # (unstable) as are all names of the scheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError  # unstable
from vllm.v1.executor.multiproc_executor import MultiprocExecutor  # its `_post_init_executor` is private
from vllm.v1.metrics.loggers import StatLoggerBase  # (unstable) plug-in group `vllm.stat_logger_plugins`
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats  # unstable
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from conserve.engine.tested_versions import TESTED_VERSIONS, find_version_problem

RELIED_ON = {
    "scheduler": (
        *("running", "waiting", "kv_holding_waiting", "deferred_waiting", "requests", "connector", "scheduler_config"),
        *("max_num_running_reqs", "max_num_active_reqs", "max_num_scheduled_tokens", "max_model_len", "block_size"),
        *("num_waiting_for_streaming_input", "num_lookahead_tokens", "num_spec_tokens", "num_sampled_tokens_per_step"),
        *("requires_kv_delivery", "kv_cache_manager", "schedule", "update_from_output", "add_request", "shutdown"),
        *("_preempt_request", "_is_blocked_waiting_status", "_handle_blocked_waiting_request"),
        *("_get_local_prefix_cache_hit",),
        *("_request_blocks_can_be_freed", "_inflight_prefills", "prev_step_scheduled_req_ids"),
        *("kv_cache_config", "finished_req_ids", "finish_requests", "reset_prefix_cache"),
    ),
    "kv_cache_manager": (
        "evict_blocks",
        "watermark_blocks",
        "empty_kv_cache_blocks",
        "coordinator",
        "block_pool",
    ),
    "block_pool": ("num_gpu_blocks", "get_num_free_blocks"),
    "coordinator": ("single_type_managers", "get_num_blocks_to_allocate"),
    "block_manager": ("req_to_blocks", "num_cached_block", "block_size"),
    "request": (
        *("request_id", "priority", "arrival_time", "status", "block_hashes", "is_prefill_chunk", "spec_token_ids"),
        *("num_tokens", "num_prompt_tokens", "num_computed_tokens", "num_output_placeholders", "max_tokens"),
        *("num_tokens_with_spec", "num_preemptions", "sampling_params"),
    ),
    "scheduler_config": ("long_prefill_token_threshold", "long_prefill_token_threshold_adaptive"),
}
"""Attributes of vLLM's objects that our schedulers use, by object."""

__all__ = [
    "PRIORITY_HEADER",
    "RELIED_ON",
    "TESTED_VERSIONS",
    "Admission",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncScheduler",
    "ChatCompletionRequest",
    "CompletionRequest",
    "EmbeddingChatRequest",
    "EmbeddingCompletionRequest",
    "EngineDeadError",
    "IterationStats",
    "MessageQueue",
    "ModelRunnerOutput",
    "MultiModalCacheStats",
    "MultiprocExecutor",
    "Request",
    "RequestOutputKind",
    "RequestQueue",
    "RequestStatus",
    "SamplingParams",
    "Scheduler",
    "SchedulerOutput",
    "SchedulerStats",
    "StatLoggerBase",
    "VLLMClientError",
    "VllmConfig",
    "can_free_blocks",
    "can_limit_chunks",
    "check_version",
    "count_blocks_before",
    "count_freed_blocks",
    "count_groups",
    "count_held_blocks",
    "current_platform",
    "find_by_name",
    "forget_scheduled",
    "is_blocked",
    "is_cpu_platform",
    "is_running",
    "limit_busy_waiting",
    "limit_chunks",
    "list_block_ids",
    "list_blocks_from",
    "look_up_admission",
    "preempt",
    "rewind",
    "set_blocks_kept_free",
    "stop_llm",
    "unblock",
    "uncache_blocks",
    "vllm_version",
]


def check_version(version: str = vllm_version) -> None:
    """Refuses a vLLM that the scheduler was not tested with.

    Raises:
        RuntimeError: names the version found, those tested, and the way out.
    """
    if problem := find_version_problem(version):
        raise RuntimeError(problem)


def is_cpu_platform() -> bool:
    """Whether this is vLLM's CPU build."""
    return bool(current_platform.is_cpu())


def limit_busy_waiting(queue: MessageQueue, spin_s: float, poll_ms: int) -> None:
    """Makes the reader of a queue spin for `spin_s` after each message only, then sleep on its socket.

    The writer's wake-up call is dropped when it follows another one within some milliseconds (a ZeroMQ publisher with
    a high-water mark of 1), so the reader looks for itself after `poll_ms` at the latest. Private:
    `_spin_condition.busy_loop_s` in seconds, and `_spin_condition.wait`, whose caller takes an early return.
    """
    condition = queue._spin_condition
    if condition is None:
        return
    wait = condition.wait

    def wait_shortly(timeout_ms: int | None = None) -> None:
        wait(timeout_ms=poll_ms if timeout_ms is None else min(timeout_ms, poll_ms))

    condition.busy_loop_s = spin_s
    condition.wait = wait_shortly


async def stop_llm(llm: AsyncLLM, timeout_s: float) -> None:
    """Stops an engine's processes. Its reader is stopped first: it would take the end of them for a failure."""
    if llm.output_handler is not None:
        llm.output_handler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await llm.output_handler
    await asyncio.to_thread(llm.shutdown, timeout_s)


# What the scheduler of ConServe does with the privates of vLLM's. `scheduler` is a `Scheduler`.


class Admission(NamedTuple):
    """What a waiting request finds in the prefix cache, and the free KV blocks that its admission takes."""

    cached_tokens: int
    blocks: int


def is_blocked(request: Request) -> bool:
    """Whether a waiting request waits for something that is not computed here: a grammar, remote KV, more input."""
    return bool(Scheduler._is_blocked_waiting_status(request.status))


def unblock(scheduler: Scheduler, request: Request) -> bool:
    """Whether a waiting request can be computed; takes note if what it has waited for is there, as vLLM would do."""
    return not is_blocked(request) or bool(scheduler._handle_blocked_waiting_request(request))


def is_running(request: Request) -> bool:
    """Whether a request has a sequence slot and KV blocks."""
    return bool(request.status == RequestStatus.RUNNING)


def look_up_admission(scheduler: Scheduler, request: Request) -> Admission:
    """Looks a waiting request up in the prefix cache, as its admission will do. Changes nothing.

    vLLM admits a request only if its whole sequence fits (`scheduler_reserve_full_isl`); cached blocks that nobody
    uses count as free until they are taken up again.
    """
    manager = scheduler.kv_cache_manager
    cached, cached_tokens = manager.empty_kv_cache_blocks, request.num_computed_tokens
    if request.num_computed_tokens == 0:
        cached, cached_tokens, *_ = scheduler._get_local_prefix_cache_hit(request)
    tokens = min(request.num_tokens, scheduler.max_model_len)
    blocks = manager.coordinator.get_num_blocks_to_allocate(
        request_id=request.request_id,
        num_tokens=tokens,
        new_computed_blocks=cached.blocks,
        num_encoder_tokens=0,
        total_computed_tokens=cached_tokens,
        num_local_computed_tokens=cached_tokens,
        num_tokens_main_model=tokens,
        apply_admission_cap=True,
        prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
    )
    return Admission(cached_tokens, blocks)


def count_groups(scheduler: Scheduler) -> int:
    """KV cache groups, each of which has blocks of its own for a request."""
    return len(scheduler.kv_cache_manager.coordinator.single_type_managers)


def count_held_blocks(scheduler: Scheduler, request: Request) -> int:
    """KV blocks of a request in the group that has most of them."""
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    return max(len(manager.req_to_blocks.get(request.request_id, ())) for manager in managers)


def count_freed_blocks(scheduler: Scheduler, request: Request) -> int:
    """KV blocks that become free when the request gives up its own: those that it shares with nobody."""
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    return sum(
        block.ref_cnt == 1 and not block.is_null
        for manager in managers
        for block in manager.req_to_blocks.get(request.request_id, ())
    )


def can_free_blocks(scheduler: Scheduler, request: Request) -> bool:
    """Whether the blocks of a request become free at once, and not only when a batch in flight has ended."""
    return bool(scheduler._request_blocks_can_be_freed(request))


def preempt(scheduler: Scheduler, request: Request, timestamp_s: float, *, drops_output: bool = False) -> None:
    """Takes slot and KV blocks from a running request, which is in the waiting queue afterwards.

    Args:
        scheduler: vLLM's.
        request: The request.
        timestamp_s: Now, for vLLM's events.
        drops_output: Whether what is in flight of it is worth nothing.
    """
    scheduler.running.remove(request)
    scheduler._preempt_request(request, timestamp_s, drop_stale_output=drops_output or scheduler.requires_kv_delivery)


def list_block_ids(scheduler: Scheduler, request: Request) -> list[list[int]]:
    """KV blocks of a request, by group."""
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    return [[block.block_id for block in manager.req_to_blocks.get(request.request_id, ())] for manager in managers]


def list_blocks_from(scheduler: Scheduler, request: Request, start: int) -> list[int]:
    """KV blocks of a request that tokens from `start` on are written to, of all groups."""
    return [
        block.block_id
        for manager in scheduler.kv_cache_manager.coordinator.single_type_managers
        for block in manager.req_to_blocks.get(request.request_id, ())[start // manager.block_size :]
        if not block.is_null
    ]


def rewind(scheduler: Scheduler, request: Request, start: int) -> None:
    """Makes a running request one of which only `start` tokens are computed, or in flight. It keeps its KV blocks."""
    for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
        if request.request_id in manager.num_cached_block:
            cached = min(manager.num_cached_block[request.request_id], start // manager.block_size)
            manager.num_cached_block[request.request_id] = cached
    request.num_computed_tokens = start
    request.num_output_placeholders = 0
    request.spec_token_ids = []
    request.is_prefill_chunk = start < request.num_tokens - 1
    if request.is_prefill_chunk:
        scheduler._inflight_prefills.add(request)


def uncache_blocks(scheduler: Scheduler, block_ids: set[int]) -> None:
    """Takes KV blocks out of the prefix cache; whoever has them keeps them.

    vLLM 0.32 puts a block there when it is allocated, as if it were computed.
    """
    scheduler.kv_cache_manager.evict_blocks(block_ids)


def count_blocks_before(scheduler: Scheduler, request: Request, start: int, block_ids: Set[int]) -> int:
    """How many of the given KV blocks hold tokens of a request before `start`."""
    return sum(
        block.block_id in block_ids
        for manager in scheduler.kv_cache_manager.coordinator.single_type_managers
        for block in manager.req_to_blocks.get(request.request_id, ())[: start // manager.block_size]
    )


def forget_scheduled(scheduler: Scheduler) -> None:
    """Makes the next batch bring all tokens of its requests to the workers, not only what is new."""
    scheduler.prev_step_scheduled_req_ids.clear()


def can_limit_chunks(scheduler: Scheduler) -> bool:
    """Whether `limit_chunks` holds: not where the operator has a limit of their own, or one that vLLM adapts."""
    config = scheduler.scheduler_config
    return not (config.long_prefill_token_threshold or config.long_prefill_token_threshold_adaptive)


def limit_chunks(scheduler: Scheduler, tokens: int) -> None:
    """Sets how many tokens of a prompt one iteration computes, at most (vLLM looks it up in every step); 0 for any."""
    scheduler.scheduler_config.long_prefill_token_threshold = tokens


def set_blocks_kept_free(scheduler: Scheduler, blocks: int) -> None:
    """Sets the KV blocks that admissions of waiting requests leave free (`watermark`)."""
    scheduler.kv_cache_manager.watermark_blocks = blocks
