"""Weeks of changing online load: what was admitted is done in time, and little is refused that would have fitted."""

from __future__ import annotations

from loadtests.admission_week import MOST_REFUSED, Weeks, live_through


def test_admitted_batches_are_in_time_and_few_are_refused_without_need() -> None:
    # 24 has three rushes one after the other, worse than anything in the week before.
    outcomes = [live_through(Weeks.make(seed), seed) for seed in (0, 1, 2, 3, 4, 24)]
    for outcome in outcomes:
        assert outcome.admitted > 30
        assert outcome.refused > 10, "there was more than enough room: this proves nothing"
        assert outcome.late == 0
    batches = sum(outcome.batches for outcome in outcomes)
    assert sum(outcome.refused_needlessly for outcome in outcomes) <= MOST_REFUSED * batches


def test_promises_of_what_is_to_be_expected_are_not_all_kept() -> None:
    """The test of the test: with a careless forecast there are batches that are late."""
    late = sum(live_through(Weeks.make(seed), seed, quantile=0.5, promised_share=1.0).late for seed in range(3))
    assert late > 0
