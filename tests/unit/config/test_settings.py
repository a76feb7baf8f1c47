from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from conserve.config import Settings, SettingsError, load_settings
from conserve.jobs.window import parse_window


def test_defaults_hold() -> None:
    settings = load_settings({}, {})
    assert settings.model.served_name == "smollm2-135m-instruct"
    assert settings.state_dir.is_absolute()
    assert settings.files_url == str(settings.state_dir / "files")


def test_requests_may_be_tried_again_for_as_long_as_the_usual_window() -> None:
    assert load_settings({}, {}).jobs.max_retry_time_s >= parse_window("24h", 86_400)


def test_environment_wins_over_file() -> None:
    environ = {"CONSERVE_REPLICAS": "3", "CONSERVE_JOBS__REDIS_URL": "redis://a:1/0", "CONSERVE_STATE_DIR": "/tmp/s"}
    settings = load_settings({"replicas": 2, "jobs": {"max_attempts": 2}}, environ)
    assert (settings.replicas, settings.jobs.redis_url, settings.jobs.max_attempts) == (3, "redis://a:1/0", 2)
    assert settings.state_dir == Path("/tmp/s")


def test_text_setting_that_looks_like_a_number_stays_text() -> None:
    assert load_settings({}, {"CONSERVE_ENGINE__CPU_THREADS_BIND": "0"}).engine.cpu_threads_bind == "0"


def test_structured_setting_from_environment() -> None:
    settings = load_settings({}, {"CONSERVE_ENGINE__EXTRA_ARGS": "{seed: 7}"})
    assert settings.engine.extra_args == {"seed": 7}


