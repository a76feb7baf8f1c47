"""An engine without a model: our scheduler or vLLM's, a real KV cache manager, a fake worker, a virtual clock."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
from vllm.config import CacheConfig, KVTransferConfig, ModelConfig, SchedulerConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.structured_output import StructuredOutputManager

from conserve.engine.options import Objective, SchedulerOptions
from conserve.engine.pass_control import ANNOUNCEMENT
from conserve.engine.scheduler import create_scheduler
from conserve.engine.step_plan import read_stop
from conserve.engine.stock import create_stock_scheduler
from conserve.engine.stoppable import WORKERS
from conserve.engine.testing.worker import LAYERS, VOCABULARY, FakeWorker
from conserve.engine.vllm_compat import (
    AsyncScheduler,
    ModelRunnerOutput,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerOutput,
    VllmConfig,
)
from conserve.policy.pass_stop import PreemptRule
from conserve.policy.priority import OFFLINE_PRIORITY

NO_LIMIT = Objective(ttft_slo_ms=float("inf"), tbt_slo_ms=float("inf"))
_BLOCK_BYTES = 8
"""For each token, of the KV cache that `make_scheduler` describes."""
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 131_072,
}


@dataclass(frozen=True)
class EngineSize:
    """Sizes of an engine, by vLLM's names."""

    kv_blocks: int = 64
    block_size: int = 16
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 256
    max_model_len: int = 512
    max_num_active_seqs: int | None = None
    long_prefill_token_threshold: int = 0


def make_config(
    size: EngineSize,
    *,
    objectives: Sequence[Objective] = (NO_LIMIT,),
    page: Path | None = None,
    profile_dir: Path | None = None,
    iteration_log: Path | None = None,
    arrivals: Path | None = None,
    preempt: PreemptRule = "slo",
    has_safepoints: bool = False,
    async_scheduling: bool = False,
    kv_transfer: KVTransferConfig | None = None,
    host_slots: float = 0,
) -> VllmConfig:
    """The configuration of an engine, for a model of which there is nothing but a description."""
    options = SchedulerOptions(
        objectives=tuple(objectives),
        page=page,
        profile_dir=profile_dir,
        iteration_log=iteration_log,
        arrivals=arrivals,
        preempt=preempt,
        host_kv_bytes=int(host_slots * _BLOCK_BYTES * size.block_size),
        host_copy_share=1.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_MODEL))
        config = VllmConfig(
            model_config=ModelConfig(
                model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=size.max_model_len, seed=0
            ),
            cache_config=CacheConfig(block_size=size.block_size, enable_prefix_caching=True),
            scheduler_config=SchedulerConfig(
                max_num_seqs=size.max_num_seqs,
                max_num_active_seqs=size.max_num_active_seqs,
                max_num_batched_tokens=size.max_num_batched_tokens,
                max_model_len=size.max_model_len,
                long_prefill_token_threshold=size.long_prefill_token_threshold,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                policy="priority",
            ),
            kv_transfer_config=kv_transfer,
            additional_config=options.to_additional_config(),
        )
    config.scheduler_config.async_scheduling = async_scheduling  # The CPU platform has switched it off.
    config.cache_config.num_gpu_blocks = size.kv_blocks
    if has_safepoints:
        config.parallel_config.worker_cls = WORKERS["cpu"]
    return config


