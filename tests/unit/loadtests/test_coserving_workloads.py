"""What the workloads ask of an engine."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtests.coserving.catalog import NAMES, WORKLOADS
from loadtests.coserving.prompts import PromptError, PromptMaker, read_vocabulary
from loadtests.coserving.workloads import Size, Workload
from loadtests.trace_source import TraceSource

PROMPTS = PromptMaker(list(range(17, 5_000)))
GENERATED = TraceSource(None)


def draw(workload: Workload, seed: int = 1, rate_per_s: float = 1.0, duration_s: float = 120.0):  # type: ignore[no-untyped-def]
    return workload.draw_online(GENERATED, PROMPTS, rate_per_s, duration_s, seed)


def test_each_workload_comes_in_two_sizes() -> None:
    assert set(NAMES) == {"chat", "bursty", "pressure", "tide", "interrupt", "prefix"}
    assert set(WORKLOADS) == set(itertools.product(NAMES, ("cpu", "gpu")))


@pytest.mark.parametrize(("name", "size"), list(WORKLOADS))
def test_requests_fit_into_the_engine(name: str, size: Size) -> None:
    workload = WORKLOADS[name, size]
    limit = workload.engine.max_model_len
    assert limit is not None
    offline = list(itertools.islice(workload.draw_offline(PROMPTS, 1), workload.engine.max_num_seqs + 16))
    saturating = list(itertools.islice(workload.draw_saturating(GENERATED, PROMPTS, 1), 100))
    for request in [*offline, *draw(workload), *saturating]:
        assert request.prompt
        assert request.output_tokens >= 1
        assert len(request.prompt) + request.output_tokens <= limit
        assert min(request.prompt) >= 17


@pytest.mark.parametrize("name", NAMES)
def test_online_arrivals_have_the_rate_and_the_seed_decides_them(name: str) -> None:
    workload = WORKLOADS[name, "cpu"]
    requests = draw(workload)
    due_s = [request.due_s for request in requests]
    assert len(requests) == pytest.approx(120, abs=1)
    assert due_s == sorted(due_s)
    assert 0 <= due_s[0] < due_s[-1] < 120
    assert requests == draw(workload) != draw(workload, seed=2)
    assert len({request.prompt for request in requests if len(request.prompt) > 4}) == sum(
        len(request.prompt) > 4 for request in requests
    )


def test_lengths_on_a_cpu_are_an_eighth_of_the_trace() -> None:
    cpu, gpu = (draw(WORKLOADS["chat", size], rate_per_s=50) for size in ("cpu", "gpu"))
    assert np.mean([len(request.prompt) for request in cpu]) == pytest.approx(
        np.mean([len(request.prompt) for request in gpu]) / 8, rel=0.01
    )


def test_the_tide_rises_and_falls_ten_to_one() -> None:
    due_s = [request.due_s for request in draw(WORKLOADS["tide", "cpu"], rate_per_s=100.0)]
    counts = np.histogram(due_s, bins=20, range=(0, 120))[0]
    middle, ends = counts[9:11].mean(), counts[[0, -1]].mean()
    assert middle / ends == pytest.approx(10, rel=0.3)
    assert counts.mean() == pytest.approx(600, rel=0.02)


def test_the_arrivals_end_at_no_arrival() -> None:
    """They would else end in a burst, where they come in bursts."""
    for seed in range(5):
        due_s = [request.due_s for request in draw(WORKLOADS["bursty", "cpu"], rate_per_s=5.0, seed=seed)]
        assert due_s == sorted(due_s)
        assert due_s[0] >= 0
        assert due_s[-1] < 119.999


def test_pressure_comes_in_bursts() -> None:
    chat, pressure = (
        np.diff([request.due_s for request in draw(WORKLOADS[name, "cpu"], rate_per_s=50)])
        for name in ("chat", "pressure")
    )
    assert np.std(chat) / np.mean(chat) < 1.4
    assert np.std(pressure) / np.mean(pressure) > 1.7


def test_pressure_fills_slots_and_blocks() -> None:
    workload = WORKLOADS["pressure", "cpu"]
    later = list(itertools.islice(workload.draw_offline(PROMPTS, 1), 200))[100:]
    mean_tokens = np.mean([len(request.prompt) + request.output_tokens / 2 for request in later])
    kv_bytes_a_token = 30 * 3 * 64 * 2 * 2  # SmolLM2-135M in bfloat16
    kv_tokens = workload.engine.kv_cache_gib * 2**30 / kv_bytes_a_token
    assert 0.75 < workload.engine.max_num_seqs * mean_tokens / kv_tokens < 1.05
    assert workload.offline_in_flight >= 2 * workload.engine.max_num_seqs


def test_the_first_offline_requests_do_not_end_together() -> None:
    workload = WORKLOADS["chat", "cpu"]
    requests = list(itertools.islice(workload.draw_offline(PROMPTS, 1), 64))
    first, later = requests[:6], requests[6:]  # of the 16 sequences, those that usually decode
    assert max(len(request.prompt) for request in first) < min(len(request.prompt) for request in later) / 2
    assert min(request.output_tokens for request in first) < 24
    assert max(request.output_tokens for request in first) > 40
    assert all(1_300 <= len(request.prompt) <= 1_700 and 48 <= request.output_tokens <= 80 for request in later)
    again = list(itertools.islice(workload.draw_offline(PROMPTS, 1), 64))
    assert requests == again
    assert len({request.prompt[:16] for request in requests}) == 64


def test_prefix_groups_come_shuffled_and_share_their_prefix() -> None:
    workload = WORKLOADS["prefix", "cpu"]
    requests = list(itertools.islice(workload.draw_offline(PROMPTS, 1), 64))
    prefixes = [request.prompt[:1_536] for request in requests]
    assert len(set(prefixes)) == 16
    assert sum(one == other for one, other in itertools.pairwise(prefixes)) <= 4
    assert [prefixes.index(prefix) for prefix in prefixes[16:32]] != list(range(16))
    assert len({request.prompt for request in requests}) == 64


def test_prompts_share_what_a_trace_says_they_share() -> None:
    generator = np.random.default_rng(1)
    one = PROMPTS.make_chained(generator, 150, (5, 6, 7), 1 / 8)
    other = PROMPTS.make_chained(generator, 200, (5, 6, 8), 1 / 8)
    assert len(one) == 150
    assert len(other) == 200
    assert one[:128] == other[:128]
    assert one[128:] != other[128:150]


def test_a_context_length_is_needed() -> None:
    chat = WORKLOADS["chat", "cpu"]
    with pytest.raises(ValueError, match=r"chat: engine\.max_model_len must be set"):
        draw(replace(chat, engine=chat.engine.model_copy(update={"max_model_len": None})))


def test_vocabulary_is_without_special_tokens(tmp_path: Path) -> None:
    config = {"vocab_size": 10, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_vocabulary(tmp_path) == [0, 4, 5, 6, 7, 8, 9]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 0, "special": True}, {"id": 9}]}))
    assert read_vocabulary(tmp_path) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("text", [None, "{", "{}", '{"vocab_size": "x"}'])
def test_a_folder_without_a_vocabulary_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(PromptError, match=r"config.json: no vocab_size"):
        read_vocabulary(tmp_path)
