"""An engine without Ray: for benchmarks and for profiles of iteration times."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from conserve.config import EngineSettings
from conserve.engine.arguments import (
    Places,
    add_extra_arguments,
    choose_runner,
    make_options,
    settle_places,
    worker_arguments,
)
from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.continuation import keep_records, recording
from conserve.engine.contract import TokenRecord
from conserve.engine.executor import SleepingMultiprocExecutor
from conserve.engine.iteration_log import Iteration, read_iterations
from conserve.engine.options import Objective, SchedulerOptions
from conserve.engine.page import Counters, EnginePage, Knobs
from conserve.engine.pass_control import ANNOUNCEMENT
from conserve.engine.stoppable import NO_SAFEPOINTS, has_safepoints
from conserve.engine.vllm_compat import (
    AsyncEngineArgs,
    AsyncLLM,
    RequestOutputKind,
    SamplingParams,
    VllmConfig,
    is_cpu_platform,
    stop_llm,
)
from conserve.engine.worker_setup import Prepared, prepare_workers
from conserve.policy.priority import OFFLINE_PRIORITY, ONLINE_PRIORITY

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
_SCHEDULERS = {
    "conserve": "conserve.engine.scheduler.create_scheduler",
    "stock": "conserve.engine.stock.create_stock_scheduler",
}


@dataclass(frozen=True)
class DirectEngineConfig:
    """What an engine is started with.

    Attributes:
        model: Folder of the model.
        engine: As in `serve_config.yaml`; `mode` chooses the scheduler.
        objective: Of online requests.
        profile_dir: Folder of stored latency profiles; None starts without.
        log_iterations: Whether our scheduler keeps a log of every iteration; see `DirectEngine.iterations`.
    """

    model: str
    engine: EngineSettings
    objective: Objective
    profile_dir: Path | None = None
    log_iterations: bool = False


class DirectEngine:
    """A vLLM engine in processes of its own. Use `start`."""

    def __init__(
        self,
        llm: AsyncLLM,
        page: EnginePage,
        board: ArrivalBoard,
        processes: Sequence[psutil.Process],
        ttft_slo_ms: float,
    ) -> None:
        self._llm = llm
        self._page = page
        self._board = board
        self._processes = processes
        self._started_with_ms = self._ttft_slo_ms = ttft_slo_ms
        self._ids = itertools.count()

    @classmethod
    async def start(cls, config: DirectEngineConfig) -> DirectEngine:
        """Starts an engine; takes about 40 s on a CPU.

        Raises:
            ValueError: a setting is wrong.
            RuntimeError: the engine did not start.
        """
        page, board = EnginePage.create(), ArrivalBoard.create()
        try:
            before = {child.pid for child in psutil.Process().children(recursive=True)}
            async with asyncio.timeout(START_TIMEOUT_S):
                llm, options = await asyncio.to_thread(_start_llm, config, page, board)
                if options.arrivals is not None:
                    host_kv_bytes = page.read_counters().host_kv_bytes
                    prepared = await prepare_workers(llm.collective_rpc, options.arrivals, int(host_kv_bytes))
                    _check(prepared)
        except BaseException as error:
            _remove_files(page, board)
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"the engine did not start within {START_TIMEOUT_S:g} s") from error
            raise
        keep_records(llm)
        processes = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        return cls(llm, page, board, processes, config.objective.ttft_slo_ms)

    async def generate(
        self, prompt_token_ids: Sequence[int], max_tokens: int, *, online: bool
    ) -> AsyncGenerator[int, None]:
        """Runs one request, greedily and to exactly `max_tokens` tokens.

        Yields:
            The number of new tokens of each output, as it comes. Closing the generator cancels the request.
        """
        async with aclosing(self.generate_tokens(prompt_token_ids, max_tokens, online=online)) as outputs:
            async for token_ids in outputs:
                yield len(token_ids)

    async def generate_tokens(
        self, prompt_token_ids: Sequence[int], max_tokens: int, *, online: bool
    ) -> AsyncGenerator[list[int], None]:
        """Like `generate`, with the new tokens themselves."""
        now_s = time.monotonic()
        announcement = self._board.announce(now_s, now_s + self._ttft_slo_ms / 1e3) if online else 0
        outputs = self._llm.generate(
            {"prompt_token_ids": list(prompt_token_ids)},
            make_sampling_params(max_tokens, announcement),
            request_id=f"direct-{next(self._ids)}",
            priority=ONLINE_PRIORITY if online else OFFLINE_PRIORITY,
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield list(output.outputs[0].token_ids)
        finally:
            self._board.retire(announcement)

    async def answer(self, prompt_token_ids: Sequence[int], max_tokens: int, record: TokenRecord | None = None) -> int:
        """Runs one offline request to exactly `max_tokens` tokens, with one output at its end, as batches are run.

        Args:
            prompt_token_ids: The prompt.
            max_tokens: As it says.
            record: Where its tokens go as they come, and what it goes on after; see `continuation`.

        Returns:
            How many tokens the answer has.
        """
        params = make_sampling_params(max_tokens)
        params.output_kind, params.detokenize = RequestOutputKind.FINAL_ONLY, True
        prompt = {"type": "token", "prompt_token_ids": list(prompt_token_ids)}
        request_id, tokens = f"direct-{next(self._ids)}", 0
        with recording(record):
            outputs = self._llm.generate(prompt, params, request_id=request_id, priority=OFFLINE_PRIORITY)
            async with aclosing(outputs):
                async for output in outputs:
                    tokens = len(output.outputs[0].token_ids)
        return tokens

    def set_knobs(self, knobs: Knobs) -> None:
        """Changes settings of the scheduler from its next step on."""
        self._ttft_slo_ms = knobs.ttft_slo_ms or self._started_with_ms
        self._page.write_knobs(knobs)

    def counters(self) -> Counters:
        """What the scheduler has done since the start."""
        return self._page.read_counters()

    def iterations(self, since_s: float) -> list[Iteration]:
        """The iterations that ended after `since_s` (by `time.monotonic`); none unless they are logged."""
        log = _iteration_log(self._page)
        return read_iterations(log, since_s) if log.exists() else []

    async def reset_prefix_cache(self) -> None:
        """Forgets all cached prefixes.

        Raises:
            RuntimeError: requests are running.
        """
        if not await self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use")

    def peak_memory_bytes(self) -> int:
        """Peak resident memory of the engine's processes, added up."""
        return sum(_peak_memory_bytes(process.pid) for process in self._processes)

    async def close(self) -> None:
        """Stops the engine's processes."""
        try:
            await stop_llm(self._llm, STOP_TIMEOUT_S)
        finally:
            _remove_files(self._page, self._board)


