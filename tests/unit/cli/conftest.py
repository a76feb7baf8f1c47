from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from conserve.launch.ports import find_free_ports

BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-in",
    "completion_window": "24h",
    "created_at": 1,
    "status": "completed",
    "output_file_id": "file-out",
    "request_counts": {"total": 2, "completed": 2, "failed": 0},
}
UPLOADED = {
    "id": "file-in",
    "object": "file",
    "bytes": 3,
    "created_at": 1,
    "filename": "in.jsonl",
    "purpose": "batch",
    "status": "processed",
}


@dataclass
class FakeApplication:
    """Answers by method and path: a status, and a JSON value or text. `calls` has what was asked."""

    base_url: str = ""
    answers: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def application() -> Iterator[FakeApplication]:
    fake = FakeApplication()
    fake.answers = {
        ("POST", "/v1/files"): (200, UPLOADED),
        ("POST", "/v1/batches"): (200, BATCH | {"status": "validating", "request_counts": {}}),
        ("GET", "/v1/batches/batch_1"): (200, BATCH),
        ("POST", "/v1/batches/batch_1/cancel"): (200, BATCH | {"status": "cancelling"}),
        ("GET", "/v1/files/file-out/content"): (200, '{"custom_id": "a"}\n'),
    }

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fake.calls.append((self.command, self.path, body))
            status, content = fake.answers.get((self.command, self.path), (404, {"error": {"message": "none such"}}))
            kind = "text/plain" if isinstance(content, str) else "application/json"
            if isinstance(content, str) and content.startswith("data:"):
                kind = "text/event-stream"
            payload = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = answer  # noqa: N815 - names of http.server

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.base_url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def silent_url() -> str:
    """Nothing listens there."""
    return f"http://127.0.0.1:{find_free_ports(1)[0]}"
