from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.engine.lanes import LaneQueue, is_offline, split_lanes
from conserve.engine.vllm_compat import Request, RequestStatus, SamplingParams
from conserve.policy.priority import OFFLINE_PRIORITY


def make(name: str, priority: int = 0, arrival_s: float = 0.0) -> Request:
    return Request(name, [1, 2, 3], SamplingParams(max_tokens=1), None, arrival_time=arrival_s, priority=priority)


def offline(name: str, arrival_s: float = 0.0) -> Request:
    return make(name, OFFLINE_PRIORITY, arrival_s)


def names(queue: LaneQueue) -> list[str]:
    return [request.request_id for request in queue]


def drain(queue: LaneQueue) -> list[str]:
    taken = []
    while queue:
        request = queue.peek_request()
        assert queue.pop_request() is request
        taken.append(request.request_id)
    return taken


def test_no_class_of_online_requests_is_offline() -> None:
    assert [is_offline(make("x", priority)) for priority in (0, 7, OFFLINE_PRIORITY - 1, OFFLINE_PRIORITY)] == [
        False,
        False,
        False,
        True,
    ]


def test_lanes_are_split_in_order() -> None:
    requests = [offline("a"), make("b"), offline("c"), make("d", 3)]
    online, rest = split_lanes(requests)
    assert (online, rest) == ([requests[1], requests[3]], [requests[0], requests[2]])


def test_online_requests_go_by_priority_then_arrival() -> None:
    queue = LaneQueue()
    for request in (make("late", 0, 3.0), make("low", 1, 1.0), make("early", 0, 2.0)):
        queue.add_request(request)
    assert queue.online[0].request_id == "early"
    assert names(queue) == ["early", "late", "low"]
    assert drain(queue) == ["early", "late", "low"]


def test_offline_requests_are_behind_a_gate_and_behind_all_online_ones() -> None:
    queue = LaneQueue()
    for number in range(4):
        queue.add_request(offline(f"offline-{number}"))
    assert not queue
    assert len(queue) == 4
    for take in (queue.peek_request, queue.pop_request):
        with pytest.raises(IndexError):
            take()
    queue.offer = 2
    queue.add_request(make("online"))
    assert drain(queue) == ["online", "offline-0", "offline-1"]
    assert len(queue) == 2


def test_an_offer_beyond_what_waits_is_no_promise() -> None:
    queue = LaneQueue()
    queue.offer = 3
    assert not queue
    queue.add_request(offline("only"))
    assert drain(queue) == ["only"]
    assert not queue


def test_preempted_offline_requests_go_on_before_new_ones_most_work_first() -> None:
    lost = {"little": 10, "much": 100}
    queue = LaneQueue(lost)
    queue.add_request(offline("new"))
    queue.prepend_requests([offline("much"), offline("little")])
    queue.offer = 3
    assert drain(queue) == ["much", "little", "new"]


def test_one_that_waits_for_a_grammar_goes_to_the_back() -> None:
    queue = LaneQueue()
    queue.add_request(offline("ready"))
    blocked = offline("blocked")
    blocked.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    queue.prepend_request(blocked)
    queue.offer = 2
    assert drain(queue) == ["ready", "blocked"]


def test_requests_are_removed_from_either_lane_and_unknown_ones_ignored() -> None:
    queue = LaneQueue()
    kept = [make("online-kept", 0, 2.0), offline("offline-kept")]
    gone = [make("online-gone", 0, 1.0), offline("offline-gone")]
    for request in (*gone, *kept):
        queue.add_request(request)
    queue.remove_requests([*gone, make("stranger"), offline("stranger")])
    queue.remove_request(make("nobody"))
    assert names(queue) == ["online-kept", "offline-kept"]
    assert queue.peek_request() is kept[0]


@given(st.lists(st.tuples(st.sampled_from(["online", "offline", "pop", "remove"]), st.integers(0, 5)), max_size=60))
def test_it_has_what_was_added_and_neither_taken_nor_removed(steps: list[tuple[str, int]]) -> None:
    queue = LaneQueue()
    there: dict[str, Request] = {}
    for number, (step, value) in enumerate(steps):
        if step in ("online", "offline"):
            request = make(f"{step}-{number}", value if step == "online" else OFFLINE_PRIORITY, float(value))
            queue.add_request(request)
            there[request.request_id] = request
        elif step == "pop":
            queue.offer = value
            if queue:
                taken = queue.pop_request()
                assert not is_offline(taken) or not any(not is_offline(request) for request in there.values())
                del there[taken.request_id]
        elif there:
            request = list(there.values())[value % len(there)]
            queue.remove_request(request)
            del there[request.request_id]
        assert sorted(names(queue)) == sorted(there)
        assert len(queue) == len(there)
