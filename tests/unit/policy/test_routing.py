from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.outlook import Outlook
from conserve.policy.prefix_memory import Prompt, measure_prompt
from conserve.policy.routing import CHOICES, CHOICES_ALONE, TtftRouter

IDLE = Outlook(iteration_ms=5.0, prompt_token_ms=0.1, iteration_tokens=512, free_slots=64, free_kv_tokens=50_000)
FULL = IDLE._replace(free_kv_tokens=10)
STALE_S = 2.0


def make_router(outlooks: list[Outlook], now_s: float = 0.0, seed: int = 1) -> TtftRouter[int]:
    router: TtftRouter[int] = TtftRouter(STALE_S, random.Random(seed))
    for replica, outlook in enumerate(outlooks):
        router.report(replica, outlook, 0, now_s)
    return router


def send(router: TtftRouter[int], count: int, replicas: int, prompt: Prompt, now_s: float = 0.0) -> Counter[int]:
    """What `count` requests between two reports go to."""
    sent: Counter[int] = Counter()
    for number in range(count):
        chosen = router.choose(range(replicas), prompt, now_s)[0]
        router.note_sent(chosen, f"r{number}", router.next_number(), prompt, now_s)
        sent[chosen] += 1
    return sent


@given(st.lists(st.integers(0, 5_000), min_size=2, max_size=2), st.integers(0, 100))
def test_of_two_the_lower_prediction_is_taken(waits: list[int], seed: int) -> None:
    router = make_router([IDLE._replace(wait_ms=wait) for wait in waits], seed=seed)
    best = router.choose([0, 1], Prompt(100), 0.0)[0]
    assert waits[best] == min(waits)


@given(st.lists(st.booleans(), min_size=2, max_size=8), st.integers(0, 100))
def test_a_replica_under_pressure_is_avoided_as_long_as_there_is_another(pressed: list[bool], seed: int) -> None:
    """Although an arrival would wait longer at the other one."""
    router = make_router([FULL if one else IDLE._replace(wait_ms=1_000.0) for one in pressed], seed=seed)
    chosen = router.choose(range(len(pressed)), Prompt(100), 0.0)[0]
    assert pressed[chosen] == all(pressed)


@given(st.integers(2, 40), st.integers(0, 100))
def test_between_reports_requests_spread(replicas: int, seed: int) -> None:
    router = make_router([IDLE] * replicas, seed=seed)
    sent = send(router, 8 * replicas, replicas, Prompt(400))
    assert max(sent.values()) <= 8 + 4
    assert len(sent) == replicas


def test_the_one_with_good_news_does_not_get_all() -> None:
    """Its queue is predicted to be as long as the others' after some of them."""
    router = make_router([IDLE, *[IDLE._replace(prompt_tokens=4_000)] * 7])
    sent = send(router, 64, 8, Prompt(400))
    assert 8 <= sent[0] <= 30


def test_slots_and_memory_that_were_given_away_since_the_report_are_counted() -> None:
    router = make_router([IDLE._replace(free_slots=2), IDLE._replace(wait_ms=10_000.0)])
    assert send(router, 10, 2, Prompt(10)) == {0: 2, 1: 8}
    router = make_router([IDLE._replace(free_kv_tokens=250), IDLE._replace(wait_ms=10_000.0)])
    assert send(router, 10, 2, Prompt(100)) == {0: 2, 1: 8}


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(1, 1e4))
def test_prediction_grows_with_the_queue(tokens: float, more: float, length: float) -> None:
    router = make_router([IDLE._replace(prompt_tokens=tokens), IDLE._replace(prompt_tokens=tokens + more)])
    shorter, longer = (router.predict_ttft_ms(replica, Prompt(length), 0.0) for replica in (0, 1))
    assert shorter is not None
    assert longer is not None
    assert shorter <= longer


def test_requests_that_a_report_has_are_not_counted_twice() -> None:
    router = make_router([IDLE])
    prompt = Prompt(1_000)
    before = router.predict_ttft_ms(0, prompt, 0.0)
    numbers = [router.next_number() for _ in range(3)]
    for number in numbers:
        router.note_sent(0, f"r{number}", number, prompt, 0.0)
    waiting = router.predict_ttft_ms(0, prompt, 0.0)
    assert before is not None
    assert waiting is not None
    assert waiting == pytest.approx(before + 3 * 1_000 * IDLE.token_ms)
    # The report has two of them, and the third is still to come.
    router.report(0, IDLE._replace(prompt_tokens=2_000), numbers[1], 0.1)
    assert router.predict_ttft_ms(0, prompt, 0.1) == pytest.approx(waiting)
    router.report(0, IDLE, numbers[2], 0.2)
    assert router.predict_ttft_ms(0, prompt, 0.2) == pytest.approx(before)


