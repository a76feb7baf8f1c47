from __future__ import annotations

import json

import pytest

from deployments.pulse import PULSE
from deployments.replica_loss import LOST_CODE
from tests.integration.deployments.conftest import Front, read_events
from tests.integration.deployments.light_replica import (
    ARRIVED,
    DIE_ALWAYS,
    DIE_FIRST,
    DIE_MIDDLE,
    PAUSE,
    STOP_FIRST,
    STOP_MIDDLE,
)

# The application starts within the first test; on a busy machine that takes minutes.
pytestmark = pytest.mark.timeout(600)


def test_requests_go_where_the_first_token_comes_soonest(front: Front) -> None:
    one, other = front.replicas[:2]
    front.tell(fast=one)
    front.wait_until(lambda: set(front.ask(10)) == {one}, "slow replicas are sent requests")
    front.tell(fast=other)
    front.wait_until(lambda: set(front.ask(10)) == {other}, "the router does not follow")


def test_requests_that_come_at_once_spread(front: Front) -> None:
    front.tell()
    front.wait_until(lambda: len(front.ask(20)) == len(front.replicas), "not all idle replicas are sent some")
    sent = front.ask_at_once(32)
    # Replicas whose reports are late on a busy machine may get none.
    assert len(sent) >= 2
    assert max(sent.values()) <= 24


def test_without_reports_serve_decides(front: Front) -> None:
    fast = front.replicas[0]
    front.tell(fast=fast)
    front.wait_until(lambda: set(front.ask(10)) == {fast}, "slow replicas are sent requests")
    front.tell(silent=True)
    front.wait_until(lambda: len(front.ask(20)) == len(front.replicas), "stale reports are still believed")
    front.tell()


def test_a_request_whose_replica_dies_before_the_first_token_is_asked_again(front: Front) -> None:
    events = read_events(front.chat(DIE_FIRST))
    assert [event["choices"][0]["delta"].get("content") for event in events][1:] == [" done", None]


@pytest.mark.parametrize("prompt", [DIE_MIDDLE, STOP_MIDDLE])
def test_an_answer_whose_replica_dies_or_stops_ends_with_an_error_event(front: Front, prompt: str) -> None:
    lines = []
    with front.stream(prompt) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            lines += [line] if line else []
            (front.folder / f"{ARRIVED} {prompt}").touch()
    first, last, end = lines
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] in front.replicas
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == (LOST_CODE, "server_error")
    assert end == "data: [DONE]"


def test_a_request_that_kills_two_replicas_is_not_asked_a_third_time(front: Front) -> None:
    response = front.chat(DIE_ALWAYS)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == LOST_CODE
    assert response.headers["retry-after"]


def test_a_request_whose_replica_stops_before_the_first_token_is_asked_again(front: Front) -> None:
    # Those that were killed have to be replaced before, or there is nobody to ask.
    front.wait_until(lambda: len(front.find_answering()) >= 2, "nobody takes the place of those that were killed")
    events = read_events(front.chat(STOP_FIRST))
    assert [event["choices"][0]["delta"].get("content") for event in events][1:] == [" done", None]


@pytest.mark.parametrize("stream", [True, False])
def test_a_replica_that_works_is_waited_for_and_clients_see_no_pulse(front: Front, stream: bool) -> None:
    response = front.chat(PAUSE, stream=stream)
    assert response.status_code == 200
    assert PULSE.strip() not in response.text
    if stream:
        assert [event["choices"][0]["delta"].get("content") for event in read_events(response)][1:] == [" done", None]
