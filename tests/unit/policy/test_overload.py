"""Who is let in, and what is learnt from what came of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from conserve.policy.outlook import Outlook
from conserve.policy.overload import (
    LONGEST_RETRY_S,
    PAUSE_S,
    Conditions,
    OverloadGate,
    OverloadLimits,
    Reason,
    Verdict,
)

TTFT_MS, TBT_MS = 1_000.0, 100.0
LIMITS = OverloadLimits(ttft_share=1.0, max_waiting=50)
TOKENS = 200.0
"""Of a prompt: 200 ms and an iteration."""


class Engine:
    """Requests at a gate; the engine does what the test says."""

    def __init__(self, limits: OverloadLimits = LIMITS, *classes: tuple[float, float]) -> None:
        self.gate = OverloadGate(classes or [(TTFT_MS, TBT_MS)], limits)
        self.now_s = 100.0
        self.number = 0
        self.inside: list[int] = []

    def ask(self, tokens: float = TOKENS, priority: int = 0, places: int = 1, **conditions: Any) -> Verdict:
        slots, kv_tokens = conditions.pop("slots", 64), conditions.pop("kv_tokens", math.inf)
        decode_ms = conditions.pop("decode_ms", 0.0)
        outlook = {"iteration_ms": 10.0 + decode_ms * self.gate.running, "prompt_token_ms": 1.0}
        outlook |= {"iteration_tokens": 1e6} | conditions
        found = Conditions(Outlook(**outlook), decode_ms, slots, kv_tokens)
        verdict = self.gate.decide(priority, tokens, places, found, self.now_s)
        if verdict.reason is None:
            self.number += 1
            self.gate.enter(self.number, priority, tokens, places, verdict, self.now_s)
            self.inside.append(self.number)
        return verdict

    def answer(self, after_s: float) -> None:
        """All that wait get their first token."""
        self.now_s += after_s
        for number in self.inside:
            self.gate.note_first(number, self.now_s)

    def end(self, after_s: float = 0.0, count: int | None = None) -> None:
        self.now_s += after_s
        for number in self.inside[:count]:
            self.gate.leave(number, self.now_s)
        del self.inside[:count]


def count_let_in(engine: Engine, asked: int = 100, **conditions: Any) -> int:
    return sum(engine.ask(**conditions).reason is None for _ in range(asked))


def test_requests_that_would_come_late_are_refused_with_the_time_until_they_would_not() -> None:
    engine = Engine()
    assert count_let_in(engine, 4) == 4
    late = engine.ask(tokens=TOKENS * 2)
    assert (late.reason, late.retry_after_s) == (Reason.TTFT, 1)
    assert late.predicted_ms == pytest.approx(4 * TOKENS + 2 * TOKENS + 10, rel=0.01)
    assert engine.ask(tokens=10).reason is None


def test_time_that_passes_computes_prompts() -> None:
    engine = Engine()
    let_in = count_let_in(engine)
    assert let_in == 4
    engine.now_s += TOKENS / 1e3
    assert engine.ask().reason is None
    engine.answer(1.0)
    assert count_let_in(engine) == let_in


def test_an_idle_engine_takes_whatever_comes() -> None:
    engine = Engine()
    assert engine.ask(tokens=1e6, wait_ms=1e6).reason is None


def test_who_is_late_by_his_own_prompt_may_wait_a_little() -> None:
    engine = Engine()
    assert engine.ask().reason is None
    assert engine.ask(tokens=5_000).reason is None
    assert engine.ask(tokens=5_000).reason is Reason.TTFT


def test_a_burst_is_no_overload() -> None:
    engine = Engine(OverloadLimits(ttft_share=1.0, max_waiting=50, grace_s=2.0))
    assert count_let_in(engine, 15) == 15
    # Up to four times the objective.
    assert count_let_in(engine, 30) < 8
    engine.end(10.0)
    # Calm for long enough: this is another burst.
    assert count_let_in(engine, 15) == 15


def test_what_lasts_is_an_overload() -> None:
    engine = Engine(OverloadLimits(ttft_share=1.0, max_waiting=50, grace_s=2.0))
    for _ in range(3):
        assert count_let_in(engine, 6) == 6
        engine.end(0.9)
    assert count_let_in(engine, 6) == count_let_in(Engine(), 6)


def test_offline_work_alone_refuses_nobody() -> None:
    engine = Engine()
    assert engine.ask().reason is None
    engine.answer(0.2)
    assert engine.ask(wait_ms=1e5).reason is None


def test_no_more_wait_than_may_wait_whatever_the_objectives() -> None:
    engine = Engine(OverloadLimits(1.0, max_waiting=3, by_objectives=False))
    assert [engine.ask(tokens=1e6).reason for _ in range(5)] == [None, None, None, Reason.QUEUE, Reason.QUEUE]
    engine.answer(1.0)
    assert engine.ask().reason is None


def test_a_wait_for_a_slot_is_as_long_as_requests_have_held_theirs() -> None:
    engine = Engine()
    assert count_let_in(engine, 4, slots=4) == 4
    engine.answer(0.1)
    engine.end(8.0, count=2)
    assert count_let_in(engine, 2, slots=4) == 2
    engine.answer(0.1)
    # One of four ends every two seconds.
    refused = engine.ask(slots=4)
    assert (refused.reason, refused.retry_after_s) == (Reason.TTFT, 2)
    assert engine.ask(slots=5).reason is None


def test_several_answers_take_several_slots_but_no_more_than_there_are() -> None:
    engine = Engine()
    engine.ask(places=4, slots=4)
    engine.answer(0.1)
    engine.end(8.0)
    assert engine.ask(places=100, slots=4).reason is None
    engine.answer(0.1)
    assert engine.ask(slots=4).reason is Reason.TTFT


def test_a_wait_for_memory_counts_likewise() -> None:
    engine = Engine()
    count_let_in(engine, 4)
    engine.answer(0.1)
    engine.end(8.0, count=1)
    full: dict[str, Any] = {"kv_tokens": 4_000, "free_kv_tokens": 100}
    # A third of 3,900 tokens comes free every 2.7 s.
    assert engine.ask(tokens=150, **full).reason is None
    refused = engine.ask(tokens=1_400, **full)
    assert refused.reason is Reason.TTFT
    assert refused.retry_after_s >= 2


def test_so_many_decode_that_tokens_come_in_time() -> None:
    engine = Engine()
    # 10 ms and 5 ms each: 16 in 90 ms, less what prompts take of the time.
    for _ in range(40):
        engine.ask(tokens=1, decode_ms=5.0)
        engine.answer(0.01)
    assert 14 <= engine.gate.running <= 16
    refused = engine.ask(tokens=1, decode_ms=5.0)
    assert refused.reason is Reason.TBT


def test_tokens_that_come_later_than_predicted_leave_room_for_fewer() -> None:
    before, after = Engine(), Engine()
    for engine, gap_ms in ((before, 60.0), (after, 150.0)):
        for _ in range(30):
            for _ in range(20):
                engine.ask(tokens=1, decode_ms=5.0)
                engine.answer(0.01)
            engine.gate.note_gaps(gap_ms, engine.now_s, 100)
            engine.end(1.0, count=1)
    assert after.gate.running < before.gate.running


def test_gaps_that_prompts_fill_up_to_the_objective_leave_room_for_as_many() -> None:
    running = []
    for gap_ms in (0.6 * TBT_MS, 1.05 * TBT_MS):
        engine = Engine()
        for _ in range(30):
            for _ in range(20):
                engine.ask(tokens=1, decode_ms=5.0)
                engine.answer(0.01)
            engine.gate.note_gaps(gap_ms, engine.now_s, 100)
            engine.end(1.0, count=1)
        running.append(engine.gate.running)
    assert running[0] == running[1]


def test_an_objective_that_cannot_be_kept_sends_not_everybody_away() -> None:
    engine = Engine()
    for _ in range(20):
        engine.ask(tokens=1, decode_ms=200.0)
        engine.answer(0.01)
    assert engine.gate.running == 64 / 8


def test_a_class_that_goes_first_does_not_wait_for_the_others() -> None:
    engine = Engine(LIMITS, (TTFT_MS, TBT_MS), (10 * TTFT_MS, 10 * TBT_MS))
    assert sum(engine.ask(priority=1).reason is None for _ in range(40)) == 40
    assert engine.ask(priority=0).reason is None
    assert count_let_in(engine) == 3


def test_the_strictest_objective_in_flight_decides() -> None:
    engine = Engine(LIMITS, (TTFT_MS, TBT_MS), (TTFT_MS, 10 * TBT_MS))
    for _ in range(40):
        engine.ask(tokens=1, priority=1, decode_ms=5.0)
        engine.answer(0.01)
    assert engine.gate.running == 40
    assert engine.ask(tokens=1, priority=0, decode_ms=5.0).reason is Reason.TBT


def test_predictions_that_were_too_good_are_corrected_and_uncorrected() -> None:
    engine = Engine()
    first = count_let_in(engine)
    for _ in range(40):
        count_let_in(engine)
        engine.answer(2.0)
        engine.end()
    assert (worst := count_let_in(engine)) < first
    for _ in range(600):
        count_let_in(engine)
        engine.answer(0.1)
        engine.end()
    assert count_let_in(engine) > worst


def test_who_ends_or_answers_twice_or_was_never_there_counts_once() -> None:
    engine = Engine()
    engine.ask()
    for number in (1, 1, 2):
        engine.gate.note_first(number, engine.now_s)
    assert (engine.gate.running, engine.gate.waiting) == (1, 0)
    for number in (1, 1, 2):
        engine.gate.leave(number, engine.now_s)
    assert (engine.gate.running, engine.gate.waiting) == (0, 0)
    engine.ask()
    engine.gate.leave(2, engine.now_s)
    assert engine.gate.waiting == 0


def test_offline_work_is_to_stay_away_while_requests_are_refused() -> None:
    engine = Engine()
    assert not engine.gate.is_overloaded(engine.now_s)
    count_let_in(engine)
    assert engine.gate.is_overloaded(engine.now_s + PAUSE_S)
    assert not engine.gate.is_overloaded(engine.now_s + 1.1 * PAUSE_S)


def test_nobody_is_sent_away_for_longer_than_clients_wait() -> None:
    engine = Engine()
    assert engine.ask(tokens=1e7).reason is None
    assert engine.ask().retry_after_s == LONGEST_RETRY_S
