from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from conserve.policy.allotment import Allotment, allot
from conserve.policy.fair_shares import FairShares, JobUse
from conserve.policy.ordering import JobDemand, list_late
from conserve.policy.replica_capacity import ReplicaCapacity
from conserve.policy.request_size import mean_request_tokens
from conserve.policy.turns import ShareTurns
from conserve.policy.window import WindowRule

PERIOD_S = 0.25
TOKENS_PER_S = 1_000.0
"""Of one request."""
RULE = WindowRule(
    max_window=4, shut_at_online_requests=8, open_at_online_requests=4, shut_at_kv_usage=0.8, open_at_kv_usage=0.5
)


@dataclass
class Batch:
    """Endless work of a tenant. What its requests take is known only once they are done."""

    tenant: str
    mean_tokens: float
    ready: int = 10**9
    done: int = 0
    tokens: float = 0.0
    leased: int = 0

    @property
    def request_tokens(self) -> float:
        return mean_request_tokens(1_024, self.done, self.tokens)


@dataclass
class Cluster:
    """Replicas in virtual time: each works off its window by turns and hears of the controller now and then."""

    batches: dict[str, Batch]
    weights: dict[str, float]
    replicas: int = 2
    now_s: float = 0.0
    windows: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(1)
        self.shares = FairShares(self.weights)
        self.names = [f"r{number}" for number in range(self.replicas)]
        self.running = dict.fromkeys(self.names, 0)
        self.turns = {name: ShareTurns(()) for name in self.names}
        self.ending: list[tuple[float, int, str, str, float]] = []
        self.begun = 0

    def run(self, seconds: float) -> Counter[str]:
        """Tokens of each tenant's requests that were done in this time."""
        before = {name: batch.tokens for name, batch in self.batches.items()}
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self._allot()
            for name in self.names:
                self._claim(name)
            self.now_s += PERIOD_S
            while self.ending and self.ending[0][0] <= self.now_s:
                self._end(*heapq.heappop(self.ending))
        tokens: Counter[str] = Counter()
        for name, batch in self.batches.items():
            tokens[batch.tenant] += round(batch.tokens - before[name])
        return tokens

    def _allot(self) -> None:
        jobs = [
            JobDemand(name, "m", 0, 1e9, batch.ready, tenant=batch.tenant, request_tokens=batch.request_tokens)
            for name, batch in self.batches.items()
        ]
        uses = {
            name: JobUse(batch.tenant, "m", batch.tokens + batch.leased * batch.request_tokens)
            for name, batch in self.batches.items()
        }
        self.shares.settle(jobs, uses)
        capacities = [ReplicaCapacity(name, "m", "serving", offline_running=self.running[name]) for name in self.names]
        for name, allotment in allot(capacities, self.shares, RULE, {}).items():
            self.turns[name] = ShareTurns(allotment.jobs)
            self.windows[name] = allotment.window

    def _claim(self, name: str) -> None:
        while (turn := self.turns[name].current) is not None:
            room = min(self.windows[name] - self.running[name], turn.most)
            if room <= 0:
                return
            batch = self.batches[turn.batch_id]
            count = min(room, batch.ready)
            self.turns[name].take(turn.batch_id, count)
            if count < room:
                self.turns[name].drop(turn.batch_id)
            batch.ready -= count
            batch.leased += count
            self.running[name] += count
            for _ in range(count):
                tokens = batch.mean_tokens * self.random.uniform(0.2, 1.8)
                self.begun += 1
                heapq.heappush(
                    self.ending, (self.now_s + tokens / TOKENS_PER_S, self.begun, name, turn.batch_id, tokens)
                )

    def _end(self, at_s: float, _: int, name: str, batch_id: str, tokens: float) -> None:
        batch = self.batches[batch_id]
        batch.leased -= 1
        batch.done += 1
        batch.tokens += tokens
        self.running[name] -= 1
        latest_s, self.now_s = self.now_s, at_s
        self._claim(name)
        self.now_s = latest_s


