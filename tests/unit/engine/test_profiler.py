from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conserve.config import EngineSettings
from conserve.engine import profiler
from conserve.engine.page import Counters, Knobs
from conserve.engine.profile_store import ProfileKey, load_profile, save_profile
from conserve.engine.profiler import Burst, ProfileError, design_round, drive, fetch_profile, make_profile
from conserve.policy.latency import IterationShape, LatencyModel

KEY = ProfileKey(
    vllm="0",
    model="tiny",
    dtype="float32",
    quantization=None,
    kv_cache_dtype="auto",
    block_size=16,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    tensor_parallel_size=1,
    pipeline_parallel_size=1,
    enforce_eager=True,
    async_scheduling=False,
    attention_backend=None,
    hardware="none",
)


class FakeEngine:
    """Gives one token to each request per turn of the event loop, or none at all when `stuck`."""

    def __init__(self, folder: Path | None = None, *, stuck: bool = False, failure: Exception | None = None) -> None:
        self.folder = folder
        self.failure = failure
        self.stuck = stuck
        self.requests: list[tuple[int, int]] = []
        self.most_running = 0
        self.decoding = 0
        self.decoding_at_arrival: list[int] = []
        self.running = 0
        self.closed = False
        self.knobs = Knobs()
        self.model = LatencyModel()

    async def generate(self, prompt: Sequence[int], max_tokens: int, *, online: bool) -> AsyncGenerator[int, None]:
        self.requests.append((len(prompt), max_tokens))
        self.decoding_at_arrival.append(self.decoding)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        decodes = False
        try:
            if self.failure is not None:
                raise self.failure
            if self.stuck:
                await asyncio.Event().wait()
            self.model.observe(IterationShape().add_prefill(len(prompt), 0), 40 + len(prompt))
            for step in range(max_tokens):
                await asyncio.sleep(0)
                yield 1
                if step == 0:
                    self.decoding += 1
                    decodes = True
                shape = IterationShape()
                for _ in range(self.decoding):
                    shape = shape.add_decode(len(prompt))
                self.model.observe(shape, 40 + self.decoding)
        finally:
            self.running -= 1
            self.decoding -= decodes
        if self.knobs.save_profile and self.folder is not None:
            save_profile(self.folder, KEY, self.model.to_profile())

    def set_knobs(self, knobs: Knobs) -> None:
        self.knobs = knobs

    def counters(self) -> Counters:
        return Counters(iterations=7)

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def quick_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "STORE_TIMEOUT_S", 0.1)


@pytest.mark.parametrize(("seqs", "tokens", "context"), [(16, 512, 4000), (1, 16, 53), (256, 8192, 2037), (6, 200, 60)])
def test_a_round_reaches_the_ends_of_an_engine(seqs: int, tokens: int, context: int) -> None:
    bursts = design_round(seqs, tokens, context, seed=0)
    assert {1, seqs} <= {burst.streams for burst in bursts}
    longest = max(length for burst in bursts for length in burst.prompts)
    assert longest == min(tokens, context) or context < tokens
    assert context / 2 < max(longest, *(burst.context for burst in bursts)) <= context
    assert all(1 <= length <= min(tokens, context) for burst in bursts for length in burst.prompts)
    assert any(burst.streams and burst.prompts for burst in bursts)
    assert all(burst.streams * burst.context <= max(2048, 2 * tokens) or burst.context <= 16 for burst in bursts)


def test_rounds_differ_and_can_be_repeated() -> None:
    assert design_round(8, 512, 2000, seed=1) == design_round(8, 512, 2000, seed=1)
    assert design_round(8, 512, 2000, seed=1) != design_round(8, 512, 2000, seed=2)


async def test_prompts_arrive_when_all_streams_decode() -> None:
    engine = FakeEngine()
    shares: list[float] = []
    bursts = [Burst(streams=3, context=20, prompts=(7, 9)), Burst(prompts=(30,))]
    await drive(engine, bursts, 30, shares.append)  # type: ignore[arg-type]
    assert engine.requests == [(20, profiler.DECODE_STEPS)] * 3 + [(7, 1), (9, 1), (30, 1)]
    assert engine.decoding_at_arrival[3:] == [3, 3, 0]
    assert engine.most_running == 5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


async def test_requests_are_cancelled_when_the_time_is_up() -> None:
    engine = FakeEngine(stuck=True)
    shares: list[float] = []
    await drive(engine, [Burst(prompts=(5, 5)), Burst(streams=1)], 0.05, shares.append)  # type: ignore[arg-type]
    assert engine.requests == [(5, 1), (5, 1)]
    assert engine.running == 0
    assert shares == [1.0]


@pytest.mark.usefixtures("quick_store")
async def test_an_engine_that_stores_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="after 7 iterations"):
        await fetch_profile(FakeEngine(), tmp_path)  # type: ignore[arg-type]


def start_fake(
    monkeypatch: pytest.MonkeyPatch, *, stores: bool = True, failure: Exception | None = None
) -> list[FakeEngine]:
    engines: list[FakeEngine] = []

    class Starter:
        @classmethod
        async def start(cls, config: Any) -> FakeEngine:
            assert config.engine.mode == "conserve"
            assert not list(config.profile_dir.iterdir())
            engines.append(FakeEngine(config.profile_dir if stores else None, failure=failure))
            return engines[-1]

    monkeypatch.setattr(profiler, "DirectEngine", Starter)
    return engines


def test_a_profile_is_made_and_replaces_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = start_fake(monkeypatch)
    settings = EngineSettings(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=128, mode="stock")
    folder = tmp_path / "profiles"
    for _ in range(2):
        path, stored = make_profile("tiny", settings, folder, lambda share: None)
        assert load_profile(folder, KEY) == stored.profile
        assert [file.name for file in folder.iterdir()] == [path.name]
    assert all(engine.closed for engine in engines)
    assert stored.profile.coefficients_ms["iteration"] == pytest.approx(40, rel=0.1)


@pytest.mark.usefixtures("quick_store")
def test_a_failure_closes_the_engine_and_keeps_the_earlier_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = start_fake(monkeypatch, stores=False)
    (tmp_path / "earlier.json").write_text("{}")
    with pytest.raises(ProfileError):
        make_profile("tiny", EngineSettings(max_num_seqs=2, max_model_len=64), tmp_path, lambda share: None)
    assert engines[0].closed
    assert [file.name for file in tmp_path.iterdir()] == ["earlier.json"]


def test_an_engine_that_fails_is_one_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = start_fake(monkeypatch, failure=KeyError("gone"))
    with pytest.raises(ProfileError, match=r"the engine failed: KeyError: 'gone'"):
        make_profile("tiny", EngineSettings(max_num_seqs=2, max_model_len=64), tmp_path, lambda share: None)
    assert engines[0].closed
