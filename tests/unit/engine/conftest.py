from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from conserve.engine.options import Objective
from conserve.engine.testing.copies import CopyFails
from conserve.engine.testing.scheduling import (
    NO_LIMIT,
    EngineSize,
    FakeEngine,
    VirtualClock,
    make_config,
    make_scheduler,
)
from conserve.engine.testing.worker import ChooseStop, FakeWorker
from conserve.policy.latency import IterationShape
from tests.unit.engine.engines import Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts engines, whose latency model knows what iterations cost unless `taught` is False."""
    clock = VirtualClock()

    def start_engine(
        size: EngineSize = EngineSize(),  # noqa: B008 - a frozen value
        *objectives: Objective,
        taught: bool = True,
        choose_stop: ChooseStop | None = None,
        copy_fails: CopyFails = lambda plan: False,
        **settings: Any,
    ) -> FakeEngine:
        config = make_config(size, objectives=objectives or (NO_LIMIT,), **settings)
        worker = FakeWorker(size.block_size, choose_stop=choose_stop, copy_fails=copy_fails)
        engine = FakeEngine(make_scheduler("conserve", config), clock, worker=worker)
        model = engine.scheduler._model
        for number in range(400 if taught else 0):
            tokens, decodes = number % 7 * 31, number % 5 * 3
            context = decodes * (20 + number % 11 * 10)
            shape = IterationShape(tokens, tokens * tokens / 2, int(tokens > 0), decodes, context)
            model.observe(shape, 35.0 + 1.5 * (tokens + decodes))
        return engine

    with clock.installed():
        yield start_engine
