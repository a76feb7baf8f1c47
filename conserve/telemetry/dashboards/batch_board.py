"""The dashboard of what becomes of batches."""

from __future__ import annotations

from typing import Final

from conserve.telemetry import job_metrics as jobs
from conserve.telemetry.dashboards.chart import Board, Chart, Query, quantile, total, total_rate

BATCHES: Final = Board(
    "conserve-batches",
    "ConServe: batches",
    {
        "Queue": (
            Chart(
                "Requests to be claimed",
                "short",
                (Query(total(jobs.QUEUE_REQUESTS, "tenant", 'state="ready"'), "{{tenant}}"),),
            ),
            Chart("Leases", "short", (Query(total(jobs.QUEUE_REQUESTS, "tenant", 'state="leased"'), "{{tenant}}"),)),
            Chart(
                "Age of the oldest batch",
                "s",
                (Query(f"max by (tenant) ({jobs.QUEUE_AGE.exported_name})", "{{tenant}}"),),
                "That has requests to be claimed.",
            ),
            Chart("Batches", "short", (Query(total(jobs.BATCHES, "status"), "{{status}}"),)),
            Chart(
                "Predicted lateness",
                "s",
                (Query(f"max by (tenant) ({jobs.PREDICTED_LATENESS.exported_name})", "{{tenant}}"),),
                "Of the latest batch of each tenant.",
            ),
            Chart("Flex requests that wait", "short", (Query(total(jobs.FLEX_WAITING), "waiting"),)),
        ),
        "Work": (
            Chart(
                "Requests with a result",
                "reqps",
                (Query(total_rate(jobs.BATCH_REQUESTS, "result"), "{{result}}"),),
            ),
            Chart(
                "Attempts without one",
                "reqps",
                (
                    Query(total_rate(jobs.ATTEMPTS_ENDED, "fault"), "{{fault}}"),
                    Query(total_rate(jobs.LEASES_EXPIRED), "leases that ran out"),
                ),
            ),
            Chart("Ended batches", "short", (Query(total_rate(jobs.BATCHES_ENDED, "status"), "{{status}} a second"),)),
            Chart(
                "Tokens of earlier attempts",
                "short",
                (
                    Query(total_rate(jobs.REUSED_TOKENS), "not generated again, a second"),
                    Query(total_rate(jobs.JOURNALED_TOKENS), "journaled a second"),
                ),
            ),
            Chart(
                "Round of the controller",
                "s",
                (
                    Query(quantile(0.5, jobs.CONTROLLER_ROUND), "p50"),
                    Query(quantile(0.99, jobs.CONTROLLER_ROUND), "p99"),
                ),
            ),
            Chart("Reporting replicas", "short", (Query(total(jobs.REPLICAS, "model"), "{{model}}"),)),
        ),
    },
)
