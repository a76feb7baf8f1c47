from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.engine.host_pool import HostPool, Tail


def save(pool: HostPool, request_id: str, hashes: str) -> list[int]:
    """Saves all blocks of a request. Returns the slots that were written to."""
    slots = []
    while (count := pool.join(request_id, hashes)) < len(hashes):
        slots.append(pool.add(request_id, hashes[count]))
    return slots


def test_a_block_has_a_slot_until_its_request_lets_go() -> None:
    pool = HostPool(4)
    slots = save(pool, "a", "xyz")
    assert len(set(slots)) == 3
    assert pool.find_slots("a", 1, 3) == slots[1:]
    assert (pool.count_saved("a"), pool.used_slots, pool.free_slots) == (3, 3, 1)
    assert pool.cut("a", 1) == 2
    assert (pool.count_saved("a"), pool.free_slots) == (1, 3)
    assert pool.cut("a", 0) == 1
    assert pool.request_ids == []


def test_what_requests_share_is_there_once() -> None:
    pool = HostPool(4)
    first = save(pool, "a", "xy")
    assert save(pool, "b", "xyz") == [pool.find_slots("b", 2, 3)[0]]
    assert pool.find_slots("b", 0, 2) == first
    assert pool.cut("a", 0) == 0, "the other one still has it"
    assert pool.cut("b", 0) == 3


def test_without_a_free_slot_there_is_an_error() -> None:
    pool = HostPool(1)
    pool.add("a", "x")
    with pytest.raises(IndexError):
        pool.add("a", "y")


def test_what_comes_after_a_lost_block_is_lost() -> None:
    pool = HostPool(8)
    slots = save(pool, "a", "wxyz")
    save(pool, "b", "wx")
    save(pool, "c", "pq")
    pool.lose({slots[1]})
    assert [pool.count_saved(name) for name in "abc"] == [1, 1, 2]
    assert pool.used_slots == 3
    pool.clear()
    assert pool.free_slots == 8


def test_a_block_that_is_not_full_is_its_request_s_own() -> None:
    pool = HostPool(3)
    save(pool, "a", "xy")
    slot = pool.add_tail("a", 2, 5)
    assert (pool.find_tail("a"), pool.used_slots, pool.free_slots) == (Tail(slot, 2, 5), 3, 0)
    assert pool.has_room_for_tail("a")
    assert not pool.has_room_for_tail("b")
    assert pool.add_tail("a", 2, 9) == slot, "in place of the earlier one"
    pool.lose({slot})
    assert (pool.find_tail("a"), pool.count_saved("a")) == (None, 2)
    pool.add_tail("b", 0, 1)
    assert sorted(pool.request_ids) == ["a", "b"]
    for request_id in "ab":
        pool.release(request_id)
    assert (pool.free_slots, pool.request_ids) == (3, [])


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.integers(0, 6), st.sampled_from(["save", "cut", "lose", "tail", "drop tail"])
        ),
        max_size=60,
    )
)
def test_no_slot_is_leaked_or_given_away_twice(turns: list[tuple[str, int, str]]) -> None:
    pool = HostPool(12)
    for request_id, number, action in turns:
        # Requests a and b share their first three blocks.
        shared = "123" if request_id in "ab" else ""
        hashes = [*shared, *(f"{request_id}{index}" for index in range(4))][:number]
        if action == "save":
            while (count := pool.join(request_id, hashes)) < len(hashes) and pool.free_slots:
                pool.add(request_id, hashes[count])
        elif action == "cut":
            pool.cut(request_id, number)
        elif action == "tail" and pool.has_room_for_tail(request_id):
            pool.add_tail(request_id, number, 1)
        elif action == "drop tail":
            pool.drop_tail(request_id)
        else:
            pool.lose({number})
        names = pool.request_ids
        held = {slot for name in names for slot in pool.find_slots(name, 0, pool.count_saved(name))}
        held |= {tail.slot for name in names if (tail := pool.find_tail(name)) is not None}
        assert pool.used_slots + pool.free_slots == 12
        assert len(held) == pool.used_slots
    pool.clear()
    assert (pool.used_slots, pool.free_slots) == (0, 12)
