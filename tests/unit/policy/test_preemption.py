from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.preemption import Victim, choose_victims, count_lost_tokens


def victim(request_id: str, blocks_freed: int = 10, lost_tokens: int = 100) -> Victim:
    return Victim(request_id, blocks_freed, lost_tokens)


@st.composite
def make_candidates(draw: st.DrawFn) -> list[Victim]:
    sizes = st.tuples(st.integers(0, 12), st.integers(0, 30))
    drawn = draw(st.lists(sizes, max_size=8))
    return [Victim(f"r{number}", blocks, lost) for number, (blocks, lost) in enumerate(drawn)]


SHORT = st.integers(-2, 40)


def sum_blocks(candidates: list[Victim], chosen: list[str]) -> int:
    return sum(one.blocks_freed for one in candidates if one.request_id in chosen)


def sum_loss(candidates: list[Victim], chosen: list[str]) -> int:
    return sum(one.lost_tokens for one in candidates if one.request_id in chosen)


def find_least_loss(candidates: list[Victim], slots_short: int, blocks_short: int) -> int:
    return min(
        sum(one.lost_tokens for one in some)
        for size in range(max(slots_short, 0), len(candidates) + 1)
        for some in combinations(candidates, size)
        if sum(one.blocks_freed for one in some) >= blocks_short
    )


def test_nobody_is_preempted_without_need() -> None:
    assert choose_victims([victim("a"), victim("b")], 0, -3) == []
    assert choose_victims([], 2, 5) == []


def test_slots_come_from_those_that_lose_least() -> None:
    candidates = [victim("a", lost_tokens=300), victim("b", lost_tokens=20), victim("c", lost_tokens=100)]
    assert choose_victims(candidates, 2, 0) == ["b", "c"]


def test_blocks_come_from_those_that_lose_least_for_each() -> None:
    small = [victim(f"small {number}", 1, 5) for number in range(10)]
    assert choose_victims([*small, victim("a", 10, 20), victim("b", 10, 21)], 0, 20) == ["a", "b"]


def test_many_small_ones_do_not_go_with_a_large_one_that_is_enough() -> None:
    small = [victim(f"small {number}", 2, 1) for number in range(5)]
    assert choose_victims([*small, victim("large", 100, 60)], 0, 90) == ["large"]


def test_those_that_lose_most_are_spared_first() -> None:
    # All three are taken for 21 blocks, and either of the first two could be spared.
    assert choose_victims([victim("a", 10, 1), victim("b", 10, 2), victim("c", 12, 3)], 0, 21) == ["a", "c"]


def test_nobody_is_spared_whose_slot_is_needed() -> None:
    small = [victim(f"small {number}", 2, 1 + number) for number in range(4)]
    assert choose_victims([*small, victim("large", 100, 300)], 3, 100) == ["small 0", "small 1", "large"]


def test_a_few_blocks_too_few_do_not_cost_the_largest_request() -> None:
    # By loss per block it is "near", then "huge"; "exact" alone loses far less.
    candidates = [victim("near", 9, 1), victim("huge", 100, 1_000), victim("exact", 10, 120)]
    assert choose_victims(candidates, 0, 10) == ["exact"]


def test_who_goes_for_a_slot_counts_for_blocks() -> None:
    candidates = [victim("a", 1, 10), victim("b", 1, 20), victim("c", 50, 30)]
    assert choose_victims(candidates, 2, 40) == ["a", "c"]


def test_among_equals_the_youngest_goes() -> None:
    candidates = [victim("old"), victim("middle"), victim("young")]
    assert choose_victims(candidates, 2, 0) == ["young", "middle"]
    assert choose_victims(candidates, 0, 15) == ["young", "middle"]
    assert choose_victims(candidates, 1, 10) == ["young"]


def test_all_that_helps_goes_when_the_need_cannot_be_met() -> None:
    candidates = [victim("a", 5, 10), victim("shares all its blocks", 0, 1), victim("b", 5, 20)]
    assert choose_victims(candidates, 0, 1_000) == ["a", "b"]
    assert choose_victims(candidates, 9, 0) == ["shares all its blocks", "a", "b"]
    assert choose_victims(candidates, 2, 1_000) == ["a", "b"]


@given(candidates=make_candidates(), slots_short=st.integers(-2, 10), blocks_short=SHORT)
def test_need_is_met_as_far_as_possible_and_nobody_could_be_spared(
    candidates: list[Victim], slots_short: int, blocks_short: int
) -> None:
    chosen = choose_victims(candidates, slots_short, blocks_short)
    assert len(set(chosen)) == len(chosen)
    slots_needed = min(slots_short, len(candidates))
    blocks_needed = min(blocks_short, sum(one.blocks_freed for one in candidates))

    def meets_need(some: list[str]) -> bool:
        return len(some) >= slots_needed and sum_blocks(candidates, some) >= blocks_needed

    assert meets_need(chosen)
    assert not any(meets_need([other for other in chosen if other != spared]) for spared in chosen)


@given(candidates=make_candidates(), slots_short=st.integers(0, 8), blocks_short=st.integers(0, 40))
def test_loss_is_near_the_least_possible(candidates: list[Victim], slots_short: int, blocks_short: int) -> None:
    slots_short = min(slots_short, len(candidates))
    blocks_short = min(blocks_short, sum(one.blocks_freed for one in candidates))
    for slots, blocks, bound in ((slots_short, 0, 1), (0, blocks_short, 2), (slots_short, blocks_short, 3)):
        loss = sum_loss(candidates, choose_victims(candidates, slots, blocks))
        assert loss <= bound * find_least_loss(candidates, slots, blocks)


@pytest.mark.parametrize(
    ("shared_blocks", "stays_cached", "lost_tokens"), [(0, False, 70), (3, False, 22), (0, True, 6), (9, False, 0)]
)
def test_what_stays_in_the_prefix_cache_is_not_lost(shared_blocks: int, stays_cached: bool, lost_tokens: int) -> None:
    assert count_lost_tokens(70, shared_blocks, 16, stays_cached=stays_cached) == lost_tokens
