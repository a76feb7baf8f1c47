"""The dashboards: what clients feel, what each replica does, and what becomes of batches."""

from __future__ import annotations

from typing import Final

from conserve.telemetry import harvest_metrics as harvest
from conserve.telemetry import job_metrics as jobs
from conserve.telemetry import online_metrics as online
from conserve.telemetry.dashboards.chart import Board, Chart, Query, quantile, share, total, total_rate
from conserve.telemetry.metric import Metric

SERVE_PANELS: Final = (7, 8, 15, 20, 21, 22, 23, 24, 25)
"""Numbers of the panels that the Serve page of Ray's dashboard shows of `RAY_GRAFANA_SERVE_DASHBOARD_UID`."""
DEPLOYMENT_PANELS: Final = (2, 3, 5)
"""Those that its pages of a deployment and of a replica show of `RAY_GRAFANA_SERVE_DEPLOYMENT_DASHBOARD_UID`."""

_REPLICA: Final = 'deployment=~"$Deployment", replica=~"$Replica"'


def _quantiles(metric: Metric, where: str = "") -> tuple[Query, ...]:
    return tuple(
        Query(quantile(level, metric, "slo_class", where), f"p{level * 100:.0f} {{{{slo_class}}}}")
        for level in (0.5, 0.99)
    )


def _late(late: Metric, tokens: Metric, where: str = "") -> Query:
    expr = share(total_rate(late, "slo_class", where), total_rate(tokens, "slo_class", where))
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

REPLICAS: Final = Board(
    "conserve-replicas",
    "ConServe: replicas",
    {
        "Online": (
            Chart(
                "Time to first token",
                "s",
                (Query(quantile(0.99, online.ONLINE_TTFT, "replica", _REPLICA), "p99 {{replica}}"),),
                number=2,
            ),
            Chart(
                "Time between tokens",
                "s",
                (Query(quantile(0.99, online.ONLINE_TBT, "replica", _REPLICA), "p99 {{replica}}"),),
                number=3,
            ),
            Chart(
                "Online and batch requests",
                "short",
                (
                    Query(total(online.ONLINE_RUNNING, "replica", _REPLICA), "online {{replica}}"),
                    Query(total(harvest.OFFLINE_RUNNING, "replica", _REPLICA), "batch {{replica}}"),
                    Query(total(harvest.OFFLINE_WINDOW, "replica", _REPLICA), "window {{replica}}"),
                ),
                number=5,
            ),
            Chart(
                "Wait in the engine",
                "s",
                (Query(quantile(0.99, online.ONLINE_QUEUE, "replica", _REPLICA), "p99 {{replica}}"),),
                "Until an iteration takes a request in.",
            ),
            Chart(
                "Wait for what runs",
                "s",
                (Query(total(harvest.ARRIVAL_WAIT, "replica", _REPLICA), "{{replica}}"),),
                "What an online request would have waited for an iteration to end or to be stopped.",
            ),
            Chart(
                "Whole answers",
                "s",
                (Query(quantile(0.99, online.ONLINE_E2E, "replica", _REPLICA), "p99 {{replica}}"),),
            ),
        ),
        "Harvesting": (
            Chart(
                "Headroom",
                "short",
                (Query(total(harvest.HEADROOM, "replica", _REPLICA), "{{replica}}"),),
                "Batch tokens a second that fit beside online requests, by the latency model.",
            ),
            Chart(
                "Computed batch tokens",
                "short",
                (Query(total_rate(harvest.OFFLINE_COMPUTED_TOKENS, "tokens", _REPLICA), "{{tokens}} tokens/s"),),
            ),
            Chart(
                "Iterations",
                "short",
                (Query(total_rate(harvest.ITERATIONS, "iteration", _REPLICA), "{{iteration}}"),),
                "A second, by whose requests were in them.",
            ),
            Chart(
                "Forecast of online requests",
                "reqps",
                (Query(total(harvest.ONLINE_FORECAST, "replica", _REPLICA), "{{replica}}"),),
            ),
            Chart(
                "Error of the latency model",
                "percentunit",
                (
                    Query(
                        f"max by (quantile) ({harvest.MODEL_ERROR.exported_name}{{{_REPLICA}}})",
                        "quantile {{quantile}}",
                    ),
                ),
                "Above 0.3, `conserve profile` measures anew.",
            ),
            Chart(
                "Time to decide on an iteration",
                "s",
                (
                    Query(
                        share(
                            total_rate(harvest.SCHEDULE_SECONDS, where=_REPLICA),
                            total_rate(harvest.ITERATIONS, where=_REPLICA),
                        ),
                        "mean",
                    ),
                ),
            ),
        ),
        "Making room for online requests": (
            Chart(
                "Stopped passes",
                "short",
                (
                    Query(total_rate(harvest.STOPS, where=_REPLICA), "stopped a second"),
                    Query(total_rate(harvest.RESUMED_PASSES, where=_REPLICA), "continued a second"),
                ),
            ),
            Chart(
                "Response of stops",
                "s",
                (
                    Query(quantile(0.5, harvest.STOP_RESPONSE, where=_REPLICA), "p50"),
                    Query(quantile(0.99, harvest.STOP_RESPONSE, where=_REPLICA), "p99"),
                ),
                "From the announcement of an online request to the stop.",
            ),
            Chart(
                "Layers of stopped passes",
                "percentunit",
                (Query(quantile(0.5, harvest.STOP_DEPTH, where=_REPLICA), "p50"),),
                "That were computed when they stopped.",
                most=1,
            ),
            Chart(
                "Preempted requests",
                "short",
                (Query(total_rate(harvest.PREEMPTIONS, "work", _REPLICA), "{{work}} a second"),),
            ),
            Chart(
                "Lost and restored tokens",
                "short",
                (
                    Query(total_rate(harvest.RECOMPUTED_TOKENS, where=_REPLICA), "computed again"),
                    Query(total_rate(harvest.RESTORED_TOKENS, where=_REPLICA), "restored"),
                    Query(total_rate(harvest.STOPPED_WASTE, where=_REPLICA), "wasted by stops"),
                ),
                "A second.",
            ),
            Chart(
                "Checkpoints",
                "Bps",
                (
                    Query(total_rate(harvest.CHECKPOINT_BYTES, "copy", _REPLICA), "{{copy}}"),
                    Query(total_rate(harvest.CHECKPOINT_LOST_BYTES, "loss", _REPLICA), "{{loss}}"),
                ),
            ),
        ),
        "Memory": (
            Chart(
                "KV memory",
                "short",
                (
                    Query(total(harvest.KV_TOKENS, "memory", _REPLICA), "{{memory}}"),
                    Query(total(harvest.KV_CAPACITY, where=_REPLICA), "all"),
                ),
                "In tokens.",
            ),
            Chart(
                "Host memory for checkpoints",
                "bytes",
                (
                    Query(total(harvest.CHECKPOINT_POOL_USED_BYTES, where=_REPLICA), "used"),
                    Query(total(harvest.CHECKPOINT_POOL_BYTES, where=_REPLICA), "all"),
                ),
            ),
            Chart(
                "CPU time of engines",
                "short",
                (Query(total_rate(harvest.ENGINE_CPU_SECONDS, "replica", _REPLICA), "{{replica}}"),),
                "In cores.",
            ),
        ),
    },
    (
        ("Deployment", "deployment", online.ONLINE_RUNNING),
        ("Replica", "replica", online.ONLINE_RUNNING),
    ),
)

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

BOARDS: Final = (OVERVIEW, REPLICAS, BATCHES)