@pytest.mark.parametrize(("long", "short"), [(6_000.0, 60.0), (60.0, 6_000.0), (500.0, 500.0)])
def test_tenants_share_tokens_by_weight_whatever_their_requests_take(long: float, short: float) -> None:
    cluster = Cluster({"a": Batch("a", long), "b": Batch("b", short)}, {"a": 3.0, "b": 1.0})
    cluster.run(200)
    tokens = cluster.run(2_000)
    assert tokens["a"] / tokens["b"] == pytest.approx(3.0, rel=0.05)
    capacity = 2_000 * TOKENS_PER_S * RULE.max_window * cluster.replicas
    assert sum(tokens.values()) > 0.9 * capacity, "no place stays empty while there is work"


def test_the_number_of_batches_of_a_tenant_does_not_count() -> None:
    batches = {f"a{number}": Batch("a", 300.0) for number in range(20)} | {"b": Batch("b", 900.0)}
    cluster = Cluster(batches, {})
    cluster.run(100)
    tokens = cluster.run(1_000)
    assert tokens["a"] / tokens["b"] == pytest.approx(1.0, rel=0.05)


def test_what_a_tenant_leaves_is_taken_by_the_others_and_not_given_back() -> None:
    cluster = Cluster({"a": Batch("a", 400.0), "b": Batch("b", 400.0, ready=0)}, {})
    assert cluster.run(500)["b"] == 0
    cluster.batches["b"].ready = 10**9
    tokens = cluster.run(500)
    assert tokens["a"] / tokens["b"] == pytest.approx(1.0, rel=0.05)


def test_offers_that_nobody_takes_are_charged_to_nobody() -> None:
    shares = FairShares({})
    jobs = [JobDemand(name, "m", 0, 100, 1_000, tenant=name, request_tokens=100.0) for name in ("a", "b")]
    first = None
    for _ in range(50):
        shares.settle(jobs, {})
        dealt = shares.deal("m", 100)
        first = first or dealt
        assert dealt == first
    counts: Counter[str] = Counter()
    for name, count in first or []:
        counts[name] += count
    assert abs(counts["a"] - counts["b"]) <= 21, "a quantum is 20 requests"


def test_what_was_used_before_it_was_first_seen_is_not_charged() -> None:
    shares = FairShares({})
    jobs = [JobDemand(name, "m", 0, 100, 1_000, tenant=name, request_tokens=100.0) for name in ("a", "b")]
    shares.settle(jobs, {"a": JobUse("a", "m", 1e9)})
    assert {name for name, _ in shares.deal("m", 100)} == {"a", "b"}
    shares.settle(jobs, {"a": JobUse("a", "m", 1e9 + 50_000)})
    assert {name for name, _ in shares.deal("m", 100)} == {"b"}


def test_what_the_last_request_of_a_tenant_took_is_charged_to_it() -> None:
    shares = FairShares({})

    def settle(ready: int, running: int, tokens: float) -> list[tuple[str, int]]:
        jobs = [JobDemand("b", "m", 0, 100, 1_000, tenant="b", request_tokens=100.0)]
        jobs.append(JobDemand("a", "m", 0, 100, ready, tenant="a", request_tokens=100.0))
        shares.settle(jobs, {"a": JobUse("a", "m", tokens, running), "b": JobUse("b", "m", 0.0)})
        return shares.deal("m", 60)

    assert ("a", 1) in settle(1, 0, 0.0)
    assert settle(0, 1, 100.0) == [("b", 60)], "it runs, and nothing else of it waits"
    settle(0, 1, 6_100.0)
    assert settle(1, 0, 6_100.0) == [("b", 60)], "the next one waits until the other has had as much"
    settle(0, 0, 6_100.0)
    assert settle(1, 0, 6_100.0) == [("b", 60)], "also when it was away"


