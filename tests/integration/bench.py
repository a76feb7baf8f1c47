"""A service, a keeper whose clock the test moves, and a fake replica."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Any, Literal

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.batch import Batch
from conserve.jobs.claims import ClaimedRequest, ResultRef
from conserve.jobs.files import FileStore
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from conserve.jobs.results import FinishedRequest, ResultWriter, format_output
from conserve.jobs.service import JobService

URL = "/v1/chat/completions"
MODEL = "model-a"
LONG_MS = 60_000
"""Longer than any pause of the machine: a lease that lasts until a test ends it."""
TIMEOUT_S = 60.0
"""How long tests wait for what should come soon: on a slow machine it does not."""


def make_line(custom_id: Any, **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"say {custom_id}"}]}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body} | changes


def make_input(count: int) -> bytes:
    return b"".join(json.dumps(make_line(f"id-{i}")).encode() + b"\n" for i in range(1, count + 1))


async def stream(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


class Bench:
    def __init__(self, redis: Redis, store: FileStore, settings: Settings) -> None:
        self.redis, self.store, self.settings = redis, store, settings
        self.now_s = 1_000.0
        self.queue = JobQueue(redis, settings)
        self.service = JobService(redis, store, settings, [MODEL])
        self.keeper = self.new_keeper()

    @property
    def lease_s(self) -> float:
        """Seconds for which a keeper leaves leases alone, and a little more."""
        return self.settings.jobs.lease_ms / 1000 + 0.01

    def new_keeper(self, store: FileStore | None = None) -> BatchKeeper:
        return BatchKeeper(self.redis, store or self.store, self.settings, [MODEL], clock=lambda: self.now_s)

    async def submit(self, content: bytes, window: str = "24h") -> str:
        file = await self.service.upload_file("in.jsonl", "batch", stream(content))
        return (await self.service.create_batch(file.id, URL, window, {"k": "v"})).id

    async def start(self, count: int, window: str = "24h") -> str:
        """A batch in progress."""
        batch_id = await self.submit(make_input(count), window)
        await self.keeper.run_once()
        assert (await self.get(batch_id)).status == "in_progress"
        return batch_id

    async def get(self, batch_id: str) -> Batch:
        return await self.service.get_batch(batch_id)

    async def read(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        content = await self.service.file_content(file_id)
        data = b"".join([chunk async for chunk in content.chunks])
        assert len(data) == content.file.bytes
        return [json.loads(line) for line in data.splitlines()]

    async def end(self, batch_id: str) -> tuple[Batch, list[str], dict[str, str]]:
        """Lets the keeper end a batch; returns it, the custom ids of its output, and id -> code of its error file."""
        for _ in range(6):
            await self.keeper.run_once()
        batch = await self.get(batch_id)
        assert batch.status.ended
        output = [line["custom_id"] for line in await self.read(batch.output_file_id)]
        errors = {}
        for line in await self.read(batch.error_file_id):
            assert line["custom_id"] not in errors
            errors[line["custom_id"]] = line["error"]["code"] if line["error"] else "response"
        assert len(set(output)) == len(output)
        assert not set(output) & errors.keys()
        assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(errors))
        return batch, output, errors

    async def write(
        self, claimed: list[ClaimedRequest], kind: Literal["output", "error"] = "output"
    ) -> list[ResultRef]:
        """Stores the result lines of claimed requests in one segment of their own."""
        refs, content = [], b""
        segment = f"w{secrets.token_hex(8)}-1"
        for request in claimed:
            line = await self.answer(request)
            refs.append(ResultRef(request.line, request.fence, kind, segment, len(content), len(line), 7, 3))
            content += line
        await self.store.write_segment(claimed[0].batch_id, segment, content)
        return refs

    async def answer(self, request: ClaimedRequest) -> bytes:
        batch = await self.get(request.batch_id)
        text = json.loads(await self.store.read_range(batch.input_file_id, request.offset, request.length))
        body = {"echo": text["body"]["messages"][0]["content"], "fence": request.fence}
        return format_output(request.batch_id, request.line, text["custom_id"], 200, "req-1", body)

    async def finish(self, claimed: list[ClaimedRequest]) -> None:
        """Commits the results of claimed requests."""
        writer = ResultWriter(self.queue, self.store, f"w{secrets.token_hex(8)}")
        for one in claimed:
            content = await self.answer(one)
            writer.add(FinishedRequest(one.batch_id, one.line, one.fence, "output", content, 7, 3))
        report = await writer.flush()
        assert not report.failed
        assert not report.refused
        assert report.accepted == {claimed[0].batch_id: {one.line for one in claimed}}

    async def lapse(self) -> None:
        """Waits until leases of 1 ms have run out."""
        await asyncio.sleep(0.01)
