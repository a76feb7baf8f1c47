from __future__ import annotations

from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError

from deployments.readiness import CACHE_S, SILENCE_TOLERATED_S, ReadinessProbe


class FakeHandle:
    """Stands for a deployment handle; `answers` is what its replicas say, or what the broadcast raises."""

    def __init__(self) -> None:
        self.answers: list[Any] | Exception = []
        self.asked = 0

    def broadcast(self, method: str) -> FakeHandle:
        assert method == "answers"
        self.asked += 1
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def ask(handle: FakeHandle, probe: ReadinessProbe, clock: Clock, answers: list[Any] | Exception) -> bool:
    handle.answers = answers
    clock.now_s += CACHE_S
    return await probe.is_ready()


async def test_ready_only_while_a_replica_answers() -> None:
    handle, clock = FakeHandle(), Clock()
    probe = ReadinessProbe([handle], clock)  # type: ignore[list-item]
    unavailable = DeploymentUnavailableError("no replica")
    assert not await ask(handle, probe, clock, unavailable)
    assert await ask(handle, probe, clock, [RuntimeError("died"), True])
    assert not await ask(handle, probe, clock, [RuntimeError("died")])
    assert await ask(handle, probe, clock, [True])
    assert not await ask(handle, probe, clock, unavailable)
    assert await ask(handle, probe, clock, [True])
    assert not await ask(handle, probe, clock, [])


async def test_one_replica_that_hangs_is_borne_for_a_while() -> None:
    handle, clock = FakeHandle(), Clock()
    probe = ReadinessProbe([handle], clock)  # type: ignore[list-item]
    assert not await ask(handle, probe, clock, TimeoutError())
    assert await ask(handle, probe, clock, [True])
    assert await ask(handle, probe, clock, TimeoutError())
    clock.now_s += SILENCE_TOLERATED_S
    assert not await ask(handle, probe, clock, TimeoutError())


async def test_a_flood_of_questions_reaches_the_replicas_at_most_twice_a_second() -> None:
    handle, clock = FakeHandle(), Clock()
    probe = ReadinessProbe([handle], clock)  # type: ignore[list-item]
    handle.answers = [True]
    for _ in range(50):
        assert await probe.is_ready()
    assert handle.asked == 1
