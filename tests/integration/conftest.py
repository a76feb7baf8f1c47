"""Real servers: the embedded Valkey, `redis-server` where there is one, and CONSERVE_TEST_REDIS_URL where set."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from tests.integration.bench import LONG_MS, TIMEOUT_S, Bench
from tests.redis_users import OF_TESTS, add_user

SERVERS = ["embedded"]
if shutil.which("redis-server"):
    SERVERS.append("redis-server")
if os.environ.get("CONSERVE_TEST_REDIS_URL"):
    SERVERS.append("url")


@pytest.fixture(scope="session", params=SERVERS)
def server_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """As the user with the rules of cluster/redis: what they do not allow fails whatever needs it."""
    if request.param == "url":
        yield os.environ["CONSERVE_TEST_REDIS_URL"]
    elif request.param == "embedded":
        for url in run_embedded(tmp_path_factory.mktemp("state")):
            yield add_user(url, extra=OF_TESTS)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for url in run_redis_server(Path(folder)):
                yield add_user(url, extra=OF_TESTS)


def run_embedded(state_dir: Path) -> Iterator[str]:
    url = embedded.ensure_running(state_dir)
    try:
        with sync_redis.Redis.from_url(url) as client:
            client.config_set("appendfsync", "always")  # WAITAOF then answers at once, not at the next second.
        yield url
    finally:
        assert embedded.stop(state_dir)


def run_redis_server(folder: Path) -> Iterator[str]:
    socket = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--appendonly", "yes"]
    process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        with sync_redis.Redis(unix_socket_path=str(socket)) as client:
            until_s = time.monotonic() + TIMEOUT_S
            while True:
                try:
                    client.ping()
                    break
                except sync_redis.ConnectionError:
                    assert time.monotonic() < until_s, "redis-server did not start"
                    time.sleep(0.02)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


@pytest.fixture
def settings(server_url: str, tmp_path: Path) -> Settings:
    jobs = {"redis_url": server_url, "namespace": f"t{secrets.token_hex(6)}", "lease_ms": LONG_MS}
    jobs |= {"max_attempts": 3, "retry_delay_s": 0, "suspicions": 3}
    return Settings.model_validate({"jobs": jobs, "state_dir": tmp_path})


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = await connect(settings)
    try:
        yield client
    finally:
        async for key in client.scan_iter(match=f"{settings.jobs.namespace}:*", count=1000):
            await client.delete(key)
        await client.aclose()


@pytest.fixture
def store(settings: Settings) -> FileStore:
    return FileStore(settings.files_url)


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    return JobQueue(redis, settings)


@pytest.fixture
def bench(redis: Redis, store: FileStore, settings: Settings) -> Bench:
    return Bench(redis, store, settings)
