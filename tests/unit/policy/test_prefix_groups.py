from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from conserve.policy.ordering import JobDemand, order_jobs
from conserve.policy.prefix_groups import TOLERANCE, keep_prefixes_together


def job(batch_id: str, expires_at: float, prefix: str = "", priority: int = 0) -> JobDemand:
    return JobDemand(batch_id, "m", 0, expires_at, 1, priority=priority, prefix=prefix)


def names(jobs: list[JobDemand]) -> list[str]:
    return [one.batch_id for one in keep_prefixes_together(jobs)]


def test_batches_that_begin_alike_come_one_after_the_other() -> None:
    assert names([job("a", 100, "p"), job("b", 101, "q"), job("c", 102), job("d", 103, "p")]) == ["a", "d", "b", "c"]


def test_a_batch_without_a_prefix_has_nothing_in_common_with_another() -> None:
    assert names([job("a", 100), job("b", 101, "q"), job("c", 102)]) == ["a", "b", "c"]


def test_priority_goes_before_prefixes() -> None:
    assert names([job("a", 100, "p", 1), job("b", 100, "q"), job("c", 100, "p")]) == ["a", "b", "c"]


def test_a_window_that_ends_much_later_moves_nothing_up() -> None:
    jobs = [job("a", 100, "p"), job("b", 105, "q"), job("c", 111, "p"), job("d", 112, "q"), job("e", 113, "p")]
    assert names(jobs) == ["a", "b", "d", "c", "e"]


@given(st.lists(st.tuples(st.floats(1, 1_000), st.sampled_from(["", "p", "q"]), st.integers(-1, 1))))
def test_nobody_is_passed_over_by_more_than_the_tolerance(found: list[tuple[float, str, int]]) -> None:
    jobs = order_jobs(job(str(number), *one) for number, one in enumerate(found))
    grouped = keep_prefixes_together(jobs)
    assert sorted(grouped, key=jobs.index) == jobs
    for place, one in enumerate(grouped):
        for later in grouped[place + 1 :]:
            assert (-one.priority, one.expires_at * (1 - TOLERANCE / 1.1)) <= (-later.priority, later.expires_at + 1e-6)
    assert keep_prefixes_together([replace(one, prefix="") for one in jobs]) == [
        replace(one, prefix="") for one in jobs
    ]
