from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.fault_pause import FaultPauses


def test_a_batch_whose_request_fails_waits_and_no_other() -> None:
    pauses = FaultPauses(1.0, 30.0)
    pauses.fail("a", 10.0)
    assert pauses.stops("a", 10.9)
    assert not pauses.stops("a", 11.0)
    assert not pauses.stops("b", 10.0)
    assert not pauses.stops_all(10.0)
    assert (pauses.list_stopped(10.5), pauses.list_stopped(11.0)) == (["a"], [])


def test_pauses_double_up_to_a_limit_until_the_batch_succeeds() -> None:
    pauses = FaultPauses(1.0, 4.0)
    now_s, lengths = 0.0, []
    for _ in range(4):
        pauses.fail("a", now_s)
        start_s = now_s
        while pauses.stops("a", now_s):
            now_s += 0.5
        lengths.append(now_s - start_s)
        pauses.succeed("b")
    assert lengths == [1.0, 2.0, 4.0, 4.0]
    pauses.succeed("a")
    pauses.fail("a", now_s)
    assert not pauses.stops("a", now_s + 1.0)


def test_requests_that_fail_together_are_one_incident() -> None:
    pauses = FaultPauses(1.0, 30.0)
    for moment in range(5):
        pauses.fail("a", 10.0 + moment / 10)
    assert not pauses.stops("a", 11.0)
    pauses.fail("a", 11.0)
    assert pauses.stops("a", 12.9)
    assert not pauses.stops("a", 13.0)


def test_two_batches_that_fail_without_a_success_between_stop_all() -> None:
    pauses = FaultPauses(1.0, 30.0)
    pauses.fail("a", 10.0)
    pauses.succeed("c")
    pauses.fail("b", 10.1)
    assert not pauses.stops_all(10.2)
    pauses.fail("a", 10.3)
    assert pauses.stops_all(11.2)
    assert pauses.stops("c", 11.2)
    assert not pauses.stops_all(11.3)
    pauses.fail("b", 11.4)
    assert pauses.stops_all(13.3), "twice as long"
    pauses.succeed("c")
    pauses.fail("a", 14.0)
    pauses.fail("b", 14.0)
    assert not pauses.stops_all(15.0), "the engine has worked meanwhile"


def test_an_engine_that_has_ended_stops_all() -> None:
    pauses = FaultPauses(1.0, 30.0)
    pauses.fail("a", 10.0, engine_ended=True)
    assert pauses.stops_all(10.9)
    assert pauses.stops("b", 10.9)
    assert not pauses.stops_all(11.0)


def test_old_faults_are_forgotten() -> None:
    pauses = FaultPauses(1.0, 4.0)
    for number in range(1_000):
        pauses.fail(f"b{number}", 10.0 * number)
    assert len(pauses._of_batches) <= 2
    assert not pauses.stops_all(10.0 * 999)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["fail", "end", "succeed"]), st.floats(0, 5))))
def test_no_pause_is_longer_than_the_longest(events: list[tuple[str, str, float]]) -> None:
    pauses, now_s = FaultPauses(1.0, 4.0), 0.0
    for batch_id, event, later_s in events:
        now_s += later_s
        if event == "succeed":
            pauses.succeed(batch_id)
        else:
            pauses.fail(batch_id, now_s, engine_ended=event == "end")
            assert pauses.stops(batch_id, now_s)
    assert not any(pauses.stops(batch_id, now_s + 4.0) for batch_id in "abc")
