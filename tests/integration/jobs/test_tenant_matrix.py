"""Every route and every RPC with every kind of id of a tenant and every kind of key: nobody gets at what others have.

An id of somebody else is answered as one that does not exist; without the right key the answer is the same whatever is
asked for. A new route, or RPC, fails the test until it has an entry here.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.files import FileStore
from deployments.protos import conserve_pb2 as pb
from tests.grpc_server import read_details, serve_methods
from tests.integration.bench import TIMEOUT_S, URL
from tests.integration.conftest import run_embedded
from tests.integration.jobs.tenant_world import SECRET, World, ask, guessed_ids, make_world, nobodys_ids

UNKNOWN_KEYS: Final = ("unknown", "digest", "empty", "expired", "revoked")
LACKING: Final = {
    "offline": ("online-only", "admin-only"),
    "online": ("offline-only", "admin-only"),
    "any": (),
    "open": (),
}
"""Keys that are not good for it."""


class Probe(NamedTuple):
    """A request into which an id is put, and what a key has to be good for; `fixed` ones have no place for an id.

    `mine` are the kinds of id with which its owner gets something: then the probe shows what there is to be seen.
    """

    scope: str
    make: Callable[[str], Any]
    mine: tuple[str, ...] = ()
    fixed: bool = False


FILES: Final = ("live input", "ended input", "spare file", "output file", "error file", "flex file")
BATCHES: Final = ("live batch", "ended batch", "flex batch")


def path(template: str, **more: Any) -> Callable[[str], dict[str, Any]]:
    return lambda value: {"path": re.sub(r"\{[^}]+\}", quote(value, safe=""), template), **more}


def query(place: str, **more: Any) -> Callable[[str], dict[str, Any]]:
    return lambda value: {"path": place, "params": {"after": value, **more}}


def body(place: str, make: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    return lambda value: {"path": place, "json": make(value)}


def upload(value: str) -> dict[str, Any]:
    return {"path": "/v1/files", "files": {"file": (value, b"{}")}, "data": {"purpose": "batch"}}


def upload_for(value: str) -> dict[str, Any]:
    return {"path": "/v1/files", "files": {"file": ("x", b"{}")}, "data": {"purpose": value}}


def on_batch(place: str, **more: Any) -> Probe:
    return Probe("offline", path(f"/v1/batches/{{id}}{place}", **more))


def opened(place: str) -> list[Probe]:
    return [Probe("open", path(place), fixed="{" not in place)]


ROUTES: Final[dict[tuple[str, str], list[Probe]]] = {
    ("GET", "/v1/files"): [
        Probe("offline", path("/v1/files"), ("key",), fixed=True),
        Probe("offline", query("/v1/files"), ("spare file", "output file")),
        Probe("offline", query("/v1/files", purpose="batch", order="asc"), ("spare file",)),
        Probe("offline", lambda value: {"path": "/v1/files", "params": {"tenant": value}}),
    ],
    ("GET", "/v1/files/{file_id}"): [Probe("offline", path("/v1/files/{id}"), FILES[:-1])],
    ("DELETE", "/v1/files/{file_id}"): [Probe("offline", path("/v1/files/{id}"))],
    ("GET", "/v1/files/{file_id}/content"): [Probe("offline", path("/v1/files/{id}/content"), FILES[:-1])],
    ("POST", "/v1/batches"): [
        Probe("offline", body("/v1/batches", lambda v: new_batch(v))),
        Probe("offline", body("/v1/batches", lambda v: new_batch(v) | {"endpoint": "/v1/completions"})),
    ],
    ("GET", "/v1/batches"): [
        Probe("offline", path("/v1/batches"), ("key",), fixed=True),
        Probe("offline", query("/v1/batches"), ("ended batch",)),
    ],
    ("GET", "/v1/batches/{batch_id}"): [Probe("offline", path("/v1/batches/{id}"), BATCHES[:2])],
    ("POST", "/v1/batches/{batch_id}"): [on_batch("", json={"priority": 9})],
    ("POST", "/v1/batches/{batch_id}/cancel"): [on_batch("/cancel")],
    ("POST", "/v1/batches/{batch_id}/pause"): [on_batch("/pause")],
    ("POST", "/v1/batches/{batch_id}/resume"): [on_batch("/resume")],
    ("GET", "/v1/batches/{batch_id}/results"): [
        Probe("offline", path("/v1/batches/{id}/results"), BATCHES[:2]),
        *(
            Probe("offline", path("/v1/batches/{id}/results", params={"after": n, "follow": n == 1}))
            for n in (0, 1, 10**6)
        ),
    ],
    ("GET", "/conserve/v1/events"): [Probe("offline", path("/conserve/v1/events"), ("key",), fixed=True)],
    ("GET", "/conserve/v1/status"): [
        Probe("any", path("/conserve/v1/status"), fixed=True),
        Probe("any", lambda value: {"path": "/conserve/v1/status", "params": {"tenant": value}}),
    ],
    ("GET", "/v1/models"): [Probe("any", path("/v1/models"), fixed=True)],
    ("GET", "/v1/models/{model}"): [Probe("any", path("/v1/models/{id}"))],
    ("POST", "/v1/chat/completions"): [
        Probe("online", body(URL, lambda v: ask("hello", model=v))),
        Probe("online", body(URL, lambda v: ask(v, user=v, stream=True))),
        Probe("offline", body(URL, lambda v: ask("hello", model=v, service_tier="flex"))),
        Probe("offline", body(URL, lambda v: ask("hello", model=v, service_tier="flex", stream=True))),
    ],
    ("POST", "/v1/completions"): [
        Probe("online", body("/v1/completions", lambda v: {"model": v, "prompt": v})),
        Probe("offline", body("/v1/completions", lambda v: {"model": v, "prompt": v, "service_tier": "flex"})),
    ],
    ("POST", "/v1/embeddings"): [Probe("online", body("/v1/embeddings", lambda v: {"model": v, "input": v}))],
    ("GET", "/health"): opened("/health"),
    ("GET", "/console"): opened("/console"),
    ("GET", "/console/{name}"): opened("/console/{name}"),
    ("GET", "/docs"): opened("/docs"),
    ("GET", "/docs/oauth2-redirect"): opened("/docs/oauth2-redirect"),
    ("GET", "/openapi.json"): opened("/openapi.json"),
    # Last, since the ids become names of files.
    ("POST", "/v1/files"): [Probe("offline", upload), Probe("offline", upload_for)],
}


def new_batch(file_id: str) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}


def _chat(kind: Any, value: str, **more: Any) -> Any:
    return kind(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=value)]), **more)


RPCS: Final[dict[str, list[Probe]]] = {
    "GenerationService.Generate": [
        Probe("online", lambda v: _chat(pb.GenerateRequest, "x", model=v)),
        Probe("offline", lambda v: _chat(pb.GenerateRequest, "x", model=v, service_tier=pb.SERVICE_TIER_FLEX)),
    ],
    "GenerationService.GenerateStream": [
        Probe("online", lambda v: _chat(pb.GenerateStreamRequest, v, model=v)),
        Probe("offline", lambda v: _chat(pb.GenerateStreamRequest, v, model=v, service_tier=pb.SERVICE_TIER_FLEX)),
    ],
    "BatchService.CreateBatch": [
        Probe("offline", lambda v: pb.CreateBatchRequest(input_file_id=v, endpoint=URL, completion_window="24h")),
    ],
    "BatchService.GetBatch": [Probe("offline", lambda v: pb.GetBatchRequest(batch_id=v), BATCHES[:2])],
    "BatchService.ListBatches": [
        Probe("offline", lambda v: pb.ListBatchesRequest(), ("key",), fixed=True),
        Probe("offline", lambda v: pb.ListBatchesRequest(after=v), ("ended batch",)),
    ],
    "BatchService.CancelBatch": [Probe("offline", lambda v: pb.CancelBatchRequest(batch_id=v))],
    "BatchService.StreamResults": [
        Probe("offline", lambda v: pb.StreamResultsRequest(batch_id=v), BATCHES[:2]),
        Probe("offline", lambda v: pb.StreamResultsRequest(batch_id=v, after=1, follow=True)),
    ],
}


class Answer(NamedTuple):
    """What came back: an HTTP status or a gRPC code, and all the text with it."""

    status: int | str
    text: str

    def without(self, value: str) -> Answer:
        """As it would be for another id: what was sent, and what is made anew each time, is taken out."""
        text = self.text
        for form in sorted({value, quote(value), json.dumps(value)[1:-1]}, key=len, reverse=True):
            text = text.replace(form, "ID")
        text = re.sub(r"file-[0-9a-f]{32}", "NEW", text)
        return Answer(self.status, re.sub(r"\b\d{9,}\b", "TIME", text))


class Count:
    """Counts probes, and finds what should not be in an answer."""

    def __init__(self, world: World) -> None:
        self.probes = 0
        self._foreign = {name: one for name, one in world.ids.items() if name not in ("tenant", "key")}

    def check(self, where: str, value: str, answer: Answer) -> Answer:
        """Nothing of the owner's is in it, but for what was sent."""
        self.probes += 1
        rest = answer.text.replace(value, "")
        leaked = [name for name, one in self._foreign.items() if one in rest and one not in value]
        assert not leaked, f"{where}: {leaked}: {answer}"
        assert SECRET not in rest, f"{where}: {answer}"
        assert answer.status not in ("INTERNAL", "UNKNOWN"), f"{where}: {answer}"
        assert not isinstance(answer.status, int) or answer.status < 500, f"{where}: {answer}"
        return answer


