"""Metrics of what replicas harvest beside online requests, and of what that costs or saves."""

from __future__ import annotations

from typing import Final

from conserve.telemetry.metric import Kind, Label, Metric

WORK: Final = Label("work", "`online` or `offline`", 2)
TOKENS: Final = Label("tokens", "`prompt` or `output`", 2)
ITERATION: Final = Label("iteration", "whose requests are in it: `online`, `offline`, or both: `mixed`", 3)
COPY: Final = Label("copy", "`saved` to host memory or `restored` from it", 2)
LOSS: Final = Label(
    "loss",
    "`dropped`: given up for others, with the pool full; `uncovered`: found no room; `failed`: the copy failed; "
    "`unused`: restored in vain",
    4,
)
MEMORY: Final = Label("memory", "`offline`: held by batch work; `reserved`: kept free for online requests; `free`", 3)
QUANTILE: Final = Label("quantile", "`0.5` or `0.95`", 2)

STOP_RESPONSE_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
STOP_DEPTH_BUCKETS: Final = (0.25, 0.5, 0.75, 1.0)

OFFLINE_TOKENS: Final = Metric(
    "conserve_offline_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens of batch requests that the engine has answered.",
    (TOKENS,),
)
OFFLINE_COMPUTED_TOKENS: Final = Metric(
    "conserve_offline_computed_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens of batch requests that iterations have computed, as they do it, also what has to be computed again.",
    (TOKENS,),
)
OFFLINE_CACHED_TOKENS: Final = Metric(
    "conserve_offline_cached_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens that batch requests have found in the KV cache when they began.",
)
OFFLINE_RUNNING: Final = Metric(
    "conserve_offline_running_requests", Kind.GAUGE, "requests", "Batch requests that a replica has in its engine."
)
OFFLINE_WINDOW: Final = Metric(
    "conserve_offline_window_requests", Kind.GAUGE, "requests", "Batch requests that a replica may have in its engine."
)
HARVEST_ALONE: Final = Metric(
    "conserve_harvest_alone",
    Kind.GAUGE,
    "boolean",
    "1 while a replica goes by its own rule, because no allotment of the controller reaches it.",
)
ITERATIONS: Final = Metric(
    "conserve_iterations_total",
    Kind.COUNTER,
    "iterations",
    "Iterations of the engine; the share of `mixed` and `offline` ones is that with batch work.",
    (ITERATION,),
)
LATE_ITERATIONS: Final = Metric(
    "conserve_late_iterations_total",
    Kind.COUNTER,
    "iterations",
    "Iterations with online and batch requests that took longer than their objective allowed.",
)
BUSY_SECONDS: Final = Metric(
    "conserve_engine_busy_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Time in which the engine had at least one request of the kind.",
    (WORK,),
)
ENGINE_CPU_SECONDS: Final = Metric(
    "conserve_engine_cpu_seconds_total", Kind.COUNTER, "seconds", "CPU time of the engine's own processes."
)
SCHEDULE_SECONDS: Final = Metric(
    "conserve_schedule_seconds_total",
    Kind.COUNTER,
    "seconds",
    "Time spent deciding what the next iteration computes; by `conserve_iterations_total`, what one decision takes.",
)
HEADROOM: Final = Metric(
    "conserve_headroom_tokens_per_second",
    Kind.GAUGE,
    "tokens/s",
    "Tokens of batch work that a replica can compute beside its online requests in time, by its latency model.",
)
ONLINE_FORECAST: Final = Metric(
    "conserve_online_forecast_requests_per_second",
    Kind.GAUGE,
    "requests/s",
    "Online requests that a replica has to expect in the next seconds.",
)
MIXED_SLO_ATTAINMENT: Final = Metric(
    "conserve_mixed_slo_attainment_ratio",
    Kind.GAUGE,
    "ratio",
    "Of the latest online tokens that were computed beside batch work, the share in time; what windows narrow by.",
)
ARRIVAL_WAIT: Final = Metric(
    "conserve_arrival_wait_seconds",
    Kind.GAUGE,
    "seconds",
    "How long an online request would have waited for an iteration to end or to be stopped, in the latest seconds.",
)
STOPS: Final = Metric(
    "conserve_stops_total", Kind.COUNTER, "passes", "Passes of batch work that were stopped for an online request."
)
RESUMED_PASSES: Final = Metric(
    "conserve_resumed_passes_total", Kind.COUNTER, "passes", "Stopped passes that were continued at their layer."
)
STOP_RESPONSE: Final = Metric(
    "conserve_stop_response_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time from the announcement of an online request to the stop of the pass that ran.",
    (),
    STOP_RESPONSE_BUCKETS_S,
)
STOP_DEPTH: Final = Metric(
    "conserve_stop_depth_ratio",
    Kind.HISTOGRAM,
    "ratio",
    "Share of the model's layers that a stopped pass had computed.",
    (),
    STOP_DEPTH_BUCKETS,
)
STOPPED_WASTE: Final = Metric(
    "conserve_stopped_wasted_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens computed in vain by stopped passes; a part of the layers counts for its share.",
)
PREEMPTIONS: Final = Metric(
    "conserve_preemptions_total",
    Kind.COUNTER,
    "requests",
    "Requests that gave up their KV memory to others.",
    (WORK,),
)
RECOMPUTED_TOKENS: Final = Metric(
    "conserve_recomputed_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Computed tokens that preempted requests have lost and had to compute again.",
    (WORK,),
)
RESTORED_TOKENS: Final = Metric(
    "conserve_restored_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Computed tokens that preempted batch requests got back from host memory.",
)
CHECKPOINT_BYTES: Final = Metric(
    "conserve_checkpoint_bytes_total",
    Kind.COUNTER,
    "bytes",
    "KV memory of batch requests that was copied to and from host memory.",
    (COPY,),
)
CHECKPOINT_LOST_BYTES: Final = Metric(
    "conserve_checkpoint_lost_bytes_total", Kind.COUNTER, "bytes", "Checkpoints that were of no use.", (LOSS,)
)
CHECKPOINT_COPY_SECONDS: Final = Metric(
    "conserve_checkpoint_copy_seconds_total", Kind.COUNTER, "seconds", "Time that copies to and from host memory took."
)
CHECKPOINT_WAIT_SECONDS: Final = Metric(
    "conserve_checkpoint_wait_seconds_total", Kind.COUNTER, "seconds", "Time that iterations have waited for copies."
)
CHECKPOINT_POOL_BYTES: Final = Metric(
    "conserve_checkpoint_pool_bytes", Kind.GAUGE, "bytes", "Host memory that a replica has for checkpoints."
)
CHECKPOINT_POOL_USED_BYTES: Final = Metric(
    "conserve_checkpoint_pool_used_bytes", Kind.GAUGE, "bytes", "Host memory that checkpoints take now."
)
KV_CAPACITY: Final = Metric(
    "conserve_kv_capacity_tokens", Kind.GAUGE, "tokens", "Tokens that the KV memory of a replica has room for."
)
KV_TOKENS: Final = Metric("conserve_kv_tokens", Kind.GAUGE, "tokens", "KV memory of a replica, by its use.", (MEMORY,))
MODEL_ERROR: Final = Metric(
    "conserve_latency_model_error_ratio",
    Kind.GAUGE,
    "ratio",
    "Relative error of the latency model's predictions of iterations that it had not seen, lately.",
    (QUANTILE,),
)
MODEL_READY: Final = Metric(
    "conserve_latency_model_ready", Kind.GAUGE, "boolean", "1 once the latency model has learnt enough to be used."
)

