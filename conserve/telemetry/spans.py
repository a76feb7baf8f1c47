"""Spans of traces, and who takes them: nobody, unless `switch_on` was called in this process.

Nothing here imports OpenTelemetry: that is `otel_spans`, which is imported when tracing is switched on.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from enum import StrEnum
from types import TracebackType
from typing import Final, Literal, Self

Value = str | bool | int | float | Sequence[str]
"""Of an attribute."""
Protocol = Literal["grpc", "http/protobuf"]

TRACE_HEADERS: Final = ("traceparent", "tracestate")
"""What carries a trace from process to process: https://www.w3.org/TR/trace-context/."""
ERROR_TYPE: Final = "error.type"
QUEUE_TIME: Final = "conserve.engine.queue_time_s"


class SpanKind(StrEnum):
    """How a span relates to others, as in OpenTelemetry."""

    SERVER = "server"  # A request of somebody outside.
    INTERNAL = "internal"  # A part of the work.
    CONSUMER = "consumer"  # Work that was handed over earlier, on nobody's time.


class Span:
    """A span that nobody takes. As a context manager it ends with the block, and says what the block raises."""

    @property
    def is_recording(self) -> bool:
        """Whether anything that is said to it gets anywhere."""
        return False

    @property
    def traceparent(self) -> str | None:
        """What others continue or link it by; None where nobody takes it."""
        return None

    def set(self, name: str, value: Value | None) -> None:
        """Gives it an attribute; None gives none."""

    def note(self, event: str) -> None:
        """Something has happened now."""

    def fail(self, kind: str) -> None:
        """What it stands for has failed, in a way with this name. Messages may quote prompts and do not belong here."""

    def carry(self, headers: MutableMapping[str, str]) -> None:
        """Makes what is sent with these headers, whose names are in lower case, part of it."""

    def end(self) -> None:
        """It ends now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.fail(type(error).__name__)
        self.end()


NO_SPAN: Final = Span()


class Tracer:
    """Begins spans that nobody takes."""

    @property
    def is_on(self) -> bool:
        """Whether spans of this process are taken at all; otherwise attributes need not be gathered."""
        return False

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
        """Begins a span.

        Args:
            name: Of few different ones.
            kind: See `SpanKind`.
            attributes: Those that are None are left out.
            parent: Headers, their names in lower case. The trace in them is continued, and whether it is sampled is
                known from it; without one a trace begins.
            link: The `traceparent` of a span that led to this one, perhaps long ago.
            began_s: When it began, in Unix seconds; now, if it is not given.
        """
        return NO_SPAN

    def close(self, limit_s: float) -> None:
        """Sends what has ended and not been sent yet, if that can be done within so many seconds."""


NO_TRACER: Final = Tracer()
_tracer: Tracer = NO_TRACER

REQUEST_SPAN: Final[ContextVar[Span]] = ContextVar("REQUEST_SPAN", default=NO_SPAN)
"""That of the online request that is being worked on, for those who measure below."""


def find_tracer() -> Tracer:
    """That of this process."""
    return _tracer


def use_tracer(tracer: Tracer) -> Tracer:
    """Makes it that of this process; which it was before."""
    global _tracer
    before, _tracer = _tracer, tracer
    return before


def switch_on(
    endpoint: str, protocol: Protocol, sample_ratio: float | None, attributes: Mapping[str, str] | None = None
) -> None:
    """From now on spans of this process are sent to an OpenTelemetry collector. Again is no error.

    Args:
        endpoint: Its URL.
        protocol: OTLP's.
        sample_ratio: So many of the traces that begin here are recorded, 0 to 1; None: as `OTEL_TRACES_SAMPLER` says.
        attributes: What is said of this process.
    """
    from conserve.telemetry.otel_spans import OtelTracer, make_exporter

    use_tracer(OtelTracer(make_exporter(endpoint, protocol), sample_ratio, attributes)).close(0.0)
