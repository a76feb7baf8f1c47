"""What our workers do with the privates of vLLM's model runner (V1, which serves CPUs and GPUs). As `vllm_compat`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context

from conserve.engine.resume import Row
from conserve.engine.vllm_compat import SchedulerOutput

RUNNER_RELIED_ON: Final = {
    "runner": ("_model_forward", "input_batch", "requests", "get_model", "kv_caches", "kv_cache_config"),
    "input_batch": (
        *("req_ids", "num_computed_tokens_cpu", "remove_request"),
        *("prev_sampled_token_ids", "prev_req_id_to_index", "sampled_token_ids_cpu", "async_copy_ready_event"),
    ),
    "request_state": ("block_ids",),
    "forward_context": ("skip_compiled", "cudagraph_runtime_mode"),
}
"""Attributes of vLLM's objects that our workers use, by object."""


def wrap_forward(runner: Any, begin: Callable[[int], None]) -> None:
    """Has `begin` called before each forward pass of the model, with the tokens of the batch, padding included.

    It is called within the forward context, after the runner has taken in who came and went.
    """
    forward = runner._model_forward

    def begin_and_go_on(input_ids: Any = None, positions: Any = None, *args: Any, **kwargs: Any) -> Any:
        if positions is not None:
            begin(int(positions.shape[-1]))
        return forward(input_ids, positions, *args, **kwargs)

    runner._model_forward = begin_and_go_on


def get_kv_allocation(runner: Any) -> Any:
    """A view of the memory that holds the whole KV cache (vLLM 0.32 allocates it in one piece)."""
    return runner.kv_caches[0]


def run_eagerly() -> None:
    """Makes the forward pass that is about to begin run without compiled code and CUDA graphs."""
    context = get_forward_context()
    context.skip_compiled = True
    context.cudagraph_runtime_mode = CUDAGraphMode.NONE


def list_rows(runner: Any, batch: SchedulerOutput) -> dict[str, Row]:
    """The rows of a batch that the runner has taken in, in their order, by request id."""
    rows: dict[str, Row] = {}
    offset = 0
    for index, request_id in enumerate(runner.input_batch.req_ids):
        tokens = batch.num_scheduled_tokens[request_id]
        blocks = tuple(tuple(ids) for ids in runner.requests[request_id].block_ids)
        rows[request_id] = Row(int(runner.input_batch.num_computed_tokens_cpu[index]), tokens, offset, blocks)
        offset += tokens
    return rows


def forget_previous_batch(runner: Any) -> None:
    """Makes the runner take the tokens of all requests anew from the scheduler, which has to send them.

    With asynchronous scheduling it takes those sampled last from its own memory, where those of a batch that was
    stopped or void are missing.
    """
    batch = runner.input_batch
    for request_id in [*batch.req_ids]:
        batch.remove_request(request_id)
    batch.prev_sampled_token_ids = None
    batch.prev_req_id_to_index = None
    # For penalties and the like, which want the output tokens: those come from the scheduler, too.
    batch.sampled_token_ids_cpu = None
    batch.async_copy_ready_event = None
