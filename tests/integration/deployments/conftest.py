"""The real front and Ray Serve over replicas without an engine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from conserve.launch.ports import find_free_ports
from tests.integration.deployments import light_application
from tests.integration.deployments.light_application import MODEL
from tests.traces import Collector, collecting

WAIT_S = 240.0
REPLICAS = 4
"""As many as the tests kill, so that none of them waits until new ones have started."""
ROOT = Path(__file__).parents[3]


@dataclass
class Front:
    """The application, and what its replicas are told."""

    url: str
    grpc_address: str
    folder: Path
    collector: Collector = field(default_factory=Collector)

    def chat(self, content: str, *, stream: bool = True) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": stream}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=WAIT_S)

    def stream(self, content: str) -> AbstractContextManager[httpx.Response]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": True}
        return httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=WAIT_S)

    def ask(self, count: int) -> Counter[str]:
        """Which replicas answer so many requests, one after the other."""
        return Counter(
            read_events(self.chat(f"{number}"))[0]["choices"][0]["delta"]["content"] for number in range(count)
        )

    def find_answering(self) -> set[str]:
        """Replicas that have answered one of a few requests; others may have been lost."""
        answers = [self.chat(f"{number}") for number in range(8)]
        return {
            read_events(answer)[0]["choices"][0]["delta"]["content"] for answer in answers if answer.status_code == 200
        }

    def ask_at_once(self, count: int) -> Counter[str]:
        async def ask_all() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=WAIT_S) as client:
                body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 8_000}], "stream": True}
                calls = [client.post(f"{self.url}/v1/chat/completions", json=body) for _ in range(count)]
                return await asyncio.gather(*calls)

        answers = asyncio.run(ask_all())
        return Counter(read_events(answer)[0]["choices"][0]["delta"]["content"] for answer in answers)

    @property
    def replicas(self) -> list[str]:
        """Those that were ever there."""
        return sorted(path.name for path in (self.folder / "replicas").iterdir())

    def tell(self, fast: str | None = None, *, silent: bool = False) -> None:
        """What replicas say from now on: that a request waits long at all of them but one; or nothing."""
        waits = {} if fast is None else {name: 5_000.0 for name in self.replicas if name != fast}
        part = self.folder / "waits.part"
        part.write_text(json.dumps({**waits, "silent": silent}))
        part.replace(self.folder / "waits.json")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < until_s, what
            time.sleep(0.1)


def read_events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with collecting() as collector, pytest.MonkeyPatch.context() as environment:
        # That there is a collector switches nothing on.
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with running_front(REPLICAS, {}) as front:
            front.collector = collector
            yield front


@contextmanager
def running_front(replicas: int, settings: dict[str, Any]) -> Iterator[Front]:
    """The application, with further settings."""
    # Sockets of Ray lie below, whose paths must not be long.
    folder = Path(tempfile.mkdtemp(prefix="lr-", dir="/tmp"))
    http_port, grpc_port = find_free_ports(2)
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [str(folder), str(http_port), str(grpc_port), str(replicas), json.dumps(settings)]
    command = [sys.executable, "-m", light_application.__name__, *arguments]
    log = folder / "application.log"
    try:
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=ROOT, env=environ
            ) as process,
        ):
            front = Front(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", folder)

            def is_ready() -> bool:
                assert process.poll() is None, log.read_text()
                return (folder / "ready").exists()

            try:
                front.wait_until(is_ready, "the application does not start")
                yield front
                process.communicate(timeout=WAIT_S)
            finally:
                process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
