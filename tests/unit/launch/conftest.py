from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.jobs.errors import UnsuitableServerError
from conserve.launch import stack as stack_module
from conserve.launch.processes import STACK_ID_VARIABLE
from conserve.launch.ray_head import RayHead
from conserve.launch.record import StackRecord, write_record
from conserve.launch.stack import LocalStack


@dataclass
class FakeServe:
    """Serve's REST API, and `/health` of what it serves.

    `calls` has the methods that change something, `received` what was deployed, as text.
    """

    url: str = ""
    port: int = 0
    applications: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployed_status: str = "RUNNING"
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    put_status: int = 200
    delete_status: int = 200
    keeps_applications: bool = False
    calls: list[str] = field(default_factory=list)
    received: str = ""

    def run(self, name: str, import_path: str | None = "deployments.app:build_app") -> None:
        """Has an application run."""
        config = None if import_path is None else {"import_path": import_path}
        self.applications[name] = {"status": "RUNNING", "message": "", "deployed_app_config": config}


@pytest.fixture
def serve() -> Iterator[FakeServe]:
    fake = FakeServe()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {} if self.path == "/health" else {"applications": fake.applications})

        def do_PUT(self) -> None:
            fake.calls.append("PUT")
            fake.received = self.rfile.read(int(self.headers["Content-Length"])).decode()
            content = json.loads(fake.received)
            if fake.put_status == 200:
                fake.applications = {}
                for app in content["applications"]:
                    fake.run(app["name"], app["import_path"])
                    fake.applications[app["name"]]["status"] = fake.deployed_status
                    fake.applications[app["name"]]["deployments"] = fake.deployments
            self.reply(fake.put_status, {})

        def do_DELETE(self) -> None:
            fake.calls.append("DELETE")
            if fake.delete_status == 200 and not fake.keeps_applications:
                fake.applications = {}
            self.reply(fake.delete_status, {})

        def reply(self, status: int, content: Any) -> None:
            payload = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.port = server.server_port
    fake.url = f"http://127.0.0.1:{fake.port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join(10)


SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


class World:
    """A state folder, and what runs for it."""

    def __init__(self, folder: Path, serve: Any) -> None:
        self.state, self.serve = folder / "state", serve
        self.state.mkdir()
        self.config = folder / "serve_config.yaml"
        self.configure()
        self.redis_runs = False
        self.redis_trouble: str | UnsuitableServerError | None = None
        self.started: list[subprocess.Popen[bytes]] = []
        self.head_environ: Mapping[str, str] = {}
        self.head_error: BaseException | None = None

    def configure(self, **sections: Any) -> None:
        """Writes the configuration, with further sections."""
        ours = {"name": "conserve", "import_path": "deployments.app:build_app"}
        self.config.write_text(yaml.safe_dump({"applications": [ours], **sections}))

    def configure_args(self, **args: Any) -> None:
        """Writes the configuration, with settings."""
        ours = {"name": "conserve", "import_path": "deployments.app:build_app", "args": args}
        self.config.write_text(yaml.safe_dump({"applications": [ours]}))

    def stack(self, address: str | None = None, **environ: str) -> LocalStack:
        environ = {"RAY_AUTH_TOKEN": "t", **environ}
        return LocalStack(self.config, self.state, environ, http_port=self.serve.port, ray_dashboard_url=address)

    def start_process(self, stack_id: str) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen(SLEEP, env={STACK_ID_VARIABLE: stack_id}))
        return self.started[-1]

    def start_head(self, state_dir: Path, environ: Mapping[str, str]) -> int:
        self.head_environ = environ
        return self.start_process(environ[STACK_ID_VARIABLE]).pid

    def wait_for_head(self, pid: int, state_dir: Path, environ: Mapping[str, str]) -> RayHead:
        if self.head_error is not None:
            raise self.head_error
        return RayHead(pid, "127.0.0.1:1", self.serve.url, state_dir)

    def start_redis(self, state_dir: Path) -> str:
        self.redis_runs = True
        return "unix:///x"

    def stop_redis(self, state_dir: Path) -> bool:
        self.redis_runs = False
        return True

    def check_redis(self, settings: Settings) -> str | None:
        if isinstance(self.redis_trouble, UnsuitableServerError):
            raise self.redis_trouble
        return self.redis_trouble

    def record(self, **values: Any) -> StackRecord:
        values = {"stack_id": uuid.uuid4().hex, "application": "conserve", "base_url": "http://b"} | values
        record = StackRecord(**values)
        write_record(self.state, record)
        return record


@pytest.fixture
def world(tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, serve)
    monkeypatch.setattr(stack_module, "start_ray_head", world.start_head)
    monkeypatch.setattr(stack_module, "wait_for_ray_head", world.wait_for_head)
    monkeypatch.setattr(stack_module, "is_free", lambda port, host: True)
    monkeypatch.setattr(stack_module, "check_server", world.check_redis)
    monkeypatch.setattr(stack_module, "check_start", lambda settings, on_progress: None)
    monkeypatch.setattr(embedded, "ensure_running", world.start_redis)
    monkeypatch.setattr(embedded, "is_running", lambda state_dir: world.redis_runs)
    monkeypatch.setattr(embedded, "stop", world.stop_redis)
    monkeypatch.setattr("conserve.launch.teardown.POLL_PERIOD_S", 0.02)
    yield world
    for process in world.started:
        process.kill()
        process.wait(60)