@pytest.mark.parametrize(
    ("args", "environ", "parts"),
    [
        ({"jobs": {"redis_urll": "x"}}, {}, ["jobs.redis_urll", "no such setting", "jobs.redis_url"]),
        ({"replicas": 0}, {}, ["replicas", "greater than or equal to 1", "0"]),
        ({"jobs": {"redis_url": "http://x"}}, {}, ["jobs.redis_url", "redis://", "'http://x'"]),
        ({"jobs": {"retry_delay_s": 61}}, {}, ["jobs", "retry_delay_s", "max_retry_delay_s"]),
        ({"jobs": {"journal_tokens": -1}}, {}, ["jobs.journal_tokens", "greater than or equal to 0"]),
        ({"jobs": {"journal_tokens": 10_000}}, {}, ["jobs.journal_tokens", "4096"]),
        ({"jobs": {"journal_period_s": -2}}, {}, ["jobs.journal_period_s", "greater than or equal to 0"]),
        ({"harvest": {"open_at_kv_usage": 0.9}}, {}, ["harvest", "open_at_kv_usage", "less than"]),
        ({"harvest": {"allotment_ttl_ms": 300}}, {}, ["harvest", "allotment_ttl_ms", "twice"]),
        ({"engine": {"extra_args": {"scheduling_policy": "fcfs"}}}, {}, ["engine.extra_args", "scheduling_policy"]),
        ({"engine": {"extra_args": {"max_num_seqs": 4}}}, {}, ["engine.extra_args", "engine.max_num_seqs"]),
        ({"engine": {"device": "tpu"}}, {}, ["engine.device", "'cpu'", "'tpu'"]),
        ({"engine": {"cpu_threads_bind": "all"}}, {}, ["engine.cpu_threads_bind", "'all'"]),
        ({"http": {"max_queued_requests": 0}}, {}, ["http.max_queued_requests", "equal to 1", "(it is 0)"]),
        ({"http": {"max_queued_requests": -1}}, {}, ["http.max_queued_requests", "equal to 1", "(it is -1)"]),
        ({"requests": {"media_domains": ["10.0.0.1"]}}, {}, ["requests.media_domains", "no host name"]),
        ({"requests": {"media_domains": ["*.org"]}}, {}, ["requests.media_domains", "no host name"]),
        ({"overload": {"ttft_share": 0}}, {}, ["overload.ttft_share", "greater than 0"]),
        ({"overload": {"max_waiting_requests": 0}}, {}, ["overload.max_waiting_requests", "equal to 1"]),
        (
            {"engine": {"extra_args": {"allowed_media_domains": []}}},
            {},
            ["engine.extra_args", "requests.media_domains"],
        ),
        ({"engine": {"extra_args": {"allowed_local_media_path": "/"}}}, {}, ["engine.extra_args", "name no files"]),
        ({"model": {"task": "embed"}}, {}, ["model.task", "engine.mode: stock"]),
        ({"jobs": {"input_files_kept_s": 60}}, {}, ["jobs.input_files_kept_s", "3600"]),
        ({"jobs": {"admission": "maybe"}}, {}, ["jobs.admission", "'refuse'", "'maybe'"]),
        ({"jobs": {"admission": True}}, {}, ["jobs.admission", "'off'"]),
        ({"jobs": {"forecast_quantile": 0.6}}, {}, ["jobs.forecast_quantile", "0.5"]),
        ({"harvest": {"deadline_floor": 1.5}}, {}, ["harvest.deadline_floor", "1"]),
        ({"harvest": {"hand_back_s": 0}}, {}, ["harvest.hand_back_s", "greater than 0"]),
        ({"harvest": {"scale_for_deadlines": -1}}, {}, ["harvest.scale_for_deadlines", "0"]),
        ({"autoscaling": {"max": 3}}, {}, ["autoscaling.max", "no such setting", "autoscaling.max_replicas"]),
        ({"autoscaling": {"target_online_requests": 0}}, {}, ["autoscaling.target_online_requests", "greater than 0"]),
        ({"replicas": 4, "autoscaling": {"max_replicas": 3}}, {}, ["autoscaling.max_replicas", "(3)", "(4)"]),
        ({"spot": {"resource": "a b"}}, {}, ["spot.resource", "pattern"]),
        ({"http": {"fronts": 0}}, {}, ["http.fronts", "1"]),
        ({"http": {"finish_requests_s": 0}}, {}, ["http.finish_requests_s", "1"]),
        ({"engine": {"mode": "fast"}}, {}, ["engine.mode", "'conserve'", "'fast'"]),
        ({"slo": {"ttft_slo_ms": 0}}, {}, ["slo.ttft_slo_ms", "greater than 0"]),
        ({"slo": {"tbt_slo_ms": ".inf"}}, {}, ["slo.tbt_slo_ms", "'.inf'"]),
        ({"slo": {"tbt_slo_ms": float("inf")}}, {}, ["slo.tbt_slo_ms", "3600000"]),
        ({"slo": {"classes": {"fast": {"ttft_slo_ms": 9}}}}, {}, ["slo.classes.fast.tbt_slo_ms", "required"]),
        ({}, {"CONSERVE_REPLICA": "2"}, ["CONSERVE_REPLICA", "no such setting", "CONSERVE_REPLICAS"]),
        ({}, {"CONSERVE_REPLICAS": "many"}, ["replicas", "integer", "'many'"]),
    ],
)
def test_wrong_setting_is_refused_by_name(args: dict[str, Any], environ: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(args, environ)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["off", "'off'", "warn"])
def test_admission_is_what_is_written_whatever_yaml_makes_of_it(text: str) -> None:
    settings = load_settings(yaml.safe_load(f"jobs: {{admission: {text}}}"), {})
    assert settings.jobs.admission == text.strip("'")
    assert load_settings({}, {"CONSERVE_JOBS__ADMISSION": text}).jobs.admission == text.strip("'")


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environ = {"CONSERVE_URL": "http://x", "CONSERVE_TEST_REDIS_URL": "redis://x", "CONSERVE_CACHE": "/c"}
    environ["CONSERVE_TRACES"] = "/t"
    assert load_settings({}, environ) == load_settings({}, {})


def test_settings_survive_the_way_through_a_serve_configuration() -> None:
    slo = {"tbt_slo_ms": 50, "classes": {"fast": {"ttft_slo_ms": 99.5, "tbt_slo_ms": 20}}}
    settings = load_settings({"replicas": 2, "slo": slo, "engine": {"extra_args": {"seed": 1}}}, {})
    assert settings.slo.classes["fast"].ttft_slo_ms == 99.5
    assert Settings.model_validate(settings.to_args()) == settings


def test_with_redis_url_changes_nothing_else() -> None:
    settings = load_settings({"jobs": {"max_attempts": 2}}, {})
    changed = settings.with_redis_url("unix:///s")
    assert changed.jobs.redis_url == "unix:///s"
    assert changed.with_redis_url("embedded") == settings
