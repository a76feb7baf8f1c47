"""Whether there are spans in this process, and those of batches that are handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from ray import serve

from conserve.config import Settings
from conserve.jobs.batch import Batch
from conserve.telemetry.spans import NO_TRACER, SpanKind, find_tracer, switch_on, use_tracer

CLOSE_LIMIT_S: Final = 2.0
"""So long a process that ends goes on sending spans."""


def start_tracing(settings: Settings) -> None:
    """Takes spans in this replica of a deployment, if the settings say so."""
    tracing = settings.tracing
    if tracing.otlp_endpoint is not None:
        replica = serve.get_replica_context().replica_id
        about = {"service.instance.id": replica.unique_id, "conserve.deployment": replica.deployment_id.name}
        switch_on(tracing.otlp_endpoint, tracing.protocol, tracing.sample_ratio, about)


async def stop_tracing() -> None:
    """Sends what there still is, for a bounded time. Further spans are not taken."""
    await asyncio.to_thread(use_tracer(NO_TRACER).close, CLOSE_LIMIT_S)


async def trace_batch(
    headers: Mapping[str, str], endpoint: str, create: Callable[[str | None], Awaitable[Batch]]
) -> Batch:
    """Creates a batch, in a span.

    Args:
        headers: Of the request for it, their names in lower case.
        endpoint: What its requests are for.
        create: Does it; its argument is what the attempts at the batch's requests will link to, if anything.
    """
    tracer = find_tracer()
    if not tracer.is_on:
        return await create(None)
    with tracer.begin("create batch", SpanKind.SERVER, parent=headers) as span:
        batch = await create(span.traceparent if span.is_recording else None)
        span.set("conserve.batch.id", batch.id)
        span.set("conserve.batch.endpoint", endpoint)
        return batch
