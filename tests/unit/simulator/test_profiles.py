"""GPU profiles: what they are computed from, and how a measured one takes their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from conserve.policy.latency import IterationShape
from conserve.simulator.engine_costs import make_model
from conserve.simulator.roofline import (
    ProfileError,
    find_profile,
    list_profiles,
    read_assumptions,
    read_gpus,
    read_models,
)
from tests.unit.simulator.clusters import COSTS


def test_every_gpu_and_model_is_there_and_only_the_largest_does_not_fit_the_smallest() -> None:
    refused = []
    for name in list_profiles():
        try:
            find_profile(name)
        except ProfileError:
            refused.append(name)

    assert len(list_profiles()) == 16
    assert refused == ["a100-40g/llama-3.1-70b-tp4"]


def test_every_number_has_a_source() -> None:
    entries = [*read_gpus().values(), *read_models().values(), *read_assumptions().values()]

    assert all(len(entry.source) > 10 for entry in entries)


def test_costs_are_those_of_the_datasheet() -> None:
    costs = find_profile("h100/llama-3.1-8b").costs
    values = {name: assumption.value for name, assumption in read_assumptions().items()}

    flops = 2 * (8.030e9 - 0.525e9) / (989.4e12 * values["matmul_efficiency"])
    weights_s = 2 * 8.030e9 / (3.35e12 * values["memory_efficiency"])
    assert costs.token_ms == pytest.approx(flops * 1e3)
    assert costs.iteration_ms == pytest.approx(weights_s * 1e3 + values["iteration_ms"] + 32 * values["layer_ms"])
    assert costs.block_bytes == 16 * 131_072


def test_a_faster_gpu_is_faster_and_four_are_faster_than_one_would_be() -> None:
    shape = IterationShape().add_decodes(32, 64_000).add_prefill(512, 1_024)

    times = [find_profile(f"{gpu}/llama-3.1-8b").costs.time_ms(shape) for gpu in ("a100-40g", "h100", "h200")]
    large = find_profile("h100/llama-3.1-70b-tp4").costs.time_ms(shape)

    assert times == sorted(times, reverse=True)
    assert times[1] < large < 70.554 / 8.03 * times[1]


def test_a_measured_profile_takes_the_place_of_the_computed_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(make_model(COSTS.model_copy(update={"noise": 0.03})).to_profile().model_dump_json())

    costs = find_profile("h100/llama-3.1-8b", path).costs

    assert costs.token_ms == pytest.approx(COSTS.token_ms, rel=0.03)
    assert costs.iteration_ms == pytest.approx(COSTS.iteration_ms, rel=0.05)
    assert costs.noise == pytest.approx(0.03, rel=0.4)
    assert costs.kv_blocks == find_profile("h100/llama-3.1-8b").costs.kv_blocks


@pytest.mark.parametrize(("content", "what"), [("{}", "coefficients_ms"), ("[1]", "file"), ("{'", "cannot be read")])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)

    with pytest.raises(ProfileError, match=what) as refused:
        find_profile("h100/llama-3.1-8b", path)

    assert str(path) in str(refused.value)


def test_an_unknown_profile_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ProfileError, match=r"h100/llama-3\.1-8b"):
        find_profile("h100/gpt")
