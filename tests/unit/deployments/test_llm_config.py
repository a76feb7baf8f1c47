from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conserve.config import load_settings
from conserve.engine.options import Objective, SchedulerOptions
from deployments import llm_config
from deployments.llm_config import build_llm_config


def build(folder: Path, engine: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The engine arguments of an application."""
    (folder / "config.json").write_text("{}")
    args = {"model": {"source": str(folder)}, "engine": {"device": "cpu", **engine}, **settings}
    arguments: dict[str, Any] = build_llm_config(load_settings(args, {})).engine_kwargs
    return arguments


def test_our_scheduler_is_the_default_and_knows_the_objectives(tmp_path: Path) -> None:
    slo = {"ttft_slo_ms": 300, "tbt_slo_ms": 30, "classes": {"fast": {"ttft_slo_ms": 100, "tbt_slo_ms": 10}}}
    arguments = build(tmp_path, {"extra_args": {"additional_config": {"mine": 1}}}, slo=slo)
    assert arguments["scheduler_cls"] == "conserve.engine.scheduler.create_scheduler"
    assert arguments["scheduling_policy"] == "priority"
    assert arguments["additional_config"]["mine"] == 1
    assert SchedulerOptions.from_additional_config(arguments["additional_config"]).objectives == (
        Objective(ttft_slo_ms=100, tbt_slo_ms=10),
        Objective(ttft_slo_ms=300, tbt_slo_ms=30),
    )


def test_stock_is_vllm_s_own_with_priorities(tmp_path: Path) -> None:
    arguments = build(tmp_path, {"mode": "stock"})
    assert arguments["scheduling_policy"] == "priority"
    assert not {"scheduler_cls", "additional_config"} & arguments.keys()


def test_a_model_that_embeds_is_run_by_another_runner(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    args = {"model": {"source": str(tmp_path), "task": "embed"}, "engine": {"device": "cpu", "mode": "stock"}}
    assert build_llm_config(load_settings(args, {})).engine_kwargs["runner"] == "pooling"
    assert "runner" not in build(tmp_path, {"mode": "stock"})


@pytest.mark.parametrize("mode", ["conserve", "stock"])
def test_the_user_s_kv_connector_passes_through(tmp_path: Path, mode: str) -> None:
    connector = {"kv_connector": "Mine", "kv_connector_module_path": "mine", "kv_role": "kv_both"}
    arguments = build(tmp_path, {"mode": mode, "extra_args": {"kv_transfer_config": connector}})
    assert arguments["kv_transfer_config"] == connector


def test_untested_vllm_stops_the_start_unless_the_mode_is_stock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise RuntimeError("vLLM 9.9")

    monkeypatch.setattr(llm_config, "check_version", refuse)
    with pytest.raises(RuntimeError, match=r"vLLM 9\.9"):
        build(tmp_path, {})
    build(tmp_path, {"mode": "stock"})


def test_replicas_are_counted_as_the_settings_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    args = {"model": {"source": str(tmp_path)}, "engine": {"device": "cpu"}, "http": {"finish_requests_s": 33}}
    fixed = build_llm_config(load_settings({**args, "replicas": 2}, {})).deployment_config
    assert (fixed["num_replicas"], fixed["graceful_shutdown_timeout_s"]) == (2, 33)
    scaled = build_llm_config(load_settings({**args, "autoscaling": {"max_replicas": 3}}, {})).deployment_config
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"].max_replicas == 3


def test_spot_replicas_are_another_deployment_of_the_same_engine(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    args = {"model": {"source": str(tmp_path)}, "engine": {"device": "cpu"}, "spot": {"max_replicas": 4}}
    settings = load_settings(args, {})
    usual, spot = build_llm_config(settings), build_llm_config(settings, spot=True)
    assert spot.engine_kwargs == usual.engine_kwargs
    assert spot.deployment_config["name"] == usual.deployment_config["name"] + "--spot"
    assert spot.deployment_config["ray_actor_options"]["resources"] == {"spot": 1}
