"""Batches and their results as messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from conserve.jobs.answers import invalid
from conserve.jobs.batch import Batch, BatchEndpoint
from conserve.jobs.expiry import LONGEST_S, SHORTEST_S, ExpiresAfter
from deployments.grpc_front.generation import to_body
from deployments.protos import conserve_pb2 as pb


def to_message(batch: Batch) -> pb.Batch:
    """The message of a batch."""
    ended_at = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    return pb.Batch(
        id=batch.id,
        status=f"BATCH_STATUS_{batch.status.upper()}",
        endpoint=batch.endpoint,
        model=batch.model or "",
        input_file_id=batch.input_file_id,
        output_file_id=batch.output_file_id or "",
        error_file_id=batch.error_file_id or "",
        completion_window=batch.completion_window,
        errors=[
            pb.BatchError(
                code=error.code,
                message=_printable(error.message),
                param=_printable(error.param or ""),
                line=error.line or 0,
            )
            for error in (batch.errors.data if batch.errors else ())
        ],
        request_counts=pb.RequestCounts(**batch.request_counts.model_dump()),
        usage=pb.Usage(prompt_tokens=batch.usage.input_tokens, completion_tokens=batch.usage.output_tokens),
        metadata={_printable(name): _printable(value) for name, value in (batch.metadata or {}).items()},
        priority=batch.priority,
        create_time=_to_time(batch.created_at),
        expire_time=_to_time(batch.expires_at),
        end_time=_to_time(ended_at),
        predicted_end_time=_to_time(batch.predicted_end_at),
        pause_time=_to_time(batch.paused_at),
        admission=batch.admission or "",
        delayed_because=batch.delayed_because or "",
    )


def _to_time(seconds: int | None) -> Timestamp | None:
    return None if seconds is None else Timestamp(seconds=seconds)


def read_expiry(kept: Duration) -> ExpiresAfter:
    """How long output files are kept.

    Raises:
        ApiError: 400, that is too short or too long.
    """
    if not SHORTEST_S <= kept.seconds <= LONGEST_S:
        raise invalid(f"'output_expires_after' must be {SHORTEST_S} to {LONGEST_S} s.", "output_expires_after")
    return ExpiresAfter(anchor="created_at", seconds=kept.seconds)


def write_lines(requests: pb.InlineRequests, default_model: str | None) -> tuple[BatchEndpoint, bytes]:
    """The requests of a batch as a file of them, and the endpoint of all.

    Raises:
        ApiError: 400, there are none, or of two kinds.
    """
    found: BatchEndpoint | None = None
    lines: list[bytes] = []
    for number, one in enumerate(requests.requests):
        endpoint, body = to_body(one.request, default_model)
        if found not in (None, endpoint):
            raise invalid("All requests of a batch must be chats, or all of them prompts.", f"requests.{number}")
        found = endpoint
        line: dict[str, Any] = {"custom_id": one.custom_id, "method": "POST", "url": endpoint, "body": body}
        lines.append(json.dumps(line).encode() + b"\n")
    if found is None:
        raise invalid("There are no requests.", "requests")
    return found, b"".join(lines)


def read_results(piece: bytes) -> pb.StreamResultsResponse:
    """The results in a piece of whole lines; of blank ones, which keep a stream alive, there are none."""
    return pb.StreamResultsResponse(results=[_read_result(line) for line in piece.splitlines() if line])


def _read_result(line: bytes) -> pb.BatchResult:
    entry: dict[str, Any] = json.loads(line)
    answer, error = entry["response"] or {}, entry["error"]
    return pb.BatchResult(
        id=entry["id"],
        custom_id=_printable(entry["custom_id"]),
        status_code=answer.get("status_code", 0),
        body=json.dumps(answer["body"], separators=(",", ":")) if answer else "",
        error=pb.BatchError(code=error["code"], message=_printable(error["message"])) if error else None,
    )


def _printable(text: str) -> str:
    """Messages cannot have half surrogate pairs, which a client's JSON may hold."""
    return text.encode("utf-8", "backslashreplace").decode()


async def to_content(content: bytes) -> AsyncIterator[bytes]:
    """Content that is there already, as uploads come."""
    yield content