Call = Callable[[str | None, Any], Any]


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server: what is looked for does not depend on it."""
    yield from run_embedded(tmp_path_factory.mktemp("state"))


@pytest.fixture
async def world(
    redis: Redis, store: FileStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    async with make_world(redis, store, settings, monkeypatch) as world:
        yield world


def list_routes(world: World) -> Iterator[tuple[str, str]]:
    for route in world.app.routes:
        for method in getattr(route, "methods", None) or [f"no route that is known: {route}"]:
            if method != "HEAD":  # Of Starlette's own, beside GET.
                yield method, getattr(route, "path", "").replace(":path}", "}")


async def check(world: World, count: Count, where: str, probe: Probe, call: Call) -> None:
    """One place for ids in one route: with every id, and every key."""
    values = {"nothing": ""} if probe.fixed else world.ids
    kinds = () if probe.fixed else ("live batch", "spare file")
    strange = [guess for kind in kinds for guess in guessed_ids(world.ids[kind])]

    async def ask_with(key: str, value: str) -> Answer:
        return count.check(f"{where} with {key}, {value!r}", value, await call(world.keys[key], probe.make(value)))

    if probe.scope == "open":
        for value in values.values():
            answers = {await ask_with(key, value) for key in world.keys}
            assert len(answers) == 1, f"{where}: {answers}"
        return
    # Without the right key it is the same whatever is asked for.
    some = [*values.values(), *([] if probe.fixed else nobodys_ids())]
    refused = {await ask_with("none", value) for value in some}
    rejected = {await ask_with(key, value) for key in UNKNOWN_KEYS for value in some}
    lacking = {await ask_with(key, value) for key in LACKING[probe.scope] for value in some}
    expected = [(refused, (401, "UNAUTHENTICATED")), (rejected, (401, "UNAUTHENTICATED"))]
    for answers, statuses in [*expected, *([(lacking, (403, "PERMISSION_DENIED"))] if lacking else [])]:
        assert {one.status for one in answers} <= set(statuses), f"{where}: {answers}"
        assert len(answers) == 1, f"{where}: {answers}"
    # An id of somebody else is one that does not exist.
    absent = {(await ask_with("other", value)).without(value) for value in ([""] if probe.fixed else nobodys_ids())}
    if not probe.fixed:
        assert len(absent) == 1, f"{where}: {absent}"
        for name, value in values.items():
            answer = (await ask_with("other", value)).without(value)
            assert answer in absent, f"{where} with {name}: {answer}, not {absent}"
    for value in strange:
        await ask_with("other", value)
    # Its owner does get it: there was something to be seen.
    for name in probe.mine:
        answer = await call(world.keys["owner"], probe.make(world.ids[name]))
        assert answer.status in (200, "OK"), f"{where} with {name}: {answer}"
        assert answer.without(world.ids[name]) not in absent, f"{where} with {name}"


async def test_nobody_gets_at_what_others_have_over_http(world: World) -> None:
    assert set(list_routes(world)) == ROUTES.keys()
    before, count = await world.snapshot(), Count(world)
    assert SECRET in before
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://front", timeout=TIMEOUT_S) as client:
        for (method, place), probes in ROUTES.items():

            async def call(key: str | None, request: dict[str, Any], method: str = method) -> Answer:
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                rest = {name: value for name, value in request.items() if name != "path"}
                found = await client.request(method, request["path"], headers=headers, **rest)
                return Answer(found.status_code, found.text)

            for number, probe in enumerate(probes):
                await check(world, count, f"{method} {place} {number}", probe, call)
        # What an admin sees is the status, and its ids open nothing.
        status = await client.get(
            "/conserve/v1/status", headers={"Authorization": f"Bearer {world.keys['admin-only']}"}
        )
        assert world.ids["live batch"] in status.text
        assert "of 1 batch for a while" in status.text
        assert SECRET not in status.text
    assert await world.snapshot() == before
    print(f"cross-tenant probes over HTTP: {count.probes}, leaks: 0")


async def test_nobody_gets_at_what_others_have_over_grpc(world: World) -> None:
    services = pb.DESCRIPTOR.services_by_name
    methods = {f"{name}.{one.name}": one for name, service in services.items() for one in service.methods}
    assert methods.keys() == RPCS.keys()
    before, count = await world.snapshot(), Count(world)
    async with serve_methods(world.front) as channel:
        for name, probes in RPCS.items():
            for number, probe in enumerate(probes):
                await check(world, count, f"{name} {number}", probe, make_call(channel, methods[name]))
    assert await world.snapshot() == before
    print(f"cross-tenant probes over gRPC: {count.probes}, leaks: 0")


def make_call(channel: grpc.aio.Channel, method: Any) -> Call:
    request_kind, answer_kind = (getattr(pb, one.name) for one in (method.input_type, method.output_type))
    is_stream = "Stream" in method.name
    make = channel.unary_stream if is_stream else channel.unary_unary
    rpc = make(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=request_kind.SerializeToString,
        response_deserializer=answer_kind.FromString,
    )

    async def call(key: str | None, request: Message) -> Answer:
        metadata = [] if key is None else [("authorization", f"Bearer {key}")]
        said = []
        try:
            running = rpc(request, metadata=metadata, timeout=TIMEOUT_S)
            if is_stream:
                said += [str(message) async for message in running]
            else:
                said.append(str(await running))
        except grpc.RpcError as error:
            return Answer(error.code().name, "".join([*said, str(error.details()), str(read_details(error))]))
        return Answer("OK", "".join(said))

    return call
