"""The front with everything behind it but Serve and replicas, and a tenant that has one of each kind of thing."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.messages import CapacityReport
from conserve.jobs.api_keys import EVERYDAY, ApiKeyStore, Scope
from conserve.jobs.files import FileStore
from conserve.jobs.flex import FlexService
from conserve.jobs.key_ring import KeyRing
from conserve.jobs.keys import Keys
from conserve.jobs.queue import JobQueue
from conserve.jobs.service import JobService
from conserve.jobs.tenants import find_tenants
from conserve.jobs.validation import make_rules
from conserve.telemetry.metric import NO_RECORDER
from deployments.app import build_fastapi_app
from deployments.console import feed
from deployments.console.feed import ConsoleFeed
from deployments.ingress import ENDPOINTS, ConServeIngress
from tests.integration.bench import LONG_MS, MODEL, URL, Bench, make_line, stream
from tests.integration.harvest.conftest import running, wait_until

SECRET = "plover"
"""In all that the tenant has: prompts, names, metadata, answers."""
OWNER, OTHER = "owner", "other"


class _Ingress(ConServeIngress):
    """Without what Serve awaits at its end."""

    def __del__(self) -> None:
        pass


class World:
    """The application, keys by what is the matter with them, and what the tenant `owner` has, by kind of id."""

    def __init__(self, app: FastAPI, front: ConServeIngress, bench: Bench) -> None:
        self.app = app
        self.front = front
        self.bench = bench
        self.keys: dict[str, str | None] = {}
        self.ids: dict[str, str] = {}

    async def snapshot(self) -> str:
        """All that the owner has, as it is now."""
        service = self.bench.service
        batches = [await service.get_batch(self.ids[name]) for name in ("live batch", "ended batch", "flex batch")]
        files = (await service.list_files()).data
        contents = [line for one in files for line in await self.bench.read(one.id)]
        return json.dumps([contents, *(one.model_dump(mode="json") for one in [*batches, *files])])


@asynccontextmanager
async def make_world(
    redis: Redis, store: FileStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(feed, "LONGEST_STREAM_S", 0.05)
    monkeypatch.setattr(feed, "BEAT_S", 0.02)
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)
    front = make_front(redis, store, settings, monkeypatch)
    app = build_fastapi_app(settings)
    make_fastapi_ingress(ConServeIngress, endpoint_map=ENDPOINTS, app=app)
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=front))
    bench = Bench(redis, store, settings)
    bench.service = front.jobs.for_tenant(OWNER)
    world = World(app, front, bench)
    await make_keys(world, ApiKeyStore(redis, settings.jobs.namespace))
    async with running(front.flex.run()):
        waiting = asyncio.create_task(front.flex.answer(OWNER, URL, ask(SECRET)))
        try:
            await make_things(world)
            yield world
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting


def make_front(redis: Redis, store: FileStore, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> ConServeIngress:
    """As its constructor would, with answers that come at once in place of replicas."""

    async def answer(self: Any, body: Any, request: Request) -> Response:
        if getattr(body, "stream", False):
            chunk = {"id": "x", "model": body.model, "choices": [{"index": 0, "delta": {"content": "hello"}}]}
            return StreamingResponse(iter([f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"]))
        return JSONResponse({"id": "x", "model": body.model, "choices": []})

    for name in ("chat", "completions", "embeddings"):
        monkeypatch.setattr(OpenAiIngress, name, answer)

    async def is_ready() -> bool:
        return True

    front: Any = _Ingress.__new__(_Ingress)
    front._settings, front._recorder, front._models = settings, NO_RECORDER, [MODEL]
    front._model_cards, front._lora_paths, front._probe = {}, {}, SimpleNamespace(is_ready=is_ready)
    front._ring = KeyRing.following(settings, listens_on_loopback=True)
    front._tenants = find_tenants(settings, front._ring)
    front._rules, front._open = make_rules(settings.requests), 0
    front._queue = JobQueue(redis, settings)
    front._board = CapacityBoard(redis, settings.jobs.namespace, LONG_MS)
    front._jobs = JobService(redis, store, settings, [MODEL], front._tenants)
    front._flex = FlexService(redis, store, settings, [MODEL], front._tenants)
    front._console = ConsoleFeed(front._find_sources, settings, front._tenants, period_s=0.01)
    found: ConServeIngress = front
    return found


async def make_keys(world: World, store: ApiKeyStore) -> None:
    async def make(name: str, tenant: str, scopes: frozenset[Scope] = EVERYDAY, **more: Any) -> None:
        world.keys[name] = (await store.create(name, tenant, scopes=scopes, **more)).key

    ring: KeyRing = world.front._ring
    await make("owner", OWNER)
    await make("other", OTHER)
    await make("online-only", OWNER, frozenset({Scope.ONLINE}))
    await make("offline-only", OWNER, frozenset({Scope.OFFLINE}))
    await make("admin-only", OTHER, frozenset({Scope.ADMIN}))
    await make("expired", OWNER, expires_after_s=0)
    await make("revoked", OWNER)
    await ring.renew(store)
    assert world.front._tenants.admit(f"Bearer {world.keys['revoked']}").tenant == OWNER
    await store.revoke(["revoked"])
    await ring.renew(store)
    owners = next(one for one in await store.read() if one.name == "owner")
    world.keys |= {"unknown": "sk-unknown", "digest": owners.digest, "empty": "", "none": None}


async def make_things(world: World) -> None:
    bench, ids = world.bench, world.ids
    flex = Keys(bench.settings.jobs.namespace).flex

    async def has_flex() -> bool:
        found = await bench.redis.zrange(flex, 0, -1)
        return bool(found) and await bench.queue.get(found[0]) is not None

    await wait_until(has_flex)
    (ids["flex batch"],) = await bench.redis.zrange(flex, 0, -1)
    ids["flex file"] = (await bench.get(ids["flex batch"])).input_file_id
    ids["live batch"], ids["live input"] = await submit(bench)
    ids["ended batch"], ids["ended input"] = await submit(bench)
    ids["spare file"] = (await bench.service.upload_file(f"{SECRET}.jsonl", "batch", stream(make_lines()))).id
    await bench.keeper.run_once()
    await bench.finish((await bench.queue.claim(ids["live batch"], 2, LONG_MS, "r"))[:1])
    kinds: list[tuple[Literal["output", "error"], int]] = [("output", 2), ("error", 1)]
    for kind, number in kinds:
        refs = await bench.write(await bench.queue.claim(ids["ended batch"], number, LONG_MS, "r"), kind)
        await bench.queue.commit(ids["ended batch"], refs)
        ids[f"segment of {kind}"] = refs[0].segment
    batch, output, errors = await bench.end(ids["ended batch"])
    assert (len(output), len(errors)) == (2, 1)
    ids["output file"], ids["error file"] = str(batch.output_file_id), str(batch.error_file_id)
    ids["result"] = (await bench.read(batch.output_file_id))[0]["id"]
    ids["tenant"], ids["key"] = OWNER, "online-only"
    report = {"replica_id": "r1", "model": MODEL, "state": "serving", "window": 3, "stopped": (ids["live batch"],)}
    await world.front._board.publish_report(CapacityReport.model_validate(report))
    # Of another tenant, too, there is something: an empty list would say little.
    others = world.front.jobs.for_tenant(OTHER)
    file = await others.upload_file("own.jsonl", "batch", stream(make_lines("own")))
    await others.create_batch(file.id, URL, "24h")


async def submit(bench: Bench) -> tuple[str, str]:
    file = await bench.service.upload_file(f"{SECRET}.jsonl", "batch", stream(make_lines()))
    return (await bench.service.create_batch(file.id, URL, "24h", {SECRET: SECRET})).id, file.id


def make_lines(word: str = SECRET) -> bytes:
    return b"".join(json.dumps(make_line(f"{word}-{number}")).encode() + b"\n" for number in range(3))


def ask(content: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}


def nobodys_ids() -> list[str]:
    """Ids that could be, and are not."""
    return [f"batch_{uuid.uuid4().hex}", f"file-{uuid.uuid4().hex}"]


def guessed_ids(value: str) -> list[str]:
    """What somebody who knows an id, or part of it, may try instead."""
    digits = value.rpartition("_")[2].rpartition("-")[2]
    return [value.upper(), f" {value}", f"{value}\n", f"{value}\x00", f"../{value}", f"{value}:results", f"{{{value}}}",
            digits, f"batch_{digits}", f"file-{digits}", value[:-1], f"{value}/content", "*", "[a-z]*"]  # fmt: skip
