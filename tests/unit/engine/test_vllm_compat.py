"""Says which name of vLLM is gone when a version moves it."""

from __future__ import annotations

import inspect
import threading
import time

import pytest
import vllm

from conserve.engine import vllm_compat
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, VirtualClock, make_config, make_scheduler
from conserve.engine.vllm_blocks_compat import BLOCKS_RELIED_ON
from conserve.engine.vllm_runner_compat import RUNNER_RELIED_ON


def test_version_is_a_tested_one() -> None:
    assert vllm.__version__.startswith(vllm_compat.TESTED_VERSIONS), (
        f"vLLM {vllm.__version__} is not among {vllm_compat.TESTED_VERSIONS}: run all tests with it, then add it"
    )


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.320.1", "1.0"])
def test_untested_version_is_refused_with_the_way_out(version: str) -> None:
    with pytest.raises(RuntimeError, match=version) as caught:
        vllm_compat.check_version(version)
    for part in (*vllm_compat.TESTED_VERSIONS, "engine.mode: stock"):
        assert part in str(caught.value)


def test_builds_of_a_tested_version_are_taken() -> None:
    for version in ("0.32.0", "0.32.0+cpu", "0.32.1rc1"):
        vllm_compat.check_version(version)


def test_requests_have_what_is_overwritten() -> None:
    for request in (vllm_compat.ChatCompletionRequest, vllm_compat.CompletionRequest):
        for name in ("priority", "stream", "max_tokens", "use_beam_search"):
            assert name in request.model_fields, f"vLLM's {request.__name__} has no field {name} any more"


def test_embedding_requests_have_a_priority() -> None:
    for request in (vllm_compat.EmbeddingChatRequest, vllm_compat.EmbeddingCompletionRequest):
        assert "priority" in request.model_fields, f"vLLM's {request.__name__} has no field priority any more"
        assert "vllm_xargs" not in request.model_fields, f"{request.__name__} could be announced"


def test_stat_logger_is_called_as_we_take_it() -> None:
    parameters = list(inspect.signature(vllm_compat.StatLoggerBase.record).parameters)
    expected = ["self", "scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"]
    assert parameters == expected, f"vLLM calls stat loggers with {parameters} now"


def test_scheduler_stats_have_what_is_read() -> None:
    stats = vllm_compat.SchedulerStats()
    assert hasattr(stats, "kv_cache_usage"), "vLLM's SchedulerStats has no kv_cache_usage any more"


def test_our_stat_logger_is_found_as_a_plugin() -> None:
    from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories

    from conserve.engine.stats import GaugeStatLogger

    assert GaugeStatLogger in load_stat_logger_plugin_factories(), "set-up has not installed the entry point"


def test_busy_waiting_can_be_limited_and_no_message_waits_for_a_lost_call() -> None:
    writer = vllm_compat.MessageQueue(n_reader=1, n_local_reader=1)
    reader = vllm_compat.MessageQueue.create_from_handle(writer.export_handle(), 0)
    condition = reader._spin_condition
    assert condition.busy_loop_s > 0, "vLLM does not spin any more: SleepingMultiprocExecutor can go"
    vllm_compat.limit_busy_waiting(reader, 0.0, 10)
    # As when every wake-up call is lost.
    writer._spin_condition.notify = lambda: None

    def write() -> None:
        for number in range(5):
            time.sleep(0.02)
            writer.enqueue(number)

    thread = threading.Thread(target=write)
    try:
        thread.start()
        assert [reader.dequeue(timeout=60) for _ in range(5)] == list(range(5))
    finally:
        thread.join()
        reader.shutdown()
        writer.shutdown()


def test_executor_calls_our_hook() -> None:
    names = vllm_compat.MultiprocExecutor._init_executor.__code__.co_names
    assert "_post_init_executor" in names, "vLLM's MultiprocExecutor does not call _post_init_executor any more"


def test_the_scheduler_has_what_ours_relies_on() -> None:
    clock = VirtualClock()
    scheduler = make_scheduler("vllm", make_config(EngineSize()))
    request = FakeEngine(scheduler, clock).add("one", [1, 2, 3], 1)
    manager = scheduler.kv_cache_manager
    found = {
        "scheduler": scheduler,
        "kv_cache_manager": manager,
        "block_pool": manager.block_pool,
        "coordinator": manager.coordinator,
        "block_manager": manager.coordinator.single_type_managers[0],
        "request": request,
        "scheduler_config": scheduler.scheduler_config,
    }
    assert found.keys() == vllm_compat.RELIED_ON.keys()
    assert BLOCKS_RELIED_ON.keys() <= found.keys()
    for kind, names in [*vllm_compat.RELIED_ON.items(), *BLOCKS_RELIED_ON.items()]:
        missing = [name for name in names if not hasattr(found[kind], name)]
        assert not missing, f"vLLM's {kind} has no {', '.join(missing)} any more"


def test_the_model_runner_has_what_our_workers_rely_on() -> None:
    from vllm.forward_context import ForwardContext
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    found = {
        "runner": GPUModelRunner,
        "input_batch": InputBatch,
        "request_state": CachedRequestState,
        "forward_context": ForwardContext,
    }
    assert found.keys() == RUNNER_RELIED_ON.keys()
    for kind, names in RUNNER_RELIED_ON.items():
        # Attributes are set in __init__, or are fields of a dataclass.
        known = {*dir(found[kind]), *getattr(found[kind], "__annotations__", ())}
        known |= {*inspect.unwrap(found[kind].__init__).__code__.co_names}
        if kind == "runner":
            known |= {*inspect.unwrap(GPUModelRunner.initialize_kv_cache).__code__.co_names}
        missing = [name for name in names if name not in known]
        assert not missing, f"vLLM's {kind} has no {', '.join(missing)} any more"
    parameters = [*inspect.signature(GPUModelRunner._model_forward).parameters]
    assert parameters[:3] == ["self", "input_ids", "positions"]
    source = inspect.getsource(GPUModelRunner.execute_model)
    assert "_model_forward(" in source, "vLLM's model runner does not call _model_forward any more"
