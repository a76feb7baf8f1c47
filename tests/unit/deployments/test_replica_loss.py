from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from conserve.engine.contract import EngineDied, EngineGone
from deployments import replica_loss
from deployments.errors import is_error
from deployments.ray_compat import ErrorInfo, ErrorResponse
from deployments.replica_loss import LOST_CODE, MOST_GONE, AnswerBroken, ReplicaLost, ask_again, lost_event


class Replicas:
    """What each of the replicas that are asked one after the other does: parts of an answer, and how it ends."""

    def __init__(self, *answers: list[str | Exception]) -> None:
        self._answers = iter(answers)
        self.asked = self.closed = 0

    async def ask(self) -> AsyncGenerator[Any, None]:
        self.asked += 1
        try:
            for part in next(self._answers):
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.closed += 1


async def collect(ask: Callable[[], AsyncGenerator[Any, None]]) -> list[Any]:
    return [part async for part in ask_again(ask)]


def as_ray_raises(error: Exception) -> Exception:
    """As the exception of a replica comes out of its handle."""
    raised: Exception = RayTaskError("f", "traceback of the replica", error).as_instanceof_cause()
    return raised


@pytest.mark.parametrize("loss", [ActorDiedError(), as_ray_raises(EngineDied("x"))])
async def test_before_the_first_token_another_replica_is_asked(loss: Exception) -> None:
    replicas = Replicas([loss], ["a", "b"])
    assert await collect(replicas.ask) == ["a", "b"]
    assert replicas.asked == 2


async def test_after_the_first_token_the_answer_is_broken() -> None:
    replicas = Replicas(["a", ActorDiedError()], ["never asked"])
    answer = ask_again(replicas.ask)
    assert await anext(answer) == "a"
    with pytest.raises(AnswerBroken):
        await anext(answer)
    assert replicas.asked == 1


def test_what_ends_a_broken_answer_is_an_error_event() -> None:
    event = lost_event()
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == LOST_CODE
    assert event.endswith("\n\n")
    assert is_error(event)


async def test_it_is_asked_once_more_and_not_twice() -> None:
    replicas = Replicas([ActorDiedError()], [ActorDiedError()], ["never asked"])
    with pytest.raises(ReplicaLost):
        await collect(replicas.ask)
    assert replicas.asked == 2


async def test_replicas_that_have_not_tried_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_loss, "GONE_PAUSE_S", 0.0)
    gone: list[list[str | Exception]] = [[as_ray_raises(EngineGone("x"))]] * 5
    replicas = Replicas(*gone, [ActorDiedError()], *gone, ["a"])
    assert await collect(replicas.ask) == ["a"]
    for_ever = Replicas(*([[EngineGone("x")]] * (MOST_GONE + 5)))
    with pytest.raises(ReplicaLost):
        await collect(for_ever.ask)
    assert for_ever.asked == MOST_GONE


async def test_other_errors_are_those_of_the_request() -> None:
    replicas = Replicas([ValueError("no")], ["never asked"])
    with pytest.raises(ValueError, match="no"):
        await collect(replicas.ask)
    assert replicas.asked == 1


async def test_a_client_that_leaves_ends_the_answer() -> None:
    replicas = Replicas(["a", "b"])
    answer = ask_again(replicas.ask)
    assert await anext(answer) == "a"
    await answer.aclose()
    await asyncio.sleep(0)
    assert replicas.closed == 1


def test_errors_are_told_from_answers() -> None:
    assert is_error('data: {"error": {"message": "m"}}\n\n')
    assert is_error(ErrorResponse(error=ErrorInfo(message="m", type="t", code=500)))
    assert not is_error('data: {"choices": [{"delta": {"content": "data: {\\"error\\""}}]}\n\n')
