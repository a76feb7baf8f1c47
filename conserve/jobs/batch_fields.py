"""How a batch is read from its hash in Redis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from conserve.config import DEFAULT_TENANT
from conserve.jobs.batch import Batch, BatchStatus, BatchUsage, FlexKind, RequestCounts
from conserve.policy.request_size import UNKNOWN_REQUEST_TOKENS

LIVE_STATUSES: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
"""Those in which requests of a batch may still begin."""

CHANGING_FIELDS: Final = (
    "status",
    "cancelling_at_ms",
    "completed",
    "failed",
    "outcome",
    "priority",
    "paused_at_ms",
    "prompt_tokens",
    "completion_tokens",
    "let_go_at_ms",
    "delayed_because",
)
"""What `read_changing` needs, in this order."""
FIXED_FIELDS: Final = (
    "created_at_ms",
    "expires_at_ms",
    "endpoint",
    "input_file_id",
    "model",
    "total",
    "output_expires_after_s",
    "tenant",
    "tokens_guessed",
    "work_tokens",
    "file_bytes",
    "prompt_bytes",
    "prefix",
    "flex",
    "admission",
)
"""What `read_fixed` needs, in this order: it stays as it is once a batch is in progress."""


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
            "traceparent": fields.get("traceparent"),
            "usage": BatchUsage(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion),
            "delayed_because": None if BatchStatus(fields["status"]).ended else fields.get("delayed_because"),
            "admission": fields.get("admission") or None,
            "deadline_backed_by": fields.get("deadline_backed_by") or None,
            "earliest_completion_window": fields.get("earliest_completion_window") or None,
        }
    )


def read_changing(values: Sequence[Any]) -> dict[str, Any]:
    """Fields of `ActiveBatch`, from the values of `CHANGING_FIELDS` and the two counts of `summaries.lua`."""
    status, cancelling, completed, failed, outcome, priority, paused, prompt, completion, let_go, because = values[:-2]
    return {
        "status": BatchStatus(status),
        "cancelling_at_ms": int(cancelling) if cancelling else None,
        "completed": int(completed or 0),
        "failed": int(failed or 0),
        "outcome": BatchStatus(outcome) if outcome else None,
        "priority": int(priority or 0),
        "paused": bool(paused),
        "prompt_tokens": int(prompt or 0),
        "completion_tokens": int(completion or 0),
        "let_go_at_ms": int(let_go or 0) or None,
        "delayed": bool(because),
        "ready": values[-2],
        "leased": values[-1],
    }


def read_fixed(values: Sequence[Any]) -> dict[str, Any]:
    """Fields of `ActiveBatch`, from the values of `FIXED_FIELDS`."""
    fields = dict(zip(FIXED_FIELDS, values, strict=True))

    def number(name: str) -> int:
        return int(fields[name] or 0)

    return {
        "created_at_ms": number("created_at_ms"),
        "expires_at_ms": number("expires_at_ms"),
        "endpoint": fields["endpoint"],
        "input_file_id": fields["input_file_id"],
        "model": fields["model"] or None,
        "total": number("total"),
        "output_expires_after_s": number("output_expires_after_s") or None,
        "tenant": fields["tenant"] or DEFAULT_TENANT,
        "tokens_guessed": number("tokens_guessed") or UNKNOWN_REQUEST_TOKENS,
        "work_tokens": number("work_tokens"),
        "file_bytes": number("file_bytes"),
        "prompt_bytes": number("prompt_bytes"),
        "prefix": fields["prefix"] or "",
        "flex": FlexKind(fields["flex"]) if fields["flex"] else None,
        "promised": fields["admission"] == "fits",
    }
