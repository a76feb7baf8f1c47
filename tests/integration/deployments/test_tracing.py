"""One trace through the real front, Serve's router and a replica, and one of a batch, as a collector gets them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import grpc
import httpx
import pytest

from conserve.config import Settings, load_settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs.api_keys import Scope
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.key_desk import use_keys
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from conserve.telemetry.otel_spans import OtelTracer, make_exporter
from conserve.telemetry.spans import NO_TRACER, use_tracer
from deployments.protos import conserve_pb2 as pb
from deployments.protos import conserve_pb2_grpc as stubs
from tests.integration.bench import URL
from tests.integration.conftest import run_embedded
from tests.integration.deployments.conftest import WAIT_S, Front, read_events, running_front
from tests.integration.deployments.light_application import MODEL
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.traces import Collector, collecting

# The application starts within the first test; on a busy machine that takes minutes.
pytestmark = pytest.mark.timeout(600)

PROMPT = "a prompt that no span quotes"
KEY = "sk-a-key-that-no-span-quotes"
CLIENT_SPAN = "b7ad6b7169203331"
SERVER, INTERNAL, CONSUMER = 2, 1, 5
"""Kinds of spans, as OTLP has them."""


class Traced(NamedTuple):
    front: Front
    collector: Collector
    settings: Settings


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with (
        pytest.MonkeyPatch.context() as environment,
        collecting() as collector,
        contextmanager(run_embedded)(tmp_path_factory.mktemp("redis")) as redis_url,
    ):
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        args = {
            "jobs": {
                "redis_url": redis_url,
                "files_url": str(tmp_path_factory.mktemp("files")),
                "commit_period_ms": 10,
            },
            "harvest": {"report_period_ms": 20},
            "tracing": {"otlp_endpoint": collector.url, "sample_ratio": 0.0},  # Unless the client samples.
        }
        with running_front(1, args) as front:
            yield Traced(front, collector, load_settings({"model": {"name": MODEL}, **args}, {}))


def begin_trace() -> tuple[str, str]:
    """The id of a client's trace, and the header that continues it."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{CLIENT_SPAN}-01"


def wait_for_chat(collector: Collector, trace: str, server: str) -> None:
    """Checks the spans of a chat."""
    spans = collector.wait_for(lambda span: span.trace == trace, 3)
    (front,) = (span for span in spans if span.kind == SERVER)
    (routed,) = (span for span in spans if span.name == "route")
    (engine,) = (span for span in spans if span.name == f"chat {MODEL}")
    assert (front.name, front.parent, routed.parent, engine.parent) == (server, CLIENT_SPAN, front.id, front.id)
    assert front.resource["conserve.deployment"] == routed.resource["conserve.deployment"] == "Ingress"
    assert front.resource["service.instance.id"] == routed.resource["service.instance.id"]
    replica = engine.resource["service.instance.id"]
    assert routed.attributes["conserve.route.replica"] == replica != front.resource["service.instance.id"]
    assert routed.attributes["conserve.route.rule"] in ("slo", "serve")
    assert engine.attributes["conserve.engine.queue_time_s"] == 0.0
    for span in (front, engine):
        assert span.attributes["gen_ai.request.model"] == MODEL
        assert span.attributes["conserve.outcome"] == "answered"
        assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
        assert not span.failed


def test_a_chat_over_http_is_one_trace(traced: Traced) -> None:
    trace, header = begin_trace()
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    headers = {"traceparent": header, "authorization": f"Bearer {KEY}"}
    url = f"{traced.front.url}/v1/chat/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=WAIT_S)
    assert read_events(answer)[0]["choices"][0]["delta"]["content"] in traced.front.replicas
    wait_for_chat(traced.collector, trace, "POST /v1/chat/completions")
    for span in traced.collector.find(lambda span: span.trace == trace and span.name != "route"):
        assert span.events == ["first chunk"]
        # Counted from just before the span begins, by another clock.
        assert 0 <= span.attributes["gen_ai.response.time_to_first_chunk"] <= span.duration_s + 0.1


def test_a_chat_over_grpc_is_one_trace(traced: Traced) -> None:
    trace, header = begin_trace()
    request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=PROMPT)]))
    with grpc.insecure_channel(traced.front.grpc_address) as channel:
        generation = stubs.GenerationServiceStub(channel)
        generation.Generate(request, timeout=WAIT_S, metadata=[("traceparent", header)])
    wait_for_chat(traced.collector, trace, "conserve.v1.GenerationService/Generate")


def test_what_is_refused_is_said_to_be(traced: Traced) -> None:
    trace, header = begin_trace()
    body = {"model": "nobody", "messages": [{"role": "user", "content": PROMPT}]}
    url = f"{traced.front.url}/v1/chat/completions"
    assert httpx.post(url, json=body, headers={"traceparent": header}, timeout=WAIT_S).status_code == 404
    (span,) = traced.collector.wait_for(lambda span: span.trace == trace)
    assert (span.attributes["conserve.outcome"], span.attributes["error.type"]) == ("refused", "404")
    assert not span.failed


