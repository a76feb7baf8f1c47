"""What is counted of the work, by our scheduler and by the stock one."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from conserve.engine.page import Counters
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, VirtualClock, make_config, make_scheduler

both = pytest.mark.parametrize("kind", ["conserve", "stock"])
Kind = Literal["conserve", "stock"]


def start(kind: Kind, clock: VirtualClock, **sizes: Any) -> FakeEngine:
    return FakeEngine(make_scheduler(kind, make_config(EngineSize(**sizes))), clock)


def counted(engine: FakeEngine) -> Counters:
    counters: Counters = engine.scheduler._counters  # type: ignore[attr-defined]
    return counters


@both
def test_tokens_of_both_kinds_of_request(kind: Kind) -> None:
    clock = VirtualClock()
    with clock.installed():
        engine = start(kind, clock)
        engine.add("online", list(range(30)), 4)
        engine.run()
        assert counted(engine).offline_prefill_tokens == counted(engine).offline_iterations == 0
        engine.add_offline("offline", list(range(100, 150)), 6)
        engine.run()
    assert (counted(engine).offline_prefill_tokens, counted(engine).offline_decode_tokens) == (50, 5)
    assert (counted(engine).iterations, counted(engine).offline_iterations) == (4 + 6, 6)
    assert counted(engine).mixed_iterations == 0


@both
def test_what_the_prefix_cache_has_is_not_computed_but_counted(kind: Kind) -> None:
    clock = VirtualClock()
    with clock.installed():
        engine = start(kind, clock)
        for number in range(2):
            engine.add_offline(f"offline-{number}", list(range(100, 150)), 1)
            engine.run()
    assert counted(engine).offline_cached_tokens == 48
    assert counted(engine).offline_prefill_tokens + counted(engine).offline_cached_tokens == 100


@both
def test_what_a_preemption_loses_is_what_is_computed_again(kind: Kind) -> None:
    clock = VirtualClock()
    with clock.installed():
        # Room for one and a half of them.
        engine = start(kind, clock, kv_blocks=1 + 12, max_model_len=160)
        for number in range(2):
            engine.add_offline(f"offline-{number}", [number, *range(1, 70)], 50)
        engine.run()
    assert counted(engine).offline_preemptions > 0
    assert counted(engine).offline_recomputed_tokens > 0
    computed = counted(engine).offline_prefill_tokens + counted(engine).offline_decode_tokens
    assert computed - counted(engine).offline_recomputed_tokens == 2 * (70 + 49)