def test_what_never_arrives_is_not_counted_for_ever() -> None:
    router = make_router([IDLE])
    prompt = Prompt(1_000)
    router.note_sent(0, "lost", router.next_number(), prompt, 0.0)
    router.report(0, IDLE, 0, 0.5)
    assert router.predict_ttft_ms(0, prompt, 0.5) == pytest.approx(2 * 1_000 * IDLE.token_ms, rel=0.05)
    router.report(0, IDLE, 0, STALE_S + 0.1)
    assert router.predict_ttft_ms(0, prompt, STALE_S + 0.1) == pytest.approx(1_000 * IDLE.token_ms, rel=0.1)


def test_prompts_are_computed_meanwhile() -> None:
    router = make_router([IDLE._replace(prompt_tokens=1_000)])
    early, late = (router.predict_ttft_ms(0, Prompt(10), now_s) for now_s in (0.0, 0.05))
    assert early is not None
    assert late == pytest.approx(early - 50.0)


def test_a_request_that_goes_elsewhere_in_the_end_has_left() -> None:
    router = make_router([IDLE, IDLE])
    number, prompt = router.next_number(), Prompt(100)
    router.note_sent(0, "one", number, prompt, 0.0)
    router.note_sent(1, "one", number, prompt, 0.0)
    router.report(0, IDLE, 0, 0.0)
    router.report(1, IDLE, 0, 0.0)
    first, second = (router.predict_ttft_ms(replica, prompt, 0.0) for replica in (0, 1))
    assert first is not None
    assert second is not None
    assert first < second
    router.forget("one")
    router.forget("one")
    router.report(1, IDLE, 0, 0.0)
    assert router.predict_ttft_ms(1, prompt, 0.0) == first


def test_stale_replicas_are_left_out_and_without_reports_nothing_is_chosen() -> None:
    router = make_router([IDLE, IDLE._replace(wait_ms=1_000.0)])
    router.report(1, IDLE._replace(wait_ms=1_000.0), 0, STALE_S + 0.5)
    assert {router.choose([0, 1], Prompt(1), STALE_S + 1)[0] for _ in range(20)} == {1}
    assert router.choose([0, 1], Prompt(1), 2 * STALE_S + 1) == []
    assert router.choose([7], Prompt(1), 0.0) == []


def test_the_last_that_reports_is_not_sent_everything() -> None:
    router = make_router([])
    router.report(3, IDLE, 0, 0.0)
    assert router.choose(range(8), Prompt(1), 0.0) == []


def test_replicas_that_are_gone_are_forgotten() -> None:
    router = make_router([IDLE, IDLE])
    router.note_sent(0, "one", router.next_number(), Prompt(1), 0.0)
    router.retain([1])
    router.forget("one")
    assert router.predict_ttft_ms(0, Prompt(1), 0.0) is None
    assert router.predict_ttft_ms(1, Prompt(1), 0.0) is not None


def test_a_prefix_is_sent_to_who_has_it_until_that_takes_longer() -> None:
    prompt = measure_prompt(["You are a helpful assistant. " * 300])
    router = make_router([IDLE] * 40)
    router.note_sent(17, "first", router.next_number(), prompt, 0.0)
    router.report(17, IDLE, 1, 0.0)
    assert all(router.choose(range(40), prompt, 0.0)[0] == 17 for _ in range(20))
    router.report(17, IDLE._replace(prompt_tokens=20_000), 1, 0.0)
    assert all(router.choose(range(40), prompt, 0.0)[0] != 17 for _ in range(20))
    # Nor is it asked when it is no candidate.
    router.report(17, IDLE, 1, 0.0)
    assert all(router.choose(range(17), prompt, 0.0)[0] != 17 for _ in range(20))


def test_a_replica_can_be_asked_at_once() -> None:
    router: TtftRouter[int] = TtftRouter(0.0, random.Random(1))
    asked = []

    def look(replica: int) -> Outlook:
        asked.append(replica)
        return IDLE._replace(wait_ms=float(replica))

    for _ in range(50):
        ranked = router.choose(range(100), Prompt(100), 5.0, look)
        assert sorted(ranked) == ranked == sorted(asked)
        assert len(ranked) == 2
        asked.clear()


def test_the_only_router_compares_more_replicas() -> None:
    router = make_router([IDLE] * 40)
    assert len(router.choose(range(40), Prompt(1), 0.0)) == CHOICES
    router.is_alone = True
    assert len(router.choose(range(40), Prompt(1), 0.0)) == CHOICES_ALONE
