"""How a batch is read from its hash in Redis."""

from __future__ import annotations

import json
from typing import Any, Final

from conserve.config import DEFAULT_TENANT
from conserve.jobs.batch import ActiveBatch, Batch, BatchStatus, BatchUsage, FlexKind, RequestCounts
from conserve.policy.request_size import UNKNOWN_REQUEST_TOKENS

LIVE_STATUSES: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
"""Those in which requests of a batch may still begin."""

SUMMARY_FIELDS: Final = (
    "status",
    "created_at_ms",
    "expires_at_ms",
    "cancelling_at_ms",
    "endpoint",
    "input_file_id",
    "model",
    "total",
    "completed",
    "failed",
    "outcome",
    "priority",
    "paused_at_ms",
    "output_expires_after_s",
    "tenant",
    "prompt_tokens",
    "completion_tokens",
    "tokens_guessed",
    "work_tokens",
    "file_bytes",
    "prompt_bytes",
    "prefix",
    "flex",
    "let_go_at_ms",
    "delayed_because",
    "admission",
)
"""Fields that `to_summary` needs, in this order."""


def to_batch(batch_id: str, fields: dict[str, str]) -> Batch:
    """The Batch object from all fields of its hash."""

    def count(name: str) -> int:
        return int(fields.get(name, 0))

    times = {name.removesuffix("_ms"): int(value) // 1000 for name, value in fields.items() if name.endswith("_at_ms")}
    if fields["status"] not in LIVE_STATUSES:
        times.pop("paused_at", None)  # What has ended is not paused any more.
    if fields["status"] != BatchStatus.IN_PROGRESS or "paused_at" in times:
        times.pop("predicted_end_at", None)  # An old one.
    prompt, completion = count("prompt_tokens"), count("completion_tokens")
    return Batch.model_validate(
        {
            "id": batch_id,
            **times,
            **{name: fields[name] for name in ("endpoint", "input_file_id", "completion_window", "status")},
            **{name: fields.get(name) for name in ("model", "output_file_id", "error_file_id")},
            "errors": json.loads(fields["errors"]) if "errors" in fields else None,
            "metadata": json.loads(fields["metadata"]) if "metadata" in fields else None,
            "request_counts": RequestCounts(total=count("total"), completed=count("completed"), failed=count("failed")),
            "priority": count("priority"),
            "tenant": fields.get("tenant", DEFAULT_TENANT),
            "flex": fields.get("flex"),
            "usage": BatchUsage(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion),
            "delayed_because": None if BatchStatus(fields["status"]).ended else fields.get("delayed_because"),
            "admission": fields.get("admission") or None,
            "deadline_backed_by": fields.get("deadline_backed_by") or None,
            "earliest_completion_window": fields.get("earliest_completion_window") or None,
        }
    )


def to_summary(batch_id: str, values: list[Any]) -> ActiveBatch:
    """What is known of an active batch, from the answer of `summaries.lua`."""
    *stored, ready, leased = values
    fields = dict(zip(SUMMARY_FIELDS, stored, strict=True))

    def number(name: str) -> int:
        return int(fields[name] or 0)

    return ActiveBatch(
        batch_id=batch_id,
        status=BatchStatus(fields["status"]),
        created_at_ms=number("created_at_ms"),
        expires_at_ms=number("expires_at_ms"),
        cancelling_at_ms=number("cancelling_at_ms") if fields["cancelling_at_ms"] else None,
        endpoint=fields["endpoint"],
        input_file_id=fields["input_file_id"],
        model=fields["model"] or None,
        total=number("total"),
        completed=number("completed"),
        failed=number("failed"),
        ready=ready,
        leased=leased,
        outcome=BatchStatus(fields["outcome"]) if fields["outcome"] else None,
        priority=number("priority"),
        paused=bool(fields["paused_at_ms"]),
        output_expires_after_s=number("output_expires_after_s") or None,
        tenant=fields["tenant"] or DEFAULT_TENANT,
        prompt_tokens=number("prompt_tokens"),
        completion_tokens=number("completion_tokens"),
        tokens_guessed=number("tokens_guessed") or UNKNOWN_REQUEST_TOKENS,
        work_tokens=number("work_tokens"),
        file_bytes=number("file_bytes"),
        prompt_bytes=number("prompt_bytes"),
        prefix=fields["prefix"] or "",
        flex=FlexKind(fields["flex"]) if fields["flex"] else None,
        let_go_at_ms=number("let_go_at_ms") or None,
        delayed=bool(fields["delayed_because"]),
        promised=fields["admission"] == "fits",
    )
