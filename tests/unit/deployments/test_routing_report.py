from __future__ import annotations

import pickle

import pytest

from conserve.config import load_settings
from conserve.engine.vllm_compat import EmbeddingCompletionRequest
from conserve.policy.outlook import Outlook
from deployments.prompt_text import measure_request
from deployments.ray_compat import ChatCompletionRequest, CompletionRequest
from deployments.routing_config import LEAST_STALE_S, STALE_PERIODS, find_routing
from deployments.routing_report import KEY, MOST_ROUTERS, ROUTER_LIFETIME_S, Mark, Received, RoutingReport

OUTLOOK = Outlook(12.0, 300.0, 5.0, 0.1, 512.0, 7.0, 9_000.0)


def test_a_report_arrives_as_it_was_sent() -> None:
    report = RoutingReport.of(OUTLOOK, 3, {"a": 5})
    read = RoutingReport.read(pickle.loads(pickle.dumps(report.to_stats())))
    assert read == report
    assert read is not None
    assert read.to_outlook() == OUTLOOK


def test_peers_of_other_versions_are_understood() -> None:
    newer = {KEY: {"version": 9, "number": 4, "wait_ms": 2.0, "mood": {"good": True}}, "more": 1}
    report = RoutingReport.read(newer)
    assert report is not None
    assert report.to_outlook() == Outlook(wait_ms=2.0)
    assert RoutingReport.read({KEY: {"number": 1}}) is not None


@pytest.mark.parametrize(
    "stats", [None, {}, {KEY: None}, {KEY: {"wait_ms": 1.0}}, {KEY: {"number": 1, "wait_ms": "?"}}]
)
def test_what_is_no_report_is_none(stats: dict[str, object] | None) -> None:
    assert RoutingReport.read(stats) is None


def test_marks_are_read_back_and_others_passed_over() -> None:
    mark = Mark("ab", 7, 120.0)
    assert Mark.read(mark.to_header()) == mark
    for header in (None, "", "ab:7", "ab:x:1", "a:b:c:d"):
        assert Mark.read(header) is None


def test_the_highest_number_of_each_router_is_known_of_a_limited_number_of_routers() -> None:
    received = Received()
    for number in (1, 3, 2):
        received.note(Mark("first", number, 1.0))
    assert received.numbers == {"first": 3}
    for router in range(MOST_ROUTERS):
        received.note(Mark(str(router), 1, 1.0))
    assert len(received.numbers) == MOST_ROUTERS
    assert "first" not in received.numbers


def test_a_router_that_sends_nothing_is_forgotten() -> None:
    now_s = 0.0
    received = Received(lambda: now_s)
    received.note(Mark("a", 1, 1.0))
    now_s = ROUTER_LIFETIME_S - 1
    received.note(Mark("b", 1, 1.0))
    assert set(received.numbers) == {"a", "b"}
    now_s = ROUTER_LIFETIME_S + 1
    assert set(received.numbers) == {"b"}


def test_prompts_of_all_kinds_of_requests_are_measured() -> None:
    text = "word " * 400
    chat = ChatCompletionRequest(model="m", messages=[{"role": "system", "content": text}])
    parts = ChatCompletionRequest(model="m", messages=[{"role": "system", "content": [{"type": "text", "text": text}]}])
    assert measure_request(chat).tokens == pytest.approx(500, rel=0.05)
    assert measure_request(chat).cuts == measure_request(parts).cuts
    assert measure_request(CompletionRequest(model="m", prompt=text)).tokens == pytest.approx(500, rel=0.05)
    assert measure_request(CompletionRequest(model="m", prompt=[text, text])).tokens == pytest.approx(1_000, rel=0.05)
    assert measure_request(CompletionRequest(model="m", prompt=[1, 2, 3])).tokens == 3
    assert measure_request(CompletionRequest(model="m", prompt=[[1, 2, 3], [4]])).tokens == 4
    assert measure_request(EmbeddingCompletionRequest(model="m", input=text)).tokens == pytest.approx(500, rel=0.05)
    assert measure_request(object()).tokens == 1


def test_serve_s_own_routing_needs_no_options() -> None:
    assert find_routing(load_settings({"routing": {"policy": "serve"}}, {}).routing) == {}
    options = find_routing(load_settings({"routing": {"report_period_ms": 500}}, {}).routing)["request_router_config"]
    assert options["request_routing_stats_period_s"] == 0.5
    assert options["request_router_kwargs"] == {"stale_after_s": LEAST_STALE_S}
    options = find_routing(load_settings({"routing": {"report_period_ms": 9_000}}, {}).routing)["request_router_config"]
    assert options["request_router_kwargs"] == {"stale_after_s": 9.0 * STALE_PERIODS}
