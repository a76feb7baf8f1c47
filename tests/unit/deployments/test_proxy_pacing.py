"""Bodies of requests are taken from the connection at a pace."""

from __future__ import annotations

from typing import Any

from ray._common.utils import import_attr
from ray.serve._private import constants
from starlette.middleware import Middleware

from conserve.launch.serve_proxy import PACING
from deployments.proxy_pacing import FREE_BYTES, Pace, PacedBodies


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_bytes_are_taken_at_the_rate() -> None:
    clock = Clock()
    pace = Pace(1000.0, clock)
    waits = []
    for _ in range(5):
        waits.append(pace.take(500))
        clock.now_s += waits[-1]
    assert waits == [0.0, 0.5, 0.5, 0.5, 0.5]
    clock.now_s += 60.0
    assert pace.take(500) == 0.0


def test_two_bodies_share_the_rate() -> None:
    pace = Pace(1000.0, Clock())
    assert [pace.take(500) for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]


async def pass_through(chunk: int, count: int, kind: str = "http") -> tuple[list[int], float]:
    """The lengths that arrive, and seconds that the pace asked to wait in all."""
    clock, waited = Clock(), 0.0

    class Counted(Pace):
        def take(self, count: int) -> float:
            nonlocal waited
            wait_s = super().take(count)
            clock.now_s += wait_s
            waited += wait_s
            return 0.0

    arrived: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(count):
            arrived.append(len((await receive())["body"]))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * chunk, "more_body": True}

    async def send(message: Any) -> None: ...

    await PacedBodies(app, Counted(1e6, clock))({"type": kind}, receive, send)
    return arrived, waited


async def test_small_bodies_do_not_wait() -> None:
    arrived, waited = await pass_through(1_000, 100)
    assert (arrived, waited) == ([1_000] * 100, 0.0)


async def test_large_bodies_come_whole_and_at_the_rate() -> None:
    count = FREE_BYTES // 1_000_000 + 11
    arrived, waited = await pass_through(1_000_000, count)
    assert arrived == [1_000_000] * count
    assert 9.0 <= waited <= 11.0


async def test_other_connections_are_left_alone() -> None:
    _, waited = await pass_through(1_000_000, 30, "websocket")
    assert waited == 0.0


def test_serve_finds_the_middlewares_by_its_environment_variable() -> None:
    path = PACING["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    (middleware,) = import_attr(path)()
    assert isinstance(middleware, Middleware)
    assert middleware.cls is PacedBodies
    assert hasattr(constants, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH")
