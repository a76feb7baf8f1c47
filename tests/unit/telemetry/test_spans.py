from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace as api
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from conserve.launch.ports import find_free_ports
from conserve.telemetry import spans
from conserve.telemetry.otel_spans import OtelTracer, make_exporter
from conserve.telemetry.spans import NO_SPAN, NO_TRACER, SpanKind
from tests.traces import CLIENT_SPAN, CLIENT_TRACE, TRACEPARENT, UNSAMPLED, WAIT_S, Collector, MemoryTracer, collecting

QUEUE = 2_048
"""Spans that the SDK keeps at most, by default."""


def test_off_there_is_nothing_but_a_few_calls() -> None:
    assert spans.find_tracer() is NO_TRACER
    assert not NO_TRACER.is_on
    headers = {"traceparent": TRACEPARENT}
    with NO_TRACER.begin("a", SpanKind.SERVER, {"b": 1}, parent=headers) as span:
        assert span is NO_SPAN
        assert (span.is_recording, span.traceparent) == (False, None)
        span.carry(headers)
    assert headers == {"traceparent": TRACEPARENT}
    NO_TRACER.close(0.0)


def test_off_nothing_that_makes_or_sends_spans_is_imported() -> None:
    program = """
import sys
import conserve.harvest.harvester, conserve.jobs.service
assert "conserve.telemetry.spans" in sys.modules
makers = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "conserve.telemetry.otel_spans")
print([name for name in sys.modules if name.startswith(makers)])
"""
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_the_trace_of_the_client_goes_on() -> None:
    tracer = MemoryTracer()
    came = {"traceparent": TRACEPARENT, "tracestate": "a=1", "authorization": "Bearer key"}
    front = tracer.begin("front", SpanKind.SERVER, {"a": 1, "left.out": None}, parent=came)
    headers = dict(came)
    front.carry(headers)
    assert (headers["tracestate"], headers["authorization"]) == ("a=1", "Bearer key")
    engine = tracer.begin("engine", SpanKind.INTERNAL, parent=headers)
    engine.end()
    front.end()
    below, above = tracer.finish()
    assert above.context is not None
    assert below.context is not None
    assert above.parent is not None
    assert f"{above.context.trace_id:032x}" == f"{below.context.trace_id:032x}" == CLIENT_TRACE
    assert f"{above.parent.span_id:016x}" == CLIENT_SPAN
    assert below.parent is not None
    assert below.parent.span_id == above.context.span_id
    assert front.traceparent == f"00-{CLIENT_TRACE}-{above.context.span_id:016x}-01"
    assert dict(above.attributes or {}) == {"a": 1}
    assert (above.kind, below.kind) == (api.SpanKind.SERVER, api.SpanKind.INTERNAL)


@pytest.mark.parametrize("header", [None, "", "nonsense", "00-0-0-01", "ff" + TRACEPARENT[2:]])
def test_without_a_trace_one_begins(header: str | None) -> None:
    tracer = MemoryTracer()
    tracer.begin("a", SpanKind.SERVER, parent={} if header is None else {"traceparent": header}).end()
    (span,) = tracer.finish()
    assert span.parent is None


def test_whether_a_trace_is_sampled_is_known_from_its_parent() -> None:
    never, always = MemoryTracer(0.0), MemoryTracer(1.0)
    assert never.begin("a", SpanKind.SERVER, parent={"traceparent": TRACEPARENT}).is_recording
    assert not never.begin("a", SpanKind.SERVER).is_recording
    span = always.begin("a", SpanKind.SERVER, parent={"traceparent": UNSAMPLED})
    headers: dict[str, str] = {}
    span.carry(headers)
    span.set("a", 1)
    span.fail("Wrong")
    span.end()
    assert not span.is_recording
    assert headers["traceparent"].startswith(f"00-{CLIENT_TRACE}-")
    assert headers["traceparent"].endswith("-00"), "who comes next does not sample it either"
    assert always.finish() == []


def test_the_sampler_of_the_environment_counts_where_no_ratio_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chats")
    assert not MemoryTracer().begin("a", SpanKind.SERVER).is_recording
    tracer = MemoryTracer(1.0)
    tracer.begin("a", SpanKind.SERVER).end()
    (span,) = tracer.finish()
    assert span.resource.attributes["service.name"] == "chats"


