"""Engines without a model for the tests of the scheduler, and how to look at them."""

from __future__ import annotations

from collections.abc import Callable

from conserve.engine.testing.scheduling import FakeEngine

Start = Callable[..., FakeEngine]


def prompt(tokens: int, first: int = 0) -> list[int]:
    """Prompts with another `first` have no block in common."""
    return [first, *range(1, tokens)]


def running(engine: FakeEngine) -> list[str]:
    return [request.request_id for request in engine.scheduler.running]


def scheduled(engine: FakeEngine) -> dict[str, int]:
    batch = engine.step()
    assert batch is not None
    return dict(batch.num_scheduled_tokens)


def run_until_answered(engine: FakeEngine, request_id: str) -> None:
    while not engine.answers[request_id]:
        engine.step()
