"""Says which name of vLLM is gone when a version moves it."""

from __future__ import annotations

import inspect

import vllm

from conserve.engine import vllm_compat


def test_version_is_a_tested_one() -> None:
    assert vllm.__version__.startswith(vllm_compat.TESTED_VERSIONS), (
        f"vLLM {vllm.__version__} is not among {vllm_compat.TESTED_VERSIONS}: run all tests with it, then add it"
    )


def test_requests_have_what_is_overwritten() -> None:
    for request in (vllm_compat.ChatCompletionRequest, vllm_compat.CompletionRequest):
        for name in ("priority", "stream", "max_tokens"):
            assert name in request.model_fields, f"vLLM's {request.__name__} has no field {name} any more"


def test_stat_logger_is_called_as_we_take_it() -> None:
    parameters = list(inspect.signature(vllm_compat.StatLoggerBase.record).parameters)
    expected = ["self", "scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"]
    assert parameters == expected, f"vLLM calls stat loggers with {parameters} now"


def test_scheduler_stats_have_what_is_read() -> None:
    stats = vllm_compat.SchedulerStats()
    for name in ("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage"):
        assert hasattr(stats, name), f"vLLM's SchedulerStats has no {name} any more"


def test_our_stat_logger_is_found_as_a_plugin() -> None:
    from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories

    from conserve.engine.stats import GaugeStatLogger

    assert GaugeStatLogger in load_stat_logger_plugin_factories(), "set-up has not installed the entry point"