def make_sampling_params(max_tokens: int, announcement: int = 0) -> SamplingParams:
    """Greedy, exactly `max_tokens` tokens, and outputs that carry new tokens only.

    Args:
        max_tokens: As it says.
        announcement: Number of the request's announcement; 0 for none.
    """
    return SamplingParams(
        extra_args={ANNOUNCEMENT: announcement} if announcement else None,
        temperature=0.0,
        max_tokens=max_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def build_engine_args(config: DirectEngineConfig) -> dict[str, Any]:
    """VLLM's engine arguments."""
    engine = config.engine
    options = make_options(engine, (config.objective,))
    args: dict[str, Any] = {
        "model": config.model,
        "scheduling_policy": "priority",
        "scheduler_cls": _SCHEDULERS[engine.mode],
        "additional_config": options.to_additional_config(),
        "tensor_parallel_size": engine.tensor_parallel_size,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "max_model_len": engine.max_model_len,
        "dtype": engine.dtype,
        "disable_log_stats": True,
    }
    if is_cpu_platform():
        args["enforce_eager"] = True
        args["distributed_executor_backend"] = SleepingMultiprocExecutor
        args["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
    else:
        args["gpu_memory_utilization"] = engine.gpu_memory_utilization
    if engine.mode == "conserve":
        args |= worker_arguments(engine, "cpu" if is_cpu_platform() else "gpu")
    return add_extra_arguments(args, engine.extra_args)


def _start_llm(config: DirectEngineConfig, page: EnginePage, board: ArrivalBoard) -> tuple[AsyncLLM, SchedulerOptions]:
    """The engine, and what its scheduler is told."""
    choose_runner(config.engine)
    # The CPU build reads it at start.
    if config.engine.cpu_threads_bind != "auto":
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = config.engine.cpu_threads_bind
    vllm_config: VllmConfig = AsyncEngineArgs(**build_engine_args(config)).create_engine_config()
    log = _iteration_log(page) if config.log_iterations else None
    arrivals = board.path if has_safepoints(vllm_config) else None
    options = settle_places(vllm_config, Places(page.path, arrivals, config.profile_dir, log))
    return AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True), options


def _check(prepared: Prepared) -> None:
    if not prepared.stops:
        raise RuntimeError(f"passes cannot be stopped (engine.preempt: never does without): {NO_SAFEPOINTS}")
    if not prepared.copies:
        raise RuntimeError("KV blocks cannot be copied, as the log says (engine.host_kv_gib: 0 does without)")


def _remove_files(page: EnginePage, board: ArrivalBoard) -> None:
    page.remove()
    board.remove()
    _iteration_log(page).unlink(missing_ok=True)


def _iteration_log(page: EnginePage) -> Path:
    return page.path.with_suffix(".iterations")


def _peak_memory_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