def make_scheduler(
    kind: Literal["conserve", "stock", "vllm"],
    config: VllmConfig,
    *,
    runner: Literal[1, 2] = 1,
    log_stats: bool = True,
) -> Scheduler:
    """Our scheduler, the measured stock one, or vLLM's own.

    Args:
        kind: Which.
        config: From `make_config`.
        runner: Version of the model runner that its batches are for.
        log_stats: As in vLLM.
    """
    size = config.cache_config.block_size
    spec = FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    groups = [KVCacheGroupSpec(["layer"], spec)]
    own = AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler
    make = {"conserve": create_scheduler, "stock": create_stock_scheduler, "vllm": own}[kind]
    scheduler = make(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(config.cache_config.num_gpu_blocks, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=StructuredOutputManager(config),
        block_size=size,
        hash_block_size=size,
        log_stats=log_stats,
    )
    scheduler.use_v2_model_runner = runner == 2
    return scheduler


class VirtualClock:
    """Time that passes when it is told to. Its two clocks differ, as those of a machine do."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now_s += seconds

    def monotonic(self) -> float:
        """As in the module `time`."""
        return self.now_s

    def time(self) -> float:
        """As in the module `time`."""
        return self.now_s + 1.7e9

    @contextmanager
    def installed(self) -> Iterator[VirtualClock]:
        """Makes our schedulers go by this clock."""
        with (
            mock.patch("conserve.engine.scheduler.time", self),
            mock.patch("conserve.engine.stock.time", self),
        ):
            yield self


def fixed_cost_ms(batch: SchedulerOutput) -> float:
    """The time of an iteration in this fake engine, unless it is given another function: 35 ms and 1.5 ms a token."""
    return float(35.0 + 1.5 * batch.total_num_scheduled_tokens)


@dataclass
class _InFlight:
    batch: SchedulerOutput
    output: ModelRunnerOutput
    scheduled_s: float


class FakeEngine:
    """Drives a scheduler as vLLM's engine core does, with one batch in flight more if scheduling is asynchronous.

    Args:
        scheduler: From `make_scheduler`.
        clock: Moved on by each iteration.
        cost_ms: Time of an iteration.
        worker: Computes the batches.

    Attributes:
        answers: Output tokens of each request so far.
        finished: Ids of requests that have their last token, in order.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: VirtualClock,
        cost_ms: Callable[[SchedulerOutput], float] = fixed_cost_ms,
        worker: FakeWorker | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self.answers: dict[str, list[int]] = {}
        self.finished: list[str] = []
        self._cost_ms = cost_ms
        self._worker = worker or FakeWorker(scheduler.block_size)
        self._depth = 2 if isinstance(scheduler, AsyncScheduler) else 1
        self._in_flight: deque[_InFlight] = deque()
        self._ended_s = clock.now_s
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(scheduler.block_size, sha256)

    def add(
        self,
        request_id: str,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        priority: int = 0,
        stop_token_ids: Sequence[int] = (),
        resumable: bool = False,
        announcement: int = 0,
    ) -> Request:
        """Gives the scheduler a request, which arrives now; or more input, if it is a `resumable` one that is known."""
        params = SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=True,
            stop_token_ids=list(stop_token_ids),
            extra_args={ANNOUNCEMENT: announcement},
        )
        request = Request(
            request_id,
            list(prompt),
            params,
            None,
            arrival_time=self.clock.time(),
            priority=priority,
            block_hasher=self._hasher,
            resumable=resumable,
        )
        self.answers.setdefault(request_id, [])
        self.scheduler.add_request(request)
        return request

    def add_offline(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> Request:
        """Gives the scheduler a line of a batch."""
        return self.add(request_id, prompt, max_tokens, priority=OFFLINE_PRIORITY)

    def cancel(self, request_id: str) -> None:
        """Takes a request back, as when its client has gone."""
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    @property
    def is_busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._in_flight) or bool(self.scheduler.has_requests())

    def step(self) -> SchedulerOutput | None:
        """One turn of the engine: schedules a batch if one may be, and takes in the oldest outputs if they are due.

        Returns:
            The batch that was scheduled.
        """
        batch = None
        if self.scheduler.has_requests():
            batch = self.schedule()
            self._in_flight.append(_InFlight(batch, self._worker.execute(batch), self.clock.now_s))
            if len(self._in_flight) < self._depth:
                return batch
        if self._in_flight:
            self.update()
        return batch

    def schedule(self) -> SchedulerOutput:
        """Schedules a batch."""
        return self.scheduler.schedule()

    def update(self) -> None:
        """Lets the oldest batch in flight come to its end."""
        step = self._in_flight.popleft()
        if step.batch.total_num_scheduled_tokens:
            note = read_stop(step.output)
            share = 1.0 if note is None else note.layer / note.layers
            ends_s = max(self._ended_s, step.scheduled_s) + share * self._cost_ms(step.batch) / 1e3
            self.clock.now_s = max(self.clock.now_s, ends_s)
            self._ended_s = self.clock.now_s
        for outputs in self.scheduler.update_from_output(step.batch, step.output).values():
            for output in outputs.outputs:
                self.answers[output.request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    self.finished.append(output.request_id)

    def run(self, max_steps: int = 10_000) -> None:
        """Goes on until there is nothing left to do.

        Raises:
            RuntimeError: there still is, after so many steps.
        """
        for _ in range(max_steps):
            if not self.is_busy:
                return
            self.step()
        raise RuntimeError(f"not done after {max_steps} steps: {self.scheduler.get_request_counts()} running, waiting")
