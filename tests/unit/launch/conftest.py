from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class FakeServe:
    """Serve's REST API, and `/health` of what it serves. `calls` has the methods that change something."""

    url: str = ""
    port: int = 0
    applications: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployed_status: str = "RUNNING"
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    put_status: int = 200
    delete_status: int = 200
    keeps_applications: bool = False
    calls: list[str] = field(default_factory=list)

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
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
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
