"""The dashboard of what clients feel and what is harvested."""

from __future__ import annotations

from typing import Final

from conserve.telemetry import harvest_metrics as harvest
from conserve.telemetry import job_metrics as jobs
from conserve.telemetry import online_metrics as online
from conserve.telemetry.dashboards.chart import Board, Chart, Query, quantile, share, total, total_rate
from conserve.telemetry.metric import Metric


def _quantiles(metric: Metric) -> tuple[Query, ...]:
    return tuple(
        Query(quantile(level, metric, "slo_class"), f"p{level * 100:.0f} {{{{slo_class}}}}") for level in (0.5, 0.99)
    )


def _late(late: Metric, tokens: Metric) -> Query:
    expr = share(total_rate(late, "slo_class"), total_rate(tokens, "slo_class"))
    return Query(expr, "{{slo_class}}")


OVERVIEW: Final = Board(
    "conserve-overview",
    "ConServe: overview",
    {
        "What clients feel": (
            Chart(
                "Time to first token",
                "s",
                _quantiles(online.ONLINE_TTFT),
                "Of streamed answers, from their arrival at a replica.",
                number=7,
            ),
            Chart(
                "Late first tokens",
                "percentunit",
                (_late(online.ONLINE_LATE_FIRST_TOKENS, online.ONLINE_FIRST_TOKENS),),
                "After the TTFT objective of their class.",
                number=8,
            ),
            Chart(
                "Time between tokens",
                "s",
                _quantiles(online.ONLINE_TBT),
                "Between two outputs of the engine for one streamed answer.",
                number=15,
            ),
            Chart(
                "Late next tokens",
                "percentunit",
                (_late(online.ONLINE_LATE_NEXT_TOKENS, online.ONLINE_NEXT_TOKENS),),
                "After the TBT objective of their class.",
                number=20,
            ),
            Chart(
                "Online requests",
                "reqps",
                (Query(total_rate(online.ONLINE_REQUESTS, "outcome"), "{{outcome}}"),),
                "That have ended, by how.",
                number=21,
            ),
            Chart(
                "Time to first token at the front",
                "s",
                _quantiles(online.FRONT_TTFT),
                "With routing and the wait for a replica.",
            ),
        ),
        "What is harvested": (
            Chart(
                "Batch tokens",
                "short",
                (Query(total_rate(harvest.OFFLINE_TOKENS, "tokens"), "{{tokens}} tokens/s"),),
                "Of answered batch requests.",
                number=22,
            ),
            Chart(
                "Iterations with batch work",
                "percentunit",
                (
                    Query(
                        share(
                            total_rate(harvest.ITERATIONS, where='iteration=~"mixed|offline"'),
                            total_rate(harvest.ITERATIONS),
                        ),
                        "share",
                    ),
                ),
                "Near 1 while there is enough batch work: no iteration leaves capacity unused.",
                number=23,
                most=1,
            ),
            Chart(
                "Stranded capacity",
                "short",
                (
                    Query(total_rate(jobs.STRANDED_SEEN), "seen, tokens/s"),
                    Query(total_rate(jobs.STRANDED_USED), "used, tokens/s"),
                ),
                "What replicas could compute beside online requests, and what they did.",
                number=24,
            ),
            Chart(
                "Online and batch requests in engines",
                "short",
                (
                    Query(total(online.ONLINE_RUNNING), "online, answering"),
                    Query(total(online.ONLINE_WAITING), "online, waiting"),
                    Query(total(harvest.OFFLINE_RUNNING), "batch"),
                    Query(total(harvest.OFFLINE_WINDOW), "windows"),
                ),
                number=25,
            ),
            Chart(
                "Requests of batches",
                "short",
                (Query(total(jobs.QUEUE_REQUESTS, "state"), "{{state}}"),),
                "That are not done.",
            ),
            Chart(
                "Batches that will be late",
                "short",
                (Query(total(jobs.LATE_BATCHES, "tenant"), "{{tenant}}"),),
                "By all that is known.",
            ),
        ),
    },
)
