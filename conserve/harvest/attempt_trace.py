"""The span of an attempt at a request of a batch, from its claim to its result."""

from __future__ import annotations

from conserve.engine.contract import TokenRecord
from conserve.harvest.attempt import Fault
from conserve.jobs.batch import Batch, BatchEndpoint
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.results import FinishedRequest
from conserve.telemetry.spans import NO_SPAN, Span, SpanKind, Value, find_tracer

_OPERATIONS = {
    BatchEndpoint.CHAT_COMPLETIONS: "chat",
    BatchEndpoint.COMPLETIONS: "text_completion",
    BatchEndpoint.EMBEDDINGS: "embeddings",
}


class AttemptTrace:
    """The span of one attempt.

    It begins a trace of its own, linked to the one in which the batch was handed in: that may be a day old, and have
    a million requests.

    Args:
        claimed: The request that has just been claimed.
        batch: Its batch.
        model: That answers it.
    """

    def __init__(self, claimed: ClaimedRequest, batch: Batch, model: str) -> None:
        tracer = find_tracer()
        self._span: Span = NO_SPAN
        self._outcome = "given_back"
        if tracer.is_on:
            attributes: dict[str, Value | None] = {
                "gen_ai.operation.name": _OPERATIONS[BatchEndpoint(batch.endpoint)],
                "gen_ai.request.model": model,
                "conserve.batch.id": claimed.batch_id,
                "conserve.batch.line": claimed.line,
                "conserve.tenant": batch.tenant,
                "conserve.attempt": claimed.attempt,
            }
            self._span = tracer.begin(f"attempt {model}", SpanKind.CONSUMER, attributes, link=batch.traceparent)

    def finish(self, finished: FinishedRequest, record: TokenRecord | None) -> None:
        """It has a result, which may be an error."""
        self._outcome = finished.kind
        self._span.set("gen_ai.usage.input_tokens", finished.prompt_tokens)
        self._span.set("gen_ai.usage.output_tokens", finished.completion_tokens)
        if record is not None:
            self._span.set("conserve.attempt.reused_tokens", record.reused)

    def fail(self, fault: Fault) -> None:
        """It has failed, or was not made."""
        self._outcome = "failed"
        self._span.fail(fault.kind or "not_tried")

    def end(self) -> None:
        """Nothing more is done at it."""
        self._span.set("conserve.outcome", self._outcome)
        self._span.end()
