"""The whole application as a user starts it: real engine, real Redis and real Ray, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types import Batch

from conserve.jobs import embedded
from conserve.launch.ports import find_free_ports
from conserve.launch.processes import find_processes
from conserve.launch.stack import LocalStack, read_record
from tests.traces import Collector, collecting

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
TIMEOUT_S = 120.0
"""For one answer, on a slow machine."""
MODEL = "smollm2-135m-instruct"
ENDED = {"completed", "failed", "expired", "cancelled"}


class Application:
    """A stack under test."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.http_port, self.grpc_port = find_free_ports(2)

    def up(self, **settings: str) -> None:
        """Starts it; settings by the names of their environment variables."""
        # In bfloat16 the answers of so small a model depend on the processor.
        # What a busy machine refuses depends on how busy it is.
        defaults = {"CONSERVE_ENGINE__DTYPE": "float32", "CONSERVE_OVERLOAD__REFUSE": "false"}
        settings = defaults | settings
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CONSERVE_")}
        cache = {"CONSERVE_CACHE": os.environ["CONSERVE_CACHE"]} if "CONSERVE_CACHE" in os.environ else {}
        ports = {"http_port": self.http_port, "grpc_port": self.grpc_port}
        self._environ = environ | cache | settings
        self.stack = LocalStack(CONFIG, self.state_dir, self._environ, **ports)
        running = self.stack.up(print)
        assert running.grpc_address is not None
        self.base_url, self.grpc_address = running.base_url, running.grpc_address

    def stay(self, log: Path) -> subprocess.Popen[bytes]:
        """`conserve up --block` of what runs already, as a service manager has it; what it says goes to a file."""
        command = [str(Path(sys.executable).with_name("conserve")), "up", "--block", "--file", str(CONFIG)]
        command += ["--port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        environ = self._environ | {"CONSERVE_STATE_DIR": str(self.state_dir)}
        with log.open("wb") as file:
            return subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """SIGKILL to everything at once, Redis included: as when the machine loses its power, but for the disk."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # ended between the look and the blow
                process.kill()
        psutil.wait_procs(self.processes(), timeout=TIMEOUT_S)

    def kill_redis(self) -> None:
        """SIGKILL to the embedded Redis, which the controller starts again."""
        process = psutil.Process(int((self.state_dir / "redis" / "redis.pid").read_text()))
        process.kill()
        psutil.wait_procs([process], timeout=TIMEOUT_S)

    def kill_replicas(self) -> int:
        """SIGKILL to all replicas with their engines, which Serve starts anew; returns how many there were."""
        replicas = [
            one for one in self.processes() if "ServeReplica:conserve:ConServeReplica" in " ".join(one.cmdline())
        ]
        killed = [one for replica in replicas for one in (replica, *replica.children(recursive=True))]
        for process in killed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(killed, timeout=TIMEOUT_S)
        return len(replicas)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this stack."""
        record = read_record(self.state_dir)
        found = find_processes(record.stack_id) if record else []
        pid_file = self.state_dir / "redis" / "redis.pid"
        if embedded.is_running(self.state_dir) and pid_file.is_file():
            found.append(psutil.Process(int(pid_file.read_text())))
        return found

    def client(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0)

    def status(self) -> dict[str, Any]:
        """What `conserve status` reads."""
        response = httpx.get(f"{self.base_url}/conserve/v1/status", timeout=TIMEOUT_S)
        assert response.status_code == 200
        found: dict[str, Any] = response.json()
        return found

    def submit(self, lines: list[dict[str, Any]], endpoint: Any = "/v1/chat/completions") -> Batch:
        """Uploads lines and makes a batch of them."""
        content = "\n".join(json.dumps(line) for line in lines).encode()
        client = self.client()
        file = client.files.create(file=("input.jsonl", content), purpose="batch")
        return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")

    def wait_for(self, batch_id: str, *, completed: int | None = None, timeout_s: float = 300) -> Batch:
        """Waits until a batch has ended, or has so many completed requests."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            batch = self.client().batches.retrieve(batch_id)
            counts = batch.request_counts
            if batch.status in ENDED or (completed is not None and counts and counts.completed >= completed):
                return batch
            time.sleep(0.2)
        pytest.fail(f"batch {batch_id} took longer than {timeout_s} s: {self.status()}")

    def read_ids(self, file_id: str | None) -> list[str]:
        """The custom ids of a result file."""
        if file_id is None:
            return []
        return [json.loads(line)["custom_id"] for line in self.client().files.content(file_id).text.splitlines()]


def make_lines(count: int, words: int = 120, max_tokens: int = 24) -> list[dict[str, Any]]:
    """Chat lines with prompts that differ from the first word on."""
    return [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODEL,
                "messages": [
                    {"role": "user", "content": f"{number}. Summarise: " + "a fox and a dog met. " * (words // 6)}
                ],
                "max_tokens": max_tokens,
                "temperature": 0,
            },
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Application]:
    application = Application(tmp_path_factory.mktemp("state"))
    try:
        # Traced is what a client samples, and nothing else.
        application.up(CONSERVE_TRACING__OTLP_ENDPOINT=collector.url, CONSERVE_TRACING__SAMPLE_RATIO="0")
        yield application
    finally:
        application.stack.down(print)
    assert application.processes() == []
    assert not embedded.is_running(application.state_dir)
