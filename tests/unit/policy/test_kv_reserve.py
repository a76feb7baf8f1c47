from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.kv_reserve import HALF_LIFE_S, IDLE_S, INTERVAL_S, MARGIN, MAX_POOL_SHARE, KvReserve

POOL_BLOCKS = 10_000
MAX_BLOCKS = int(POOL_BLOCKS * MAX_POOL_SHARE)


@pytest.fixture
def reserve() -> KvReserve:
    return KvReserve(POOL_BLOCKS)


def test_nothing_is_kept_free_before_the_first_online_request(reserve: KvReserve) -> None:
    assert reserve.blocks(0.0) == 0
    reserve.observe(1.0, 0)
    assert reserve.blocks(1.0) == 0


def test_requests_of_one_burst_are_added_up(reserve: KvReserve) -> None:
    for step in range(4):
        reserve.observe(100.0 + step * INTERVAL_S / 5, 100)
    assert reserve.blocks(100.0 + INTERVAL_S) == pytest.approx(MARGIN * 400, rel=0.03)


def test_even_traffic_is_not_added_up(reserve: KvReserve) -> None:
    for second in range(600):
        reserve.observe(second * INTERVAL_S, 100)
    assert reserve.blocks(599 * INTERVAL_S) == MARGIN * 100


def test_a_small_burst_does_not_lower_what_a_large_one_left(reserve: KvReserve) -> None:
    reserve.observe(0.0, 800)
    reserve.observe(HALF_LIFE_S, 10)
    assert reserve.blocks(HALF_LIFE_S) == MARGIN * 400
    reserve.observe(HALF_LIFE_S + 2 * INTERVAL_S, 900)
    assert reserve.blocks(HALF_LIFE_S + 2 * INTERVAL_S) == MARGIN * 900


def test_reserve_fades_and_ends(reserve: KvReserve) -> None:
    reserve.observe(50.0, 800)
    assert [reserve.blocks(50.0 + halves * HALF_LIFE_S) for halves in range(3)] == [1000, 500, 250]
    assert reserve.blocks(50.0 + IDLE_S - 0.1) > 0
    assert reserve.blocks(50.0 + IDLE_S) == 0


def test_requests_without_blocks_are_no_traffic(reserve: KvReserve) -> None:
    reserve.observe(0.0, 800)
    reserve.observe(IDLE_S - 1, 0)
    assert reserve.blocks(IDLE_S) == 0


def test_traffic_after_a_pause_counts_from_its_own_size(reserve: KvReserve) -> None:
    reserve.observe(0.0, 2_000)
    reserve.observe(10 * IDLE_S, 8)
    assert reserve.blocks(10 * IDLE_S) == MARGIN * 8


def test_a_large_part_of_the_pool_stays_for_work(reserve: KvReserve) -> None:
    reserve.observe(0.0, POOL_BLOCKS)
    assert reserve.blocks(0.0) == MAX_BLOCKS
    assert KvReserve(3).blocks(0.0) == 0


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 40), st.integers(0, 3_000)), max_size=40),
    wait_s=st.floats(0, IDLE_S - 1e-3),  # at the edge itself the sum of two times may round up to it
)
def test_reserve_covers_the_last_burst_as_far_as_it_has_faded(arrivals: list[tuple[float, int]], wait_s: float) -> None:
    reserve = KvReserve(POOL_BLOCKS)
    now_s = 0.0
    for pause_s, blocks in arrivals:
        now_s += pause_s
        reserve.observe(now_s, blocks)
        if blocks:
            kept = reserve.blocks(now_s)
            assert min(MAX_BLOCKS, blocks) <= kept <= MAX_BLOCKS
            # Left alone it only falls, by half in each half-life.
            later = reserve.blocks(now_s + wait_s)
            assert min(MAX_BLOCKS, blocks * 0.5 ** (wait_s / HALF_LIFE_S)) <= later <= kept


def test_a_burst_is_predicted_whole_also_where_not_all_of_it_is_kept_free() -> None:
    reserve = KvReserve(100)
    assert reserve.predict_burst(0.0) == 0
    reserve.observe(1.0, 80)
    assert reserve.predict_burst(1.0) == 80 * MARGIN
    assert reserve.blocks(1.0) == 100 * MAX_POOL_SHARE
    assert reserve.predict_burst(1.0 + IDLE_S) == 0
