from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from conserve.engine.contract import TokenRecord
from conserve.harvest.attempt import Fault
from conserve.harvest.attempt_trace import AttemptTrace
from conserve.jobs.batch import Batch, BatchStatus
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.results import FinishedRequest
from conserve.policy.retry import FaultKind
from tests.traces import CLIENT_SPAN, CLIENT_TRACE, TRACEPARENT, tracing

CLAIMED = ClaimedRequest("batch_1", 3, 0, 10, "f", attempt=2)
FINISHED = FinishedRequest("batch_1", 3, "f", "output", b"my answer", prompt_tokens=5, completion_tokens=4)


def make_batch(traceparent: str | None = TRACEPARENT) -> Batch:
    return Batch(
        id="batch_1",
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        completion_window="24h",
        status=BatchStatus.IN_PROGRESS,
        created_at=0,
        tenant="a",
        traceparent=traceparent,
    )


def test_an_attempt_is_linked_to_the_batch() -> None:
    with tracing() as tracer:
        trace = AttemptTrace(CLAIMED, make_batch(), "m")
        trace.finish(FINISHED, TokenRecord(reused=2))
        trace.end()
        (span,) = tracer.finish()
    (link,) = span.links
    assert span.parent is None
    assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == (CLIENT_TRACE, CLIENT_SPAN)
    assert (span.name, span.kind) == ("attempt m", SpanKind.CONSUMER)
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 4,
        "conserve.batch.id": "batch_1",
        "conserve.batch.line": 3,
        "conserve.tenant": "a",
        "conserve.attempt": 2,
        "conserve.attempt.reused_tokens": 2,
        "conserve.outcome": "output",
    }
    assert "my answer" not in span.to_json()


@pytest.mark.parametrize(("kind", "named"), [(FaultKind.TIMEOUT, "timeout"), (None, "not_tried")])
def test_a_fault_is_named_and_its_reason_is_not(kind: FaultKind | None, named: str) -> None:
    with tracing() as tracer:
        trace = AttemptTrace(CLAIMED, make_batch(None), "m")
        trace.fail(Fault(kind, "my prompt"))
        trace.end()
        (span,) = tracer.finish()
    attributes: dict[str, Any] = dict(span.attributes or {})
    assert (attributes["error.type"], attributes["conserve.outcome"]) == (named, "failed")
    assert (span.status.status_code, list(span.links)) == (StatusCode.ERROR, [])
    assert "my prompt" not in span.to_json()


def test_what_is_given_back_says_so() -> None:
    with tracing() as tracer:
        AttemptTrace(CLAIMED, make_batch(), "m").end()
        (span,) = tracer.finish()
    assert (span.attributes or {})["conserve.outcome"] == "given_back"


def test_the_trace_of_a_batch_is_not_shown() -> None:
    assert "traceparent" not in make_batch().model_dump()
