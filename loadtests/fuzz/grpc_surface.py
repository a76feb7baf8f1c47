"""Every RPC: messages made from the proto, bytes that are none, or nearly, and calls that are given up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import hypothesis
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase

from deployments.protos import conserve_pb2 as pb
from deployments.protos.conserve_pb2_grpc import BatchServiceStub
from loadtests.fuzz.application import LightApplication, run_application
from loadtests.fuzz.corpus import CHAT, MODEL
from loadtests.fuzz.http_surface import INTERNALS
from loadtests.fuzz.messages import Messages
from loadtests.fuzz.report import Fault, Findings
from loadtests.fuzz.wild import Wild

AT_ONCE: Final = 32
RENEW_EVERY: Final = 1_000
CALL_LIMIT_S: Final = 60.0
"""For a call that ends by itself, on a machine that does something else as well."""
FOLLOW_S: Final = 0.1
"""For how long results are followed that may never come."""
FORBIDDEN: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
"""That something is wrong with the server; it is not, and its queue is there."""
UNREADABLE: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
"""What the gRPC library answers itself where the bytes are no message."""
WORDS: Final[dict[str, Sequence[str]]] = {
    "model": ["", MODEL, "nobody"],
    "endpoint": ["", CHAT, "/v1/completions", "/v1/embeddings"],
    "completion_window": ["24h", "10m", "0h", "999999999d", "1e3h", "٣h"],
    "slo_class": ["", "default", "nobody"],
    "role": ["user", "system", "assistant", "tool", ""],
    "json_schema": ["", '{"type": "object"}', "{", "[" * 2_000, '{"a": NaN}', '{"type": "object", "\\ud800": 1}'],
    "custom_id": ["a", "b", "", "c" * 600],
}
_SERVICES: Final = tuple(pb.DESCRIPTOR.services_by_name.values())
_METADATA: Final[Sequence[tuple[tuple[str, Any], ...]]] = (
    (),
    (),
    (("authorization", "Bearer x"),),
    (("authorization", ""), ("traceparent", "00-" + "0" * 32 + "-x"), ("tracestate", "a" * 600)),
    (("x-bin", b"\xff\x00"), ("x-session-id", "~" * 4_000)),
)


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        method: Which.
        content: The bytes of its request.
        limit_s: Its deadline.
        leaves: Whether the client gives it up on its own.
        metadata: Sent with it.
    """

    method: MethodDescriptor
    content: bytes
    limit_s: float
    leaves: bool
    metadata: Sequence[tuple[str, Any]]

    def __str__(self) -> str:
        return f"{self.method.name} {self.content!r} {self.limit_s:g} s {'left ' if self.leaves else ''}{self.metadata}"

    @property
    def is_message(self) -> bool:
        """Whether the bytes can be read at all."""
        try:
            GetMessageClass(self.method.input_type).FromString(self.content)
        except DecodeError:
            return False
        return True


def try_grpc(inputs: int, seed: int) -> Findings:
    """Makes so many calls."""
    findings = Findings()
    with run_application() as application:
        caller = _Caller(application, findings)
        generator = random.Random(seed)
        while findings.inputs < inputs:
            count = min(RENEW_EVERY, inputs - findings.inputs)
            calls = list(_make_calls(count, seed + findings.inputs, generator, application.do(caller.make_batches())))
            for at in range(0, count, AT_ONCE):
                application.do(caller.send(calls[at : at + AT_ONCE]), 2 * CALL_LIMIT_S)
        application.do(caller.close())
    return findings


def _make_calls(count: int, seed: int, generator: random.Random, batch_ids: Sequence[str]) -> Iterator[Call]:
    wild = Wild(generator)
    messages = Messages(
        lambda name: [*batch_ids, "batch_0"] if name in ("batch_id", "after") else WORDS.get(name, ["a"])
    )
    methods = [method for service in _SERVICES for method in service.methods]
    left = count
    for number, method in enumerate(methods):
        share = left // (len(methods) - number)
        left -= share
        for message in _draw(messages.strategy(method.input_type), share, seed):
            content = message.SerializeToString()
            match generator.randrange(10):
                case 0 | 1:
                    content = wild.spoil(content)
                case 2:
                    content += generator.randbytes(generator.randrange(40))
            way = generator.randrange(20)
            limit_s = {0: 0.0001, 1: 0.02}.get(way, CALL_LIMIT_S)
            yield Call(method, content, limit_s, way in (2, 3), generator.choice(_METADATA))


def _draw(strategy: Any, count: int, seed: int) -> list[Any]:
    drawn: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(count, 1),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def take(message: Any) -> None:
        drawn.append(message)

    take()
    # Where there are fewer different ones, they come again.
    return [drawn[number % len(drawn)] for number in range(count)]


class _Caller:
    def __init__(self, application: LightApplication, findings: Findings) -> None:
        self._findings = findings
        self._secret = str(application.folder).encode()
        self._channel = application.do(self._connect(application.grpc_port))

    async def _connect(self, port: int) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def close(self) -> None:
        await self._channel.close()

    async def make_batches(self) -> list[str]:
        """Ids of batches that there are; also shows that the server still answers."""
        chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")])
        lines = [pb.InlineRequest(custom_id=f"id-{one}", request=pb.GenerateRequest(chat=chat)) for one in range(3)]
        request = pb.CreateBatchRequest(requests=pb.InlineRequests(requests=lines), completion_window="24h")
        stub: Any = BatchServiceStub(self._channel)
        return [(await stub.CreateBatch(request, timeout=CALL_LIMIT_S)).batch.id for _ in range(2)]

    async def send(self, calls: Sequence[Call]) -> None:
        """Makes calls at once, and judges how they end."""
        for call, (status, said, took_s) in zip(calls, await asyncio.gather(*map(self._make, calls)), strict=True):
            self._findings.note(status.name, took_s)
            allowed = set() if call.is_message else UNREADABLE
            if status in FORBIDDEN - allowed:
                self._findings.blame(Fault.of("server error", str(call), f"{status} {said!r}"))
            if (
                status is grpc.StatusCode.DEADLINE_EXCEEDED
                and call.limit_s == CALL_LIMIT_S
                and took_s > CALL_LIMIT_S / 2
            ):
                self._findings.blame(Fault.of("stuck", str(call), f"{took_s:.1f} s"))
            if any(found in said for found in (*INTERNALS, self._secret)):
                self._findings.blame(Fault.of("internals", str(call), said))

    async def _make(self, call: Call) -> tuple[grpc.StatusCode, bytes, float]:
        path = f"/{call.method.containing_service.full_name}/{call.method.name}"
        limit_s = call.limit_s
        if call.method.name == "StreamResults":
            limit_s = min(limit_s, FOLLOW_S)
        options: dict[str, Any] = {"timeout": limit_s, "metadata": call.metadata}
        began_s = time.monotonic()
        said = b""
        made: Any = None
        channel: Any = self._channel  # Its calls take bytes where no serializer is given.
        try:
            if call.method.server_streaming:
                made = channel.unary_stream(path)(call.content, **options)
                async for piece in made:
                    said += piece
                    if call.leaves:
                        made.cancel()
            else:
                made = channel.unary_unary(path)(call.content, **options)
                if call.leaves:
                    await asyncio.sleep(0)
                    made.cancel()
                said += await made
            status = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            status = error.code()
            said += f"{error.details()} {error.trailing_metadata()}".encode("utf-8", "backslashreplace")
        except asyncio.CancelledError:
            status = grpc.StatusCode.CANCELLED
        return status, said, time.monotonic() - began_s
