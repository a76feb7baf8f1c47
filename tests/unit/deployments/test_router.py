from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from conserve.policy.outlook import Outlook
from conserve.policy.routing import CHOICES, CHOICES_ALONE
from deployments import pulse
from deployments.ray_compat import ChatCompletionRequest, RawRequestInfo
from deployments.router import TtftRequestRouter
from deployments.routing_report import MARK_HEADER, Mark, RoutingReport

STALE_S = 2.0
IDLE = Outlook(0.0, 0.0, 5.0, 0.1, 512.0, 64.0, 1e6)


class Replica:
    """What the router sees of a running replica."""

    def __init__(self, name: str, stats: dict[str, Any] | None = None) -> None:
        self.replica_id = ReplicaID(name, DeploymentID("m", "app"))
        self.routing_stats = stats or {}
        self.max_ongoing_requests = 8
        self.node_id = "node"
        self.availability_zone = None
        self.multiplexed_model_ids: set[str] = set()

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0

    def report(self, number: int, outlook: Outlook = IDLE, **received: int) -> None:
        self.routing_stats = RoutingReport.of(outlook, number, received).to_stats()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def router(clock: Clock) -> TtftRequestRouter:
    router = TtftRequestRouter(
        deployment_id=DeploymentID("m", "app"),
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state(STALE_S, clock)
    return router


def make_request(number: int = 0, words: int = 500) -> PendingRequest:
    body = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": f"{number} " + "word " * words}])
    return PendingRequest([body, RawRequestInfo()], {}, RequestMetadata(f"r{number}", f"i{number}"))


async def choose(router: TtftRequestRouter, replicas: list[Any], request: PendingRequest) -> Any:
    ranks = await router.choose_replicas(replicas, request)
    return ranks[0]


async def test_the_first_rank_is_one_replica_and_serve_s_own_choice_comes_last(router: TtftRequestRouter) -> None:
    replicas: list[Any] = [Replica("a"), Replica("b"), Replica("c")]
    for replica in replicas:
        replica.report(1, IDLE._replace(wait_ms=0.0 if replica.replica_id.unique_id == "b" else 900.0))
    router.update_replicas(replicas)
    firsts = []
    for number in range(20):
        ranks = await router.choose_replicas(replicas, make_request(number, words=1))
        firsts.append(ranks[0])
        assert all(len(rank) == 1 for rank in ranks[:-1])
        assert len(ranks[-1]) == 2
    chosen = [rank[0].replica_id.unique_id for rank in firsts]
    assert chosen.count("b") > 10


async def test_a_request_carries_its_mark_and_is_counted_until_the_replica_has_it(router: TtftRequestRouter) -> None:
    replicas: list[Any] = [Replica("a"), Replica("b")]
    for replica in replicas:
        replica.report(1)
    router.update_replicas(replicas)
    request = make_request()
    (first,) = await choose(router, replicas, request)
    mark = Mark.read(request.args[1].headers[MARK_HEADER])
    assert mark is not None
    assert mark.prompt_tokens == pytest.approx(625, rel=0.05)
    other = next(replica for replica in replicas if replica is not first)
    for number in range(1, 6):
        # The same replica has it in its next report or not.
        (chosen,) = await choose(router, replicas, make_request(100 + number, words=1))
        router.on_request_completed(chosen.replica_id, f"i{100 + number}")
        assert chosen is other
    first.report(2, IDLE, **{mark.router: mark.number})
    router.update_replicas(replicas)
    other.report(2, IDLE._replace(prompt_tokens=300.0), **{mark.router: 100})
    router.update_replicas(replicas)
    assert await choose(router, replicas, make_request(200, words=1)) == [first]


async def test_a_request_that_another_replica_took_counts_there(router: TtftRequestRouter) -> None:
    replicas: list[Any] = [Replica("a"), Replica("b")]
    for replica in replicas:
        replica.report(1)
    router.update_replicas(replicas)
    request = make_request()
    (first,) = await choose(router, replicas, request)
    other = next(replica for replica in replicas if replica is not first)
    router.on_request_routed(request, other.replica_id, None)
    first.report(2)
    router.update_replicas(replicas)
    assert await choose(router, replicas, make_request(1, words=1)) == [first]


async def test_replicas_whose_queues_are_full_are_left_to_serve(router: TtftRequestRouter) -> None:
    replicas: list[Any] = [Replica("a"), Replica("b")]
    replicas[0].report(1)
    replicas[1].report(1, IDLE._replace(wait_ms=5_000.0))
    router.update_replicas(replicas)
    router.on_new_queue_len_info(replicas[0].replica_id, 8)
    assert await choose(router, replicas, make_request()) == [replicas[1]]
    router.on_new_queue_len_info(replicas[1].replica_id, 8)
    assert len(await choose(router, replicas, make_request(1))) == 2, "Serve's own choice"


async def test_without_reports_serve_chooses(router: TtftRequestRouter, clock: Clock) -> None:
    replicas: list[Any] = [Replica("a"), Replica("b")]
    router.update_replicas(replicas)
    assert len(await choose(router, replicas, make_request())) == 2
    for replica in replicas:
        replica.report(1)
    router.update_replicas(replicas)
    assert len(await choose(router, replicas, make_request())) == 1
    clock.now_s = STALE_S + 0.1
    # The same reports are sent again when anything else has changed.
    router.update_replicas(replicas)
    assert len(await choose(router, replicas, make_request())) == 2


async def test_other_routers_are_known_from_the_reports(router: TtftRequestRouter) -> None:
    replicas: list[Any] = [Replica(name) for name in "abcdefgh"]
    for replica in replicas:
        replica.report(1)
    router.update_replicas(replicas)
    alone = await router.choose_replicas(replicas, make_request())
    replicas[3].report(2, IDLE, another=7)
    router.update_replicas(replicas)
    among_others = await router.choose_replicas(replicas, make_request(1, words=1))
    # The last rank is Serve's.
    assert (len(alone) - 1, len(among_others) - 1) == (CHOICES_ALONE, CHOICES)


async def test_serve_waits_before_it_asks_again(router: TtftRequestRouter) -> None:
    """Otherwise a request that nobody takes would keep the process busy."""
    replicas: list[Any] = [Replica("a")]
    replicas[0].report(1)
    router.update_replicas(replicas)
    request = make_request()
    await router.choose_replicas(replicas, request)
    assert request.routing_context.should_backoff


async def test_requests_for_one_of_several_adapters_are_serve_s(router: TtftRequestRouter) -> None:
    replicas: list[Any] = [Replica("a"), Replica("b")]
    for replica in replicas:
        replica.report(1)
        replica.multiplexed_model_ids = {"adapter"}
    router.update_replicas(replicas)
    request = make_request()
    request.metadata.multiplexed_model_id = "adapter"
    request.args[1].headers[MARK_HEADER] = "client:1:1000000"
    assert len(await choose(router, replicas, request)) == 2
    assert MARK_HEADER not in request.args[1].headers


async def test_calls_that_are_no_requests_are_routed_too(router: TtftRequestRouter) -> None:
    replicas: list[Any] = [Replica("a"), Replica("b")]
    for replica in replicas:
        replica.report(1)
    router.update_replicas(replicas)
    call = PendingRequest([], {}, RequestMetadata("r", "i"))
    assert len(await choose(router, replicas, call)) == 1
    assert len(await choose(router, replicas, PendingRequest([SimpleNamespace()], {}, RequestMetadata("s", "j")))) == 1
    assert await router.choose_replicas(replicas, None)
    await asyncio.sleep(0)


async def test_a_replica_that_has_said_nothing_is_avoided_until_it_reports(
    router: TtftRequestRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SILENT", silent := pulse.SilentReplicas())
    replicas: list[Any] = [Replica("a"), Replica("b")]
    router.update_replicas(replicas)
    silent.add("a", 0.0)
    for number in range(10):
        ranks = await router.choose_replicas(replicas, make_request(number))
        assert {one.replica_id.unique_id for rank in ranks for one in rank} == {"b"}
    silent.add("b", 0.0)
    ranks = await router.choose_replicas(replicas, make_request())
    assert {one.replica_id.unique_id for rank in ranks for one in rank} == {"a", "b"}, "there is nobody else"
    replicas[0].report(1)
    router.update_replicas(replicas)
    assert not silent.is_silent("a", 0.0)


async def test_when_a_request_is_sent_its_attempt_learns_whereto(router: TtftRequestRouter, clock: Clock) -> None:
    router.update_replicas([(replica := Replica("a"))])  # type: ignore[list-item]
    attempt = pulse.Attempt()
    token = pulse.ATTEMPT.set(attempt)
    try:
        clock.now_s = 7.0
        router.on_send_request(replica.replica_id)
    finally:
        pulse.ATTEMPT.reset(token)
    assert (attempt.replica, attempt.sent_s) == ("a", 7.0)
