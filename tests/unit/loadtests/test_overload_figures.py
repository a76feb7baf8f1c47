"""Figures of a load beyond capacity, and what is taken for a fault of it."""

from __future__ import annotations

import pytest

from loadtests.chat_record import ChatRecord
from loadtests.overload_figures import (
    Objectives,
    OfflineSample,
    OverloadPhase,
    OverloadReport,
    count_growth,
    find_return,
    make_phase,
)

OBJECTIVES = Objectives(500.0, 100.0)
SAMPLES = [
    OfflineSample(0.0, 0.0),
    OfflineSample(10.0, 1_000.0),
    OfflineSample(20.0, 1_000.0),
    OfflineSample(25.0, 1_400.0),
]


def answer(intended_s: float, first_s: float = 0.1, gap_s: float = 0.05, error: str | None = None) -> ChatRecord:
    content_s = () if error else (intended_s + first_s, intended_s + first_s + gap_s)
    return ChatRecord(intended_s, intended_s, content_s, intended_s + 1.0, error=error)


def make_report(
    *goodputs: float, offline_back_s: float | None = 1.0, failed: dict[str, int] | None = None
) -> OverloadReport:
    phases = [
        OverloadPhase(
            load=load,
            offered_per_s=load,
            answered_per_s=goodput,
            goodput_per_s=goodput,
            refused_per_s=0.0,
            failed=failed or {},
            ttft_p99_ms=100.0,
            in_time=1.0,
            offline_tokens_per_s=0.0,
        )
        for load, goodput in enumerate(goodputs, 1)
    ]
    return OverloadReport(
        capacity_per_s=1.0,
        refuses=True,
        phase_s=60.0,
        clients=8,
        seed=1,
        ttft_slo_ms=500,
        tbt_slo_ms=100,
        phases=phases,
        offline_back_s=offline_back_s,
    )


@pytest.mark.parametrize(
    ("record", "is_met"),
    [
        (answer(0.0), True),
        (answer(0.0, first_s=0.6), False),
        (answer(0.0, gap_s=0.2), False),
        (answer(0.0, error="RateLimitError: overloaded"), False),
    ],
)
def test_an_answer_is_in_time_by_its_first_token_and_the_mean_of_the_others(record: ChatRecord, is_met: bool) -> None:
    assert OBJECTIVES.met_by(record) == is_met


def test_only_chats_of_the_window_count() -> None:
    records = [
        answer(9.0),
        answer(10.0),
        answer(12.0, first_s=0.9),
        answer(19.9, error="RateLimitError: x"),
        answer(20.0),
    ]
    phase = make_phase(2.0, records, SAMPLES, OBJECTIVES, (10.0, 20.0))
    assert (phase.offered_per_s, phase.goodput_per_s, phase.refused_per_s) == (0.3, 0.1, 0.1)
    assert phase.answered_per_s == 0.3, "by when the answers ended: 10, 11 and 13 s"
    assert phase.failed == {}
    assert phase.in_time == 0.5
    assert phase.offline_tokens_per_s == 0.0
    assert make_phase(2.0, [], SAMPLES, OBJECTIVES, (0.0, 10.0)).offline_tokens_per_s == 100.0


def test_what_failed_was_let_in_and_came_late() -> None:
    records = [answer(10.0), *(answer(11.0, error="TimeoutError: gone") for _ in range(3))]
    phase = make_phase(2.0, records, SAMPLES, OBJECTIVES, (10.0, 20.0))
    assert phase.failed == {"TimeoutError": 3}
    assert phase.in_time == 0.25
    assert phase.ttft_p99_ms == 1_000.0


def test_tokens_of_a_replica_that_has_gone_are_not_taken_off() -> None:
    samples = [OfflineSample(0.0, 100.0), OfflineSample(1.0, 300.0), OfflineSample(2.0, 50.0), OfflineSample(3.0, 80.0)]
    assert count_growth(samples, 0.0, 3.0) == 230.0


def test_offline_work_is_back_when_it_does_a_part_of_what_it_did() -> None:
    late = [OfflineSample(18.0, 2_000.0), OfflineSample(20.1, 2_100.0)]
    flat = [OfflineSample(20.1 + 0.5 * number, 2_100.0) for number in range(1, 10)]
    assert find_return([*late, *flat], 20.0, 1_000.0) is None, "what was done before is counted later"
    again = [OfflineSample(25.0 + 0.5 * number, 2_100.0 + 200.0 * number) for number in range(1, 6)]
    assert find_return([*late, *flat, *again], 20.0, 1_000.0) == pytest.approx(5.6)
    assert find_return([*late, *flat, *again], 20.0, 9_000.0) is None, "it does far less than before"


def test_what_is_wrong_is_named() -> None:
    assert make_report(5.0, 10.0, 9.0).problems == []
    assert make_report(5.0, 10.0, 8.0).share == 0.8
    (too_little,) = make_report(5.0, 10.0, 8.0).problems
    assert "80%" in too_little
    assert len(make_report(5.0, offline_back_s=None, failed={"EOFError": 2}).problems) == 2
