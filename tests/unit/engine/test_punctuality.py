from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conserve.engine.options import Objective
from conserve.engine.page import Counters
from conserve.engine.punctuality import Punctuality
from conserve.policy.priority import OFFLINE_PRIORITY

OBJECTIVES = (Objective(ttft_slo_ms=100, tbt_slo_ms=20), Objective(ttft_slo_ms=1_000, tbt_slo_ms=200))


@dataclass
class FakeRequest:
    request_id: str
    priority: int = 0
    arrival_time: float = 1_000.0
    num_output_tokens: int = 0


@dataclass
class World:
    """Iterations of the requests that there are; each gives a token to those that are named."""

    requests: dict[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.punctuality = Punctuality(self.requests, self.counters)

    def add(self, *requests: FakeRequest) -> None:
        self.requests |= {request.request_id: request for request in requests}

    def iterate(self, at_s: float, scheduled: str, produce: str) -> None:
        expected = self.punctuality.expect(list(scheduled))
        for name in produce:
            self.requests[name].num_output_tokens += 1
        self.punctuality.count(expected, OBJECTIVES, at_s, 1_000.0 + at_s)

    @property
    def first(self) -> tuple[float, float]:
        return self.counters.first_tokens, self.counters.late_first_tokens

    @property
    def following(self) -> tuple[float, float]:
        return self.counters.next_tokens, self.counters.late_next_tokens


def test_first_and_following_tokens_are_held_against_the_objectives_of_their_class() -> None:
    world = World()
    world.add(FakeRequest("a"), FakeRequest("b", priority=1), FakeRequest("o", priority=OFFLINE_PRIORITY))
    world.iterate(0.05, "abo", "o")
    assert world.first == (0, 0), "prompts are not computed to their end yet"
    world.iterate(0.15, "abo", "abo")
    assert world.first == (2, 1)
    world.iterate(0.20, "abo", "abo")
    assert world.following == (2, 1)
    world.iterate(0.21, "abo", "ab")
    assert world.following == (4, 1)


def test_what_is_computed_without_offline_requests_does_not_count() -> None:
    world = World()
    world.add(FakeRequest("a"), FakeRequest("o", priority=OFFLINE_PRIORITY))
    world.iterate(5.0, "a", "a")
    world.iterate(6.0, "a", "a")
    assert world.first == world.following == (0, 0)
    world.iterate(6.01, "ao", "ao")
    assert world.following == (1, 0), "the token before it counts for when that came"


def test_requests_that_are_gone_are_forgotten() -> None:
    world = World()
    world.add(FakeRequest("o", priority=OFFLINE_PRIORITY))
    for number in range(300):
        name = chr(0x4E00 + number)
        world.add(FakeRequest(name))
        world.iterate(number / 1e3, name + "o", name)
        del world.requests[name]
        world.iterate(number / 1e3, "o", "")
    assert len(world.punctuality._tokens_s) <= 70
