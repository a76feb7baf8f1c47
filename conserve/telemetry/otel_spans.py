"""Spans by OpenTelemetry's SDK, sent in batches by a thread of its own; its queue is bounded and never waited for.

The SDK's variables count where no setting says otherwise: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_SPAN_*_LIMIT`, `OTEL_SDK_DISABLED`, `OTEL_EXPORTER_OTLP_*`. Its global tracer
provider is left to others, such as vLLM and Ray Serve.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, MutableMapping
from typing import Final
from urllib.parse import urlsplit

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from conserve.telemetry.spans import ERROR_TYPE, TRACE_HEADERS, Protocol, Span, SpanKind, Tracer, Value

SCOPE: Final = "conserve"
HTTP_PATH: Final = "/v1/traces"
"""Where collectors take traces over HTTP: https://opentelemetry.io/docs/specs/otlp/#otlphttp-request."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_KINDS: Final = {
    SpanKind.SERVER: api.SpanKind.SERVER,
    SpanKind.INTERNAL: api.SpanKind.INTERNAL,
    SpanKind.CONSUMER: api.SpanKind.CONSUMER,
}


class OtelSpan(Span):
    """A span of OpenTelemetry's.

    Args:
        span: It.
    """

    def __init__(self, span: api.Span) -> None:
        self._span = span

    @property
    def is_recording(self) -> bool:
        """As `Span.is_recording`: not where its trace is not sampled."""
        return self._span.is_recording()

    @property
    def traceparent(self) -> str | None:
        """As `Span.traceparent`."""
        headers: dict[str, str] = {}
        self.carry(headers)
        return headers.get("traceparent")

    def set(self, name: str, value: Value | None) -> None:
        """As `Span.set`."""
        if value is not None:
            self._span.set_attribute(name, value)

    def note(self, event: str) -> None:
        """As `Span.note`."""
        self._span.add_event(event)

    def fail(self, kind: str) -> None:
        """As `Span.fail`."""
        self._span.set_attribute(ERROR_TYPE, kind)
        self._span.set_status(api.StatusCode.ERROR)

    def carry(self, headers: MutableMapping[str, str]) -> None:
        """As `Span.carry`: also of a trace that is not sampled, so that others do not begin one instead."""
        if self._span.get_span_context().is_valid:
            for name in TRACE_HEADERS:
                headers.pop(name, None)
            _PROPAGATOR.inject(headers, api.set_span_in_context(self._span, Context()))

    def end(self) -> None:
        """As `Span.end`."""
        self._span.end()


class OtelTracer(Tracer):
    """Begins spans of OpenTelemetry's.

    Args:
        exporter: Sends them.
        sample_ratio: See `switch_on`.
        attributes: What is said of this process.
    """

    def __init__(
        self, exporter: SpanExporter, sample_ratio: float | None = None, attributes: Mapping[str, str] | None = None
    ) -> None:
        own = dict(attributes or {})
        if SERVICE_NAME not in OTELResourceDetector().detect().attributes:
            own[SERVICE_NAME] = SCOPE
        sampler = None if sample_ratio is None else ParentBased(TraceIdRatioBased(sample_ratio))
        # Not at exit, for which the SDK takes half a minute where nobody takes the spans: see `close`.
        self._provider = TracerProvider(sampler, Resource.create(own), shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(exporter)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(SCOPE)

    @property
    def is_on(self) -> bool:
        """True."""
        return True

    def begin(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Value | None] | None = None,
        *,
        parent: Mapping[str, str] | None = None,
        link: str | None = None,
        began_s: float | None = None,
    ) -> Span:
        """As `Tracer.begin`. Headers that are no W3C trace context count as none."""
        linked = _read({"traceparent": link} if link else None)
        span = self._tracer.start_span(
            name,
            # An empty one in place of none: a span that others have made current is not the parent.
            context=_PROPAGATOR.extract(parent or {}, Context()),
            kind=_KINDS[kind],
            attributes={name: value for name, value in (attributes or {}).items() if value is not None},
            links=[api.Link(linked)] if linked.is_valid else None,
            start_time=None if began_s is None else round(began_s * 1e9),
        )
        return OtelSpan(span)

    def close(self, limit_s: float) -> None:
        """As `Tracer.close`."""
        # The SDK 1.45 has no limit of its own here that could be set.
        closing = threading.Thread(target=self._provider.shutdown, name="close-traces", daemon=True)
        closing.start()
        closing.join(limit_s)


def make_exporter(endpoint: str, protocol: Protocol) -> SpanExporter:
    """What sends spans to a collector. Nothing is tried before there are any.

    Args:
        endpoint: Its URL; over HTTP the usual path is added where it has none.
        protocol: OTLP's.
    """
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    has_path = urlsplit(endpoint).path.strip("/")
    return HttpExporter(endpoint if has_path else endpoint.rstrip("/") + HTTP_PATH)


def _read(headers: Mapping[str, str] | None) -> api.SpanContext:
    return api.get_current_span(_PROPAGATOR.extract(headers or {}, Context())).get_span_context()
