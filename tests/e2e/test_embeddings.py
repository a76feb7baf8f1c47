"""A model that is served for embeddings; and what a service manager does to an application, on the same one."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.jobs.batch import RequestState
from conserve.jobs.connection import connect
from conserve.jobs.queue import JobQueue
from tests.e2e.conftest import MODEL, TIMEOUT_S, Application

DOWN_WITHIN_S = 90.0
"""Twenty seconds for online requests, and the ends of processes on a slow machine."""
LINES = 600


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    application = Application(tmp_path_factory.mktemp("embeddings"))
    try:
        application.up(CONSERVE_MODEL__TASK="embed", CONSERVE_ENGINE__MODE="stock")
        yield application
    finally:
        application.stack.down(print)


def make_lines(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": MODEL, "input": text},
        }
        for number, text in enumerate(texts)
    ]


def test_a_batch_of_embeddings_has_those_of_online_requests(application: Application) -> None:
    texts = [f"text number {number}" for number in range(5)]
    lines = make_lines(texts)
    client = application.client()
    batch = application.wait_for(application.submit(lines, "/v1/embeddings").id)
    assert batch.status == "completed", batch
    assert batch.usage is not None
    assert batch.usage.input_tokens > 0
    assert batch.usage.output_tokens == 0
    assert batch.output_file_id is not None
    found = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    online = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert [line["custom_id"] for line in found] == [line["custom_id"] for line in lines]
    for line, expected in zip(found, online.data, strict=True):
        embedding = line["response"]["body"]["data"][0]["embedding"]
        assert embedding == pytest.approx(expected.embedding, abs=1e-4)


def test_sigterm_takes_everything_down_in_time_and_gives_requests_back(
    application: Application, tmp_path: Path
) -> None:
    """The last one: nothing of the application is left."""
    log = tmp_path / "log"
    staying = application.stay(log)
    try:
        wait_until_up(staying, log)
        batch_id = application.submit(make_lines(["word " * 400] * LINES), "/v1/embeddings").id
        assert application.wait_for(batch_id, completed=1).status == "in_progress"
        staying.send_signal(signal.SIGTERM)
        code = staying.wait(DOWN_WITHIN_S)
    finally:
        staying.kill()
        staying.wait(TIMEOUT_S)
    said = log.read_text()
    assert code == 0, said
    assert "Traceback" not in said
    assert application.processes() == []
    states = asyncio.run(read_states(application.state_dir, batch_id))
    assert len(states) == LINES
    # Nobody waits for the lease of a process that has gone.
    assert set(states.values()) == {RequestState.READY, RequestState.COMPLETED}


def wait_until_up(staying: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + TIMEOUT_S
    while "Up: http://" not in log.read_text():
        assert staying.poll() is None, log.read_text()
        assert time.monotonic() < until_s, log.read_text()
        time.sleep(0.2)


async def read_states(state_dir: Path, batch_id: str) -> dict[int, RequestState]:
    settings = Settings.model_validate({"state_dir": state_dir})
    redis = await connect(settings)
    try:
        return await JobQueue(redis, settings).states(batch_id, range(1, LINES + 1))
    finally:
        await redis.aclose()
        await asyncio.to_thread(embedded.stop, state_dir)