def test_another_trace_is_linked() -> None:
    tracer = MemoryTracer()
    tracer.begin("a", SpanKind.CONSUMER, link=TRACEPARENT).end()
    tracer.begin("b", SpanKind.CONSUMER, link="what is that").end()
    linked, unlinked = tracer.finish()
    (link,) = linked.links
    assert (linked.parent, f"{link.context.trace_id:032x}") == (None, CLIENT_TRACE)
    assert list(unlinked.links) == []


def test_a_failure_has_a_name_and_no_message() -> None:
    tracer = MemoryTracer()
    with pytest.raises(ValueError, match="my prompt"), tracer.begin("a", SpanKind.SERVER):
        raise ValueError("my prompt")
    (span,) = tracer.finish()
    assert (span.status.status_code, span.status.description) == (api.StatusCode.ERROR, None)
    assert (dict(span.attributes or {}), list(span.events)) == ({"error.type": "ValueError"}, [])


def test_a_span_may_have_begun_before() -> None:
    tracer = MemoryTracer()
    tracer.begin("a", SpanKind.INTERNAL, began_s=1_700_000_000.5).end()
    (span,) = tracer.finish()
    assert span.start_time == 1_700_000_000_500_000_000


def test_the_spans_of_others_are_no_parents_and_their_provider_is_left_alone() -> None:
    other = MemoryTracer()
    before = api.get_tracer_provider()
    with api.use_span(other._provider.get_tracer("others").start_span("current"), end_on_exit=True):
        tracer = MemoryTracer()
        tracer.begin("a", SpanKind.SERVER).end()
    (span,) = tracer.finish()
    assert span.parent is None
    assert api.get_tracer_provider() is before
    assert [one.name for one in other.finish()] == ["current"]


class StuckExporter(SpanExporter):
    """A collector that does not answer."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.released = threading.Event()
        self.exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.released.wait(WAIT_S)
        self.exported += len(spans)
        return SpanExportResult.SUCCESS


def test_a_collector_that_does_not_answer_is_not_waited_for() -> None:
    exporter = StuckExporter()
    tracer = OtelTracer(exporter)
    try:
        for _ in range(2 * QUEUE):
            tracer.begin("a", SpanKind.SERVER).end()
        assert exporter.asked.wait(WAIT_S)
        for _ in range(2 * QUEUE):
            tracer.begin("a", SpanKind.SERVER).end()
        tracer.close(0.1)
        assert exporter.exported == 0
    finally:
        exporter.released.set()
    tracer.close(WAIT_S)
    assert exporter.exported < 2 * QUEUE + QUEUE, "what does not fit into the queue is dropped"


def test_nobody_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # Seconds after which its thread gives up, too.
    (port,) = find_free_ports(1)
    before = spans.find_tracer()
    try:
        spans.switch_on(f"http://127.0.0.1:{port}", "grpc", 1.0)
        tracer = spans.find_tracer()
        assert tracer.is_on
        tracer.begin("a", SpanKind.SERVER).end()
        tracer.close(0.5)
    finally:
        spans.use_tracer(before)


def test_spans_are_sent_over_grpc() -> None:
    with collecting() as collector:
        tracer = OtelTracer(make_exporter(collector.url, "grpc"), 1.0, {"service.instance.id": "r1"})
        tracer.begin("a", SpanKind.SERVER, {"b": ["c"]}).end()
        tracer.close(WAIT_S)
        (span,) = collector.received
    assert (span.name, span.attributes, span.resource["service.name"]) == ("a", {"b": ["c"]}, "conserve")
    assert span.resource["service.instance.id"] == "r1"


@pytest.mark.parametrize(("given", "path"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/otlp/traces", "/otlp/traces")])
def test_spans_are_sent_over_http(given: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    collector = Collector()
    seen: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.headers["api-key"]))
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(pb.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            tracer = OtelTracer(make_exporter(f"http://127.0.0.1:{server.server_port}{given}", "http/protobuf"), 1.0)
            tracer.begin("a", SpanKind.SERVER).end()
            tracer.close(WAIT_S)
        finally:
            server.shutdown()
            thread.join()
    assert (seen, [span.name for span in collector.received]) == ([(path, "secret")], ["a"])
