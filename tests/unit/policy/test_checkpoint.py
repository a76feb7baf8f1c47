from __future__ import annotations

from collections.abc import Iterator

import pytest

from conserve.policy.checkpoint import (
    HALF_LIFE_S,
    HORIZON_S,
    MARGIN,
    Coverage,
    LossRate,
    Save,
    choose_saves,
    count_blocks_at_risk,
    count_restorable,
    count_tail_tokens,
    limit_blocks,
    list_drops,
)

VICTIMS = [
    Coverage("next", freed_blocks=4, full_blocks=3, saved_blocks=1),
    Coverage("later", freed_blocks=6, full_blocks=6, saved_blocks=5),
    Coverage("last", freed_blocks=9, full_blocks=8, saved_blocks=2),
]


def test_nothing_is_at_risk_while_there_is_room_and_nobody_was_preempted() -> None:
    assert count_blocks_at_risk(free_blocks=100, burst_blocks=60, wanted_blocks=40, lost_blocks_per_s=0.0) == 0


def test_what_a_burst_lacks_is_at_risk_and_what_preemptions_take() -> None:
    assert count_blocks_at_risk(10, 60, 10, 0.0) == 60 * MARGIN
    assert count_blocks_at_risk(1_000, 0, 0, 4.0) == 4.0 * HORIZON_S * MARGIN


def test_the_rate_of_losses_fades() -> None:
    rate = LossRate()
    assert rate.at(5.0) == 0
    for second in range(1_000):
        rate.observe(float(second), 8)
    assert rate.at(999.0) == pytest.approx(8.0, rel=0.05), "eight blocks a second"
    assert rate.at(999.0 + HALF_LIFE_S) == pytest.approx(rate.at(999.0) / 2)


def test_who_gives_way_first_is_copied_first_and_no_more_than_is_at_risk() -> None:
    assert choose_saves(VICTIMS, at_risk_blocks=0, most_blocks=100) == []
    assert choose_saves(VICTIMS, at_risk_blocks=3, most_blocks=100) == [Save("next", 2)]
    assert choose_saves(VICTIMS, at_risk_blocks=5, most_blocks=100) == [Save("next", 2), Save("later", 1)]
    assert choose_saves(VICTIMS, at_risk_blocks=99, most_blocks=4) == [
        Save("next", 2),
        Save("later", 1),
        Save("last", 1),
    ]
    assert choose_saves(VICTIMS, at_risk_blocks=99, most_blocks=0) == []


def test_a_loss_that_has_faded_is_none() -> None:
    rate = LossRate()
    rate.observe(0.0, 10)
    assert count_blocks_at_risk(1_000, 0, 0, rate.at(0.0)) > 0
    assert count_blocks_at_risk(1_000, 0, 0, rate.at(4 * HALF_LIFE_S)) == 0


def test_no_more_victims_are_looked_at_than_it_takes() -> None:
    looked_at = []

    def look() -> Iterator[Coverage]:
        for victim in VICTIMS:
            looked_at.append(victim.request_id)
            yield victim

    choose_saves(look(), at_risk_blocks=99, most_blocks=1)
    assert "last" not in looked_at


def test_copies_of_those_who_give_way_last_are_given_up_first() -> None:
    last_first = VICTIMS[::-1]
    assert [victim.request_id for victim in list_drops(last_first, "next")] == ["last", "later"]
    assert [victim.request_id for victim in list_drops(last_first, "later")] == ["last"]
    assert [*list_drops(last_first, "last")] == []
    nothing_saved = [victim._replace(saved_blocks=0) for victim in last_first]
    assert [*list_drops(nothing_saved, "next")] == []


def test_copies_take_their_share_of_the_time_and_half_of_it_beside_online_requests() -> None:
    assert limit_blocks(0.1, share=0.1, block_s=0.001, has_online=False) == pytest.approx(10)
    assert limit_blocks(0.1, share=0.1, block_s=0.001, has_online=True) == pytest.approx(5)


def test_all_but_the_last_token_can_come_back() -> None:
    assert count_restorable(saved_blocks=6, cached_blocks=2, tokens=97, block_size=16) == 6
    assert count_restorable(saved_blocks=6, cached_blocks=2, tokens=96, block_size=16) == 5
    assert count_restorable(saved_blocks=1, cached_blocks=2, tokens=97, block_size=16) == 2
    assert count_tail_tokens(saved_tokens=9, blocks=2, tokens=50, block_size=16) == 9
    assert count_tail_tokens(saved_tokens=9, blocks=2, tokens=41, block_size=16) == 8
    assert count_tail_tokens(saved_tokens=9, blocks=2, tokens=33, block_size=16) == 0
