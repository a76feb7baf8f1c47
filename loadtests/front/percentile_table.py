"""Exact percentiles of a load, for people and as JSON. Locust's own are rounded to two digits."""

from __future__ import annotations

from typing import Any

from loadtests.front.record_file import Records
from loadtests.latency import percentiles, pool, tbt_groups, ttft_groups


def describe(records: Records) -> dict[str, Any]:
    """What is known, by name; figures that are not known are absent. Failed chats are in no percentile."""
    answered = [record for record in records.chats if record.error is None]
    samples = {
        "ttft_ms": pool(ttft_groups(records.chats)),
        "tbt_ms": pool(tbt_groups(records.chats)),
        "end_to_end_ms": [(record.ended_s - record.intended_s) * 1e3 for record in answered],
        "send_lag_ms": [record.send_lag_ms for record in records.chats],
        "batch_turnaround_ms": [
            (record.ended_s - record.intended_s) * 1e3 for record in records.batches if record.status == "completed"
        ],
    }
    found = {name: percentiles(values) for name, values in samples.items()}
    errors = [chat.error for chat in records.chats] + [batch.error for batch in records.batches]
    known_errors = [error for error in errors if error is not None]
    return {
        "online_requests": len(answered),
        "online_errors": len(records.chats) - len(answered),
        "output_tokens": sum(record.output_tokens or 0 for record in answered),
        "batches": [
            {"status": batch.status, "completed": batch.completed, "of": batch.total} for batch in records.batches
        ],
        **({"first_error": known_errors[0]} if known_errors else {}),
        **{name: value.model_dump() for name, value in found.items() if value is not None},
    }


def render(summary: dict[str, Any]) -> str:
    """Lines for a terminal."""
    lines = [f"chats answered {summary['online_requests']}, failed {summary['online_errors']}"]
    for name, value in summary.items():
        if isinstance(value, dict):
            figures = ", ".join(f"{key} {figure:.1f}" for key, figure in value.items())
            lines.append(f"{name.removesuffix('_ms').replace('_', ' ')}, ms: {figures}")
    lines += [f"batch {batch['status']}: {batch['completed']} of {batch['of']}" for batch in summary["batches"]]
    if "first_error" in summary:
        lines.append(f"first error: {summary['first_error']}")
    return "\n".join(lines)