def test_limits_of_places_are_shares_by_weight() -> None:
    shares = FairShares({"a": 3.0})
    jobs = [JobDemand(name, "m", 0, 100, 9, tenant=name) for name in ("a", "b")]
    shares.settle(jobs, {"x": JobUse("a", "m", 0.0)})
    assert [shares.limit_places("m", places) for places in (8, 5, 1)] == [
        {"a": 6, "b": 2},
        {"a": 4, "b": 2},
        {"a": 1, "b": 1},
    ]
    assert shares.limit_places("other", 8) == {}
    shares.settle(jobs, {"x": JobUse("a", "m", 9_000.0)})
    assert shares.limit_places("m", 5) == {"a": 3, "b": 2}, "rounded down for who is ahead"
    assert shares.limit_places("m", 1) == {"a": 0, "b": 1}
    assert shares.limit_places("m", 1, {"a"}) == {"a": 1}
    shares.settle(jobs[:1], {"x": JobUse("a", "m", 9_000.0)})
    assert shares.limit_places("m", 8) == {"a": 8}


@pytest.mark.parametrize(("window", "promised", "least"), [(1, False, 0.45), (3, False, 0.45), (3, True, 0.0)])
def test_an_always_late_batch_leaves_others_their_share(window: int, promised: bool, least: float) -> None:
    """Each round all places are filled anew, with requests of a quarter of a round."""
    rule = replace(RULE, max_window=window)
    shares = FairShares({})
    had = {"a": 0, "b": 0}
    for _ in range(400):
        jobs = [
            JobDemand(name, "m", 0, 100, 99, tenant=name, request_tokens=512.0, urgency=urgency, promised=promised)
            for name, urgency in (("a", 1.0), ("b", 0.0))
        ]
        shares.settle(jobs, {name: JobUse(name, "m", 512.0 * count) for name, count in had.items()})
        allotment = allot([ReplicaCapacity("r", "m", "serving")], shares, rule, {}, list_late(jobs))["r"]
        room = window
        for share in [*allotment.late, *allotment.jobs]:
            had[share.batch_id] += min(room, share.most)
            room -= min(room, share.most)
    assert sum(had.values()) == 400 * window
    assert had["b"] / sum(had.values()) >= least
    assert promised == (had["b"] == 0)


def test_models_have_turns_of_their_own() -> None:
    shares = FairShares({})
    jobs = [
        JobDemand("x", "m", 0, 100, 5, tenant="a", request_tokens=10.0),
        JobDemand("y", "other", 0, 100, 5, tenant="b", request_tokens=10.0),
    ]
    shares.settle(jobs, {})
    assert shares.deal("m", 9) == [("x", 5)]
    assert shares.deal("other", 3) == [("y", 3)]
    assert shares.deal("unknown", 3) == []


def test_a_request_goes_where_there_is_room() -> None:
    shares = FairShares({})
    shares.settle([JobDemand("x", "m", 0, 100, 1)], {})
    capacities = [
        ReplicaCapacity("busy", "m", "serving", offline_running=4),
        ReplicaCapacity("idle", "m", "serving", offline_running=1),
    ]
    assert allot(capacities, shares, RULE, {}) == {"busy": Allotment(4), "idle": Allotment(4, (("x", 1),))}  # type: ignore[arg-type]


def test_another_one_goes_on_from_what_was_charged() -> None:
    jobs = [JobDemand(name, "m", 0, 100, 1_000, tenant=name, request_tokens=100.0) for name in ("a", "b")]
    uses = {name: JobUse(name, "m", 0.0) for name in ("a", "b")}
    shares, heir, blank = FairShares({}), FairShares({}), FairShares({})
    shares.settle(jobs, uses)
    shares.settle(jobs, uses | {"a": JobUse("a", "m", 50_000.0)})
    heir.restore(shares.record())
    used_meanwhile = uses | {"a": JobUse("a", "m", 60_000.0)}
    for one in (shares, heir, blank):
        one.settle(jobs, used_meanwhile)
    assert heir.deal("m", 100) == shares.deal("m", 100) == [("b", 100)]
    assert {name for name, _ in blank.deal("m", 100)} == {"a", "b"}
