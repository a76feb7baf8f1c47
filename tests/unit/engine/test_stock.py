"""The sizes of the measured stock scheduler can be changed between runs, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conserve.engine.page import EnginePage, Knobs
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, VirtualClock, make_config, make_scheduler

SIZE = EngineSize(max_num_seqs=4, max_num_batched_tokens=256)


@pytest.fixture
def page() -> Iterator[EnginePage]:
    page = EnginePage.create()
    yield page
    page.remove()


@pytest.fixture
def engine(page: EnginePage) -> Iterator[FakeEngine]:
    clock = VirtualClock()
    with clock.installed():
        yield FakeEngine(make_scheduler("stock", make_config(SIZE, page=page.path)), clock)


def add(engine: FakeEngine, count: int, tokens: int = 100) -> None:
    for number in range(count):
        engine.add_offline(f"offline-{number}", [number, *range(1, tokens)], 3)


def first_batch(engine: FakeEngine) -> list[int]:
    batch = engine.step()
    assert batch is not None
    return list(batch.num_scheduled_tokens.values())


def test_without_knobs_it_is_as_it_was_started(engine: FakeEngine) -> None:
    add(engine, 4)
    assert first_batch(engine) == [100, 100, 56]


@pytest.mark.parametrize(
    ("knobs", "batch"),
    [
        (Knobs(max_num_batched_tokens=128), [100, 28]),
        (Knobs(max_num_batched_tokens=1_000), [100, 100, 56]),
        (Knobs(max_num_seqs=2), [100, 100]),
        (Knobs(long_prefill_token_threshold=40), [40, 40, 40, 40]),
    ],
)
def test_knobs_change_its_sizes(engine: FakeEngine, page: EnginePage, knobs: Knobs, batch: list[int]) -> None:
    page.write_knobs(knobs)
    add(engine, 4)
    assert first_batch(engine) == batch
    engine.run()
    page.write_knobs(Knobs())
    for number in range(4):
        engine.add_offline(f"later-{number}", [200 + number, *range(1, 100)], 3)
    assert first_batch(engine) == [100, 100, 56]


def test_sizes_stay_while_requests_run(engine: FakeEngine, page: EnginePage) -> None:
    add(engine, 1)
    engine.step()
    page.write_knobs(Knobs(max_num_seqs=1, max_num_batched_tokens=16))
    engine.add_offline("other", [7, *range(1, 100)], 3)
    assert first_batch(engine) == [1, 100]


def test_it_reports_what_has_ended(engine: FakeEngine, page: EnginePage) -> None:
    add(engine, 1)
    engine.run()
    counters = page.read_counters()
    assert counters.offline_prefill_tokens == 100
    assert counters.iterations == 3
    assert counters.counted_until_s == engine.clock.now_s
