"""An OpenAI-compatible server that works a batch off in memory, with a latency and failures of a test's choice."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import PlainTextResponse, StreamingResponse

from tests.integration.bench import TIMEOUT_S

MODEL = "fake-135m"


@dataclass
class FakeServer:
    """What a test may set, and what it may look at afterwards."""

    request_s: float = 0.02
    token_s: float = 0.002
    chats_until_answers: int = 0
    with_status: bool = True
    fail_chats: bool = False
    fail_custom_ids: set[str] = field(default_factory=set)
    drop_custom_ids: set[str] = field(default_factory=set)
    refuse_batch: bool = False
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    busy_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)
    base_url: str = ""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A running fake server, on a free port."""
    fake = FakeServer()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    fake.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    uvicorn_server = uvicorn.Server(uvicorn.Config(make_app(fake), log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield fake
    uvicorn_server.should_exit = True
    thread.join(timeout=TIMEOUT_S)
    listener.close()
    assert not thread.is_alive()


def make_app(fake: FakeServer) -> FastAPI:
    app = FastAPI()
    tasks: set[asyncio.Task[None]] = set()
    chats = 0
    enough = asyncio.Event()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "test"}]}

    @app.get("/conserve/v1/status")
    async def status() -> dict[str, Any]:
        if not fake.with_status:
            raise HTTPException(404)
        replica = {
            "replica_id": "r1",
            "window": 8,
            "online_running": 1,
            "online_waiting": 0,
            "offline_running": 4,
            "kv_usage": 0.25,
            "offline_prompt_tokens": round(17_500 * fake.busy_s),
            "offline_output_tokens": round(2_000 * fake.busy_s),
            "offline_busy_s": fake.busy_s,
            "engine_cpu_s": 0.5 * (time.monotonic() - fake.started_s) + fake.busy_s,
        }
        return {"replicas": [replica], "batches": []}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        if fake.fail_chats:
            raise HTTPException(503, "overloaded")
        nonlocal chats
        chats += 1
        if chats >= fake.chats_until_answers:
            enough.set()
        await enough.wait()
        return StreamingResponse(stream(body["max_tokens"]), media_type="text/event-stream")

    async def stream(max_tokens: int) -> AsyncIterator[str]:
        def event(**fields: Any) -> str:
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": MODEL, **fields}
            return f"data: {json.dumps(chunk)}\n\n"

        yield event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for _ in range(max_tokens):
            await asyncio.sleep(fake.token_s)
            yield event(choices=[{"index": 0, "delta": {"content": "word "}, "finish_reason": None}])
        yield event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
        usage = {"prompt_tokens": 20, "completion_tokens": max_tokens, "total_tokens": 20 + max_tokens}
        yield event(choices=[], usage=usage)
        yield "data: [DONE]\n\n"

    @app.post("/v1/files")
    async def upload(file: UploadFile) -> dict[str, Any]:
        file_id = f"file-{len(fake.files)}"
        fake.files[file_id] = await file.read()
        return {"id": file_id, "object": "file", "bytes": 1, "created_at": 0, "filename": "f", "purpose": "batch",
                "status": "processed"}  # fmt: skip

    @app.get("/v1/files/{file_id}/content")
    async def content(file_id: str) -> PlainTextResponse:
        return PlainTextResponse(fake.files[file_id])

    @app.post("/v1/batches")
    async def create(request: Request) -> dict[str, Any]:
        body = await request.json()
        batch = {"id": f"batch_{len(fake.batches)}", "object": "batch", "created_at": 0, "status": "validating",
                 "request_counts": {"total": 0, "completed": 0, "failed": 0}, **body}  # fmt: skip
        fake.batches[batch["id"]] = batch
        task = asyncio.create_task(work_off(batch))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return batch

    @app.get("/v1/batches/{batch_id}")
    async def retrieve(batch_id: str) -> dict[str, Any]:
        return fake.batches[batch_id]

    @app.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str) -> dict[str, Any]:
        fake.batches[batch_id]["status"] = "cancelling"
        return fake.batches[batch_id]

    async def work_off(batch: dict[str, Any]) -> None:
        lines = [json.loads(line) for line in fake.files[batch["input_file_id"]].splitlines()]
        counts = batch["request_counts"]
        await asyncio.sleep(fake.request_s)
        if fake.refuse_batch:
            error = {"code": "model_not_found", "message": "There is no such model.", "param": "body.model", "line": 1}
            batch["errors"] = {"object": "list", "data": [error]}
            batch["status"] = "failed"
            return
        counts["total"] = len(lines)
        if batch["status"] == "validating":  # And not cancelled meanwhile.
            batch["status"] = "in_progress"
        output, errors = [], []
        for number, line in enumerate(lines):
            if number and batch["status"] == "cancelling":  # One is done, however soon that comes.
                break
            await asyncio.sleep(fake.request_s)
            fake.busy_s += fake.request_s
            custom_id = line["custom_id"]
            if custom_id in fake.fail_custom_ids:
                counts["failed"] += 1
                errors.append({"custom_id": custom_id, "response": None, "error": {"code": "x", "message": "too long"}})
                continue
            counts["completed"] += 1
            if custom_id not in fake.drop_custom_ids:
                body = {
                    "choices": [{"message": {"role": "assistant", "content": f"A summary of {custom_id}."}}],
                    "usage": {"prompt_tokens": 350, "completion_tokens": 40},
                }
                output.append({"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None})
        for name, results in (("output_file_id", output), ("error_file_id", errors)):
            if results:
                batch[name] = f"file-{len(fake.files)}"
                fake.files[batch[name]] = "".join(json.dumps(result) + "\n" for result in results).encode()
        batch["status"] = "cancelled" if batch["status"] == "cancelling" else "completed"

    return app
