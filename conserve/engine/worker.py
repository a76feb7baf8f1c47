"""Workers that stop a pass between two layers and continue it later, and copy KV blocks to host memory and back.

vLLM takes them by name, as `worker_cls`.

The GPU worker has not been run on a GPU: it was written after the source of vLLM 0.32.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import structlog
from vllm.v1.worker.gpu_worker import Worker

from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.batch_copies import BatchCopies
from conserve.engine.copier import open_copier
from conserve.engine.copy_plan import read_copies
from conserve.engine.kv_memory import count_slots, list_regions, view_blocks
from conserve.engine.safepoint import PassGate, PassStopped, find_layers
from conserve.engine.step_plan import StepPlan, StopNote, attach_stop, read_plan
from conserve.engine.vllm_compat import ModelRunnerOutput, SchedulerOutput
from conserve.engine.vllm_runner_compat import (
    forget_previous_batch,
    get_kv_allocation,
    list_rows,
    run_eagerly,
    wrap_forward,
)

_log = structlog.get_logger(__name__)
EAGER_TOKENS = 512
"""A stoppable pass of so many tokens runs without compiled code, which has no layers to stop between. vLLM records CUDA
graphs of up to 512 tokens; a larger pass has no launches to save."""


class Safepoints:
    """What our workers add to vLLM's, whose methods `super()` finds behind this class: mypy does not see them there."""

    _gate: PassGate | None = None
    _batch: SchedulerOutput | None = None
    _plan: StepPlan | None = None
    _void_generation = -1
    _stopped_output: ModelRunnerOutput | None = None
    _copies = BatchCopies(None, 1)

    vllm_config: Any
    model_runner: Any
    rank: int

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Loads the model and puts a safepoint before each of its layers."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        parallel = self.vllm_config.parallel_config
        self._copies = BatchCopies(None, parallel.tensor_parallel_size)
        count = self.vllm_config.model_config.get_num_layers(parallel)
        layers = find_layers(self.model_runner.get_model(), count)
        if layers:
            self._gate = PassGate(layers, self.rank, parallel.tensor_parallel_size)
            wrap_forward(self.model_runner, self._begin_pass)

    def watch_arrivals(self, path: str) -> int:
        """Stops passes for what is announced on the `ArrivalBoard` in this file. For `collective_rpc`.

        Returns:
            How many layers have a safepoint: 0 if the layers of the model were not found.
        """
        if self._gate is None or not Path(path).exists():  # another machine's
            return 0
        self._gate.watch(ArrivalBoard(Path(path)))
        return self._gate.layers

    def open_host_pool(self, host_kv_bytes: int) -> int:
        """Takes host memory for KV blocks. For `collective_rpc`, before the first request.

        Args:
            host_kv_bytes: Of all workers of the engine.

        Returns:
            Blocks that it can hold; 0 if it cannot hold any, for a reason that is in the log.

        Raises:
            RuntimeError: there is not so much memory; names the setting.
        """
        parallel, config = self.vllm_config.parallel_config, self.model_runner.kv_cache_config
        slots = count_slots(host_kv_bytes, config, parallel.tensor_parallel_size)
        try:
            regions = list_regions(config, self.vllm_config.cache_config.get_resolved_kv_cache_layout())
        except ValueError as error:
            _log.warning("preempted requests are computed again", reason=str(error))
            return 0
        blocks = view_blocks(get_kv_allocation(self.model_runner), regions, config.num_blocks)
        self._copies = BatchCopies(open_copier(blocks, slots), parallel.tensor_parallel_size)
        return slots

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Computes a batch, or as much of it as there is time for."""
        self._copies.begin(read_copies(scheduler_output))
        plan = read_plan(scheduler_output)
        if plan is None or self._gate is None:
            return super().execute_model(scheduler_output)  # type: ignore[misc]
        is_async = self.vllm_config.scheduler_config.async_scheduling
        if is_async and self._void_generation >= 0 and plan.generation > self._void_generation:
            # Tokens of the batches that were void are in no one's memory.
            forget_previous_batch(self.model_runner)
            self._void_generation = -1
        self._batch, self._plan = scheduler_output, plan
        try:
            return super().execute_model(scheduler_output)  # type: ignore[misc]
        except PassStopped as stop:
            self._void_generation = plan.generation
            output = _answer(scheduler_output, stop.note)
            if is_async:
                self._stopped_output = output
            return output
        finally:
            self._batch = self._plan = None
            self._gate.close()

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Samples from what was computed last; nothing, if it was stopped."""
        output, self._stopped_output = self._stopped_output, None
        if output is None:
            output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        return self._copies.annotate(output)

    def shutdown(self) -> None:
        """Ends the copies, too."""
        self._copies.close()
        super().shutdown()  # type: ignore[misc]

    def _begin_pass(self, tokens: int) -> None:
        """Called before the model's own forward pass, with the tokens of its batch, padding included."""
        plan, gate, batch = self._plan, self._gate, self._batch
        if plan is None or gate is None or batch is None:
            return
        if plan.generation == self._void_generation:
            raise PassStopped(StopNote(plan.step, 0, gate.layers, is_void=True))
        if self._copies.is_missing:
            raise PassStopped(StopNote(plan.step, 0, gate.layers, failed_blocks=self._copies.take_missing()))
        if not plan.is_stoppable and not plan.resumes:
            if plan.kept == 0:
                gate.drop()
            return
        gate.open(plan, partial(list_rows, self.model_runner, batch), tokens)
        if tokens >= EAGER_TOKENS or gate.first_layer or plan.stop_at_layer >= 0:
            run_eagerly()


class SafepointWorker(Safepoints, Worker):
    """For GPUs."""


def _answer(batch: SchedulerOutput, note: StopNote) -> ModelRunnerOutput:
    """The output of a batch in which nothing was sampled."""
    request_ids = [*batch.num_scheduled_tokens]
    output = ModelRunnerOutput(
        req_ids=request_ids, req_id_to_index={request_id: index for index, request_id in enumerate(request_ids)}
    )
    attach_stop(output, note)
    return output