async def test_the_attempts_of_a_batch_lead_to_who_has_handed_it_in(traced: Traced) -> None:
    trace, header = begin_trace()
    settings, count = traced.settings, 3
    async with httpx.AsyncClient(base_url=traced.front.url, timeout=WAIT_S) as client:

        async def is_connected() -> bool:
            return (await client.get("/v1/batches")).status_code == 200

        await wait_until(is_connected)
        files = {"file": ("in.jsonl", make_lines(count))}
        file_id = (await client.post("/v1/files", files=files, data={"purpose": "batch"})).json()["id"]
        asked = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
        answer = await client.post("/v1/batches", json=asked, headers={"traceparent": header})
    assert answer.status_code == 200, answer.text
    batch_id = answer.json()["id"]
    assert "traceparent" not in answer.json()
    (created,) = traced.collector.wait_for(lambda span: span.trace == trace)
    assert (created.name, created.kind, created.parent) == ("create batch", SERVER, CLIENT_SPAN)
    assert created.attributes["conserve.batch.id"] == batch_id

    tracer = OtelTracer(make_exporter(traced.collector.url, "grpc"), 1.0)
    use_tracer(tracer)
    try:
        await work_off(settings, batch_id)
    finally:
        use_tracer(NO_TRACER).close(WAIT_S)
    attempts = traced.collector.wait_for(lambda span: span.attributes.get("conserve.batch.id") == batch_id, count + 1)
    attempts = [span for span in attempts if span.name == f"attempt {MODEL}"]
    assert sorted(span.attributes["conserve.batch.line"] for span in attempts) == [1, 2, 3]
    assert len({span.trace for span in attempts} | {trace}) == count + 1, "each of them has a trace of its own"
    for span in attempts:
        assert (span.kind, span.parent, span.links) == (CONSUMER, "", [(trace, created.id)])
        assert (span.attributes["conserve.outcome"], span.attributes["conserve.attempt"]) == ("output", 1)
        assert span.attributes["gen_ai.usage.output_tokens"] == 3


def make_lines(count: int) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    lines = [{"custom_id": f"{i}", "method": "POST", "url": URL, "body": body} for i in range(count)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def work_off(settings: Settings, batch_id: str) -> None:
    """What the controller and a replica do for the batch."""
    redis = await connect(settings)
    store, queue = FileStore(settings.files_url), JobQueue(redis, settings)
    board = CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms)
    controller = HarvestController(board, JobQueue(redis, settings), settings.harvest)
    harvester = Harvester(FakeEngine(), queue, store, board, settings, "r1", MODEL)

    async def is_done() -> bool:
        batch = await queue.get(batch_id)
        return batch is not None and batch.request_counts.completed == batch.request_counts.total > 0

    try:
        await BatchKeeper(redis, store, settings, [MODEL]).run_once()
        async with running(controller.run()), running(harvester.run()):
            await wait_until(is_done)
    finally:
        await redis.aclose()


def test_a_request_that_nobody_samples_leaves_nothing(traced: Traced) -> None:
    before = len(traced.collector.find(lambda span: span.name == "route"))
    read_events(traced.front.chat("not sampled"))
    trace, header = begin_trace()
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    url = f"{traced.front.url}/v1/chat/completions"
    httpx.post(url, json=body, headers={"traceparent": header}, timeout=WAIT_S)
    wait_for_chat(traced.collector, trace, "POST /v1/chat/completions")
    # Spans of a process are sent in the order in which they end.
    assert len(traced.collector.find(lambda span: span.name == "route")) == before + 1


def test_no_span_has_a_prompt_or_a_key(traced: Traced) -> None:
    raw = b"".join(traced.collector.raw)
    assert MODEL.encode() in raw
    assert PROMPT.encode() not in raw
    assert KEY.encode() not in raw


def test_a_key_that_is_made_meanwhile_is_needed_from_then_on(traced: Traced) -> None:
    """Last, and here, since this application has a Redis."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}

    def chat(key: str | None) -> int:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.post(f"{traced.front.url}{URL}", json=body, headers=headers, timeout=WAIT_S).status_code

    def generate(key: str | None) -> str:
        request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=PROMPT)]))
        metadata = [] if key is None else [("authorization", f"Bearer {key}")]
        with grpc.insecure_channel(traced.front.grpc_address) as channel:
            try:
                stubs.GenerationServiceStub(channel).Generate(request, timeout=WAIT_S, metadata=metadata)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    assert (chat(None), generate(None)) == (200, "OK")
    scopes = {Scope.ONLINE}
    key = asyncio.run(use_keys(traced.settings, lambda store: store.create("ci", "a", scopes=scopes))).key
    traced.front.wait_until(lambda: chat(None) == 401, "the front does not hear of the key")
    assert (chat(key), generate(key)) == (200, "OK")
    assert (chat("sk-other"), generate("sk-other"), generate(None)) == (401, "UNAUTHENTICATED", "UNAUTHENTICATED")
    answer = httpx.get(f"{traced.front.url}/v1/batches", headers={"authorization": f"Bearer {key}"}, timeout=WAIT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    asyncio.run(use_keys(traced.settings, lambda store: store.revoke(["ci"])))
    traced.front.wait_until(lambda: chat(key) == 401, "the front does not hear that the key was revoked")
    assert generate(key) == "UNAUTHENTICATED"
    assert key.encode() not in b"".join(traced.collector.raw)
