from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.prefix_memory import (
    CHARS_PER_TOKEN,
    FIRST_CUT_CHARS,
    HOLDERS,
    LIFETIME_S,
    PrefixMemory,
    measure_prompt,
)


@given(st.integers(0, 50_000), st.integers(0, 5_000), st.integers(0, 5_000))
def test_most_of_what_prompts_have_in_common_is_found(common: int, one: int, other: int) -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    memory.add(measure_prompt(["c" * common + "a" * one]), "r", 0.0)
    found = memory.find(measure_prompt(["c" * common + "b" * other]), 1.0).get("r", 0.0) * CHARS_PER_TOKEN
    assert found <= common
    if common >= 2 * FIRST_CUT_CHARS:
        assert found >= 0.79 * common


def test_another_beginning_is_another_prompt() -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    memory.add(measure_prompt(["x" + "c" * 5_000]), "r", 0.0)
    assert memory.find(measure_prompt(["y" + "c" * 5_000]), 0.0) == {}


def test_who_speaks_is_a_part_of_the_prompt() -> None:
    text = "c" * 1_000
    one, other = measure_prompt(["system", text]), measure_prompt(["user", text])
    assert {cut.digest for cut in one.cuts}.isdisjoint(cut.digest for cut in other.cuts)


def test_memory_is_bounded_and_keeps_what_was_sent_last() -> None:
    memory: PrefixMemory[str] = PrefixMemory(capacity=20)
    prompts = [measure_prompt([f"{number} " + "c" * 400]) for number in range(100)]
    for prompt in prompts:
        memory.add(prompt, "r", 0.0)
    assert len(memory) == 20
    assert memory.find(prompts[-1], 0.0)
    assert not memory.find(prompts[0], 0.0)


def test_only_the_latest_holders_are_kept() -> None:
    memory: PrefixMemory[int] = PrefixMemory()
    prompt = measure_prompt(["c" * 1_000])
    for replica in range(10):
        memory.add(prompt, replica, 0.0)
    assert set(memory.find(prompt, 0.0)) == set(range(10 - HOLDERS, 10))


def test_what_was_not_asked_for_is_forgotten() -> None:
    memory: PrefixMemory[str] = PrefixMemory()
    prompt = measure_prompt(["c" * 1_000])
    memory.add(prompt, "r", 0.0)
    assert memory.find(prompt, LIFETIME_S - 1)
    assert not memory.find(prompt, LIFETIME_S + 1)


def test_short_and_odd_prompts() -> None:
    assert measure_prompt([]).tokens >= 1
    assert measure_prompt(["hello"]).cuts == ()
    assert measure_prompt(["\ud800" * 300]).cuts  # what JSON may hold and UTF-8 does not
    assert measure_prompt([], token_count=500).tokens == 500
