"""What takes spans in tests: in memory, or over OTLP's gRPC as a collector does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as stubs
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conserve.telemetry.otel_spans import OtelTracer
from conserve.telemetry.spans import use_tracer

CLIENT_TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"
"""A client's, which samples; the example of the W3C's recommendation."""
UNSAMPLED = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-00"
WAIT_S = 60.0


class MemoryTracer(OtelTracer):
    """Keeps its spans."""

    def __init__(self, sample_ratio: float | None = None) -> None:
        self._memory = InMemorySpanExporter()
        super().__init__(self._memory, sample_ratio)

    def finish(self) -> list[ReadableSpan]:
        """All that have ended; there are no further ones."""
        self.close(WAIT_S)
        return list(self._memory.get_finished_spans())


@contextmanager
def tracing(sample_ratio: float | None = None) -> Iterator[MemoryTracer]:
    """Spans of this process are kept meanwhile."""
    tracer = MemoryTracer(sample_ratio)
    before = use_tracer(tracer)
    try:
        yield tracer
    finally:
        use_tracer(before)
        tracer.close(WAIT_S)


@dataclass(frozen=True)
class Received:
    """A span as it has come; ids in hexadecimal digits, those that are not there empty."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: list[tuple[str, str]]
    events: list[str]
    attributes: dict[str, Any]
    resource: dict[str, Any]
    duration_s: float
    failed: bool


@dataclass
class Collector:
    """What has come, from all processes."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: pb.ExportTraceServiceRequest) -> None:
        spans = [
            _read(span, read_attributes(of.resource.attributes))
            for of in request.resource_spans
            for scope in of.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.raw.append(request.SerializeToString())
            self.received += spans

    def find(self, wanted: Callable[[Received], bool]) -> list[Received]:
        with self._lock:
            return [one for one in self.received if wanted(one)]

    def wait_for(self, wanted: Callable[[Received], bool], count: int = 1) -> list[Received]:
        """So many such spans, once they have come."""
        until_s = time.monotonic() + WAIT_S
        while len(found := self.find(wanted)) < count:
            assert time.monotonic() < until_s, f"{len(found)} of {count}: {[one.name for one in self.received]}"
            time.sleep(0.05)
        return found


class _TraceService(stubs.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802 - the RPC's name
        self._collector.take(request)
        return pb.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs meanwhile."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    stubs.add_TraceServiceServicer_to_server(_TraceService(collector), server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def read_attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _read_value(pair.value) for pair in pairs}


def _read_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_read_value(one) for one in value.array_value.values]
    return getattr(value, kind)


def _read(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        events=[event.name for event in span.events],
        attributes=read_attributes(span.attributes),
        resource=resource,
        duration_s=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
    )
