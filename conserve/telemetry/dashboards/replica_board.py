"""The dashboard of what each replica does."""

from __future__ import annotations

from typing import Final

from conserve.telemetry import harvest_metrics as harvest
from conserve.telemetry import online_metrics as online
from conserve.telemetry.dashboards.chart import Board, Chart, Query, quantile, share, total, total_rate

_REPLICA: Final = 'deployment=~"$Deployment", replica=~"$Replica"'

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
