from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from conserve.client import api
from conserve.config import Settings
from conserve.jobs import result_feed
from tests.integration.worked_routes import Worker, serve_with_models, work


@pytest.fixture
def worker(settings: Settings, redis: Redis) -> Iterator[Worker]:
    with work(settings) as worker:
        yield worker


@pytest.fixture
def base_url(settings: Settings, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(result_feed, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(api, "POLL_PERIOD_S", 0.05)
    with serve_with_models(settings) as url:
        yield url