HARVEST_METRICS: Final = (
    OFFLINE_TOKENS,
    OFFLINE_COMPUTED_TOKENS,
    OFFLINE_CACHED_TOKENS,
    OFFLINE_RUNNING,
    OFFLINE_WINDOW,
    HARVEST_ALONE,
    ITERATIONS,
    LATE_ITERATIONS,
    BUSY_SECONDS,
    ENGINE_CPU_SECONDS,
    SCHEDULE_SECONDS,
    HEADROOM,
    ONLINE_FORECAST,
    MIXED_SLO_ATTAINMENT,
    ARRIVAL_WAIT,
    STOPS,
    RESUMED_PASSES,
    STOP_RESPONSE,
    STOP_DEPTH,
    STOPPED_WASTE,
    PREEMPTIONS,
    RECOMPUTED_TOKENS,
    RESTORED_TOKENS,
    CHECKPOINT_BYTES,
    CHECKPOINT_LOST_BYTES,
    CHECKPOINT_COPY_SECONDS,
    CHECKPOINT_WAIT_SECONDS,
    CHECKPOINT_POOL_BYTES,
    CHECKPOINT_POOL_USED_BYTES,
    KV_CAPACITY,
    KV_TOKENS,
    MODEL_ERROR,
    MODEL_READY,
)
