"""Which of vLLM's own arguments may be set."""

from __future__ import annotations

from typing import Any

import pytest

from conserve.config import SettingsError, load_settings
from conserve.engine.options import KEY


def load(mode: str, extra_args: dict[str, Any]) -> dict[str, Any]:
    return load_settings({"engine": {"mode": mode, "extra_args": extra_args}}, {}).engine.extra_args


@pytest.mark.parametrize(
    ("argument", "value", "way_out"),
    [
        ("scheduler_cls", "mine.Scheduler", "engine.mode: stock"),
        ("pipeline_parallel_size", 2, "engine.tensor_parallel_size"),
        ("data_parallel_size", 2, "replicas"),
        ("speculative_config", {"method": "ngram"}, "engine.mode: stock"),
        ("enable_chunked_prefill", False, "engine.mode: stock"),
    ],
)
def test_arguments_that_our_scheduler_cannot_bear_are_refused_with_the_way_out(
    argument: str, value: Any, way_out: str
) -> None:
    with pytest.raises(SettingsError, match=r"engine\.extra_args") as caught:
        load("conserve", {argument: value})
    assert argument in str(caught.value)
    assert way_out in str(caught.value)
    assert load("stock", {argument: value}) == {argument: value}


@pytest.mark.parametrize("mode", ["conserve", "stock"])
@pytest.mark.parametrize(
    ("extra_args", "part"),
    [
        ({"scheduling_policy": "fcfs"}, "priority"),
        ({"mode": "stock"}, "engine.mode"),
        ({"additional_config": {KEY: {}, "mine": 1}}, "additional_config.conserve"),
        ({"additional_config": "{}"}, "mapping"),
    ],
)
def test_arguments_that_are_ours_are_refused_in_every_mode(mode: str, extra_args: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        load(mode, extra_args)


@pytest.mark.parametrize("mode", ["conserve", "stock"])
def test_other_arguments_are_the_user_s(mode: str) -> None:
    extra_args = {
        "additional_config": {"mine": {"a": 1}},
        "async_scheduling": True,
        "kv_transfer_config": {"kv_connector": "Mine", "kv_role": "kv_both"},
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "speculative_config": None,
        "enable_chunked_prefill": True,
    }
    assert load(mode, extra_args) == extra_args
