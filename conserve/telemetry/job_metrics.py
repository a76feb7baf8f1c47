"""Metrics of the offline queue: what waits, what becomes of it, and whether it will be in time."""

from __future__ import annotations

from typing import Final

from conserve.telemetry.metric import Kind, Label, Metric

MOST_TENANTS: Final = 50
MODEL: Final = Label("model", "name of a served model", 16)
TENANT: Final = Label(
    "tenant", "a tenant, as in `tenants`; those beyond the first ones are `other`, together", MOST_TENANTS + 1
)
STATE: Final = Label("state", "`ready` to be claimed, or `leased` to a replica", 2)
STATUS: Final = Label("status", "status of a batch, as the Batch API has it", 8)
RESULT: Final = Label("result", "`completed`: an answer of the model; `failed`: an error", 2)
FAULT: Final = Label(
    "fault",
    "why an attempt has ended without a result: a kind of `policy.retry.FaultKind`, or `released`: nothing is held "
    "against the request",
    8,
)
RESTART: Final = Label("restart", "why tokens of an earlier attempt were not used", 16)

AGE_BUCKETS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

QUEUE_REQUESTS: Final = Metric(
    "conserve_queue_requests",
    Kind.GAUGE,
    "requests",
    "Requests of batches in progress that are not done; the leased ones are the leases.",
    (TENANT, STATE),
)
QUEUE_AGE: Final = Metric(
    "conserve_queue_age_seconds",
    Kind.GAUGE,
    "seconds",
    "Age of the tenant's oldest batch that has requests to be claimed.",
    (TENANT,),
)
BATCHES: Final = Metric("conserve_batches", Kind.GAUGE, "batches", "Batches that have not ended.", (STATUS,))
PAUSED_BATCHES: Final = Metric("conserve_paused_batches", Kind.GAUGE, "batches", "Those of them that are paused.")
DELAYED_BATCHES: Final = Metric(
    "conserve_delayed_batches",
    Kind.GAUGE,
    "batches",
    "Those of them that do not get on, for a full disk for example; `delayed_because` of the batch says why.",
)
FLEX_WAITING: Final = Metric(
    "conserve_flex_waiting_requests", Kind.GAUGE, "requests", "Flex requests that wait for harvested capacity."
)
BATCHES_ENDED: Final = Metric(
    "conserve_batches_ended_total", Kind.COUNTER, "batches", "Batches that have ended, by how.", (STATUS,)
)
BATCH_REQUESTS: Final = Metric(
    "conserve_batch_requests_total",
    Kind.COUNTER,
    "requests",
    "Attempts at batch requests that ended with a result at a replica.",
    (RESULT,),
)
ATTEMPTS_ENDED: Final = Metric(
    "conserve_attempts_without_result_total",
    Kind.COUNTER,
    "attempts",
    "Attempts at batch requests that ended without a result, and are made again where the rules allow it.",
    (FAULT,),
)
LEASES_EXPIRED: Final = Metric(
    "conserve_leases_expired_total",
    Kind.COUNTER,
    "leases",
    "Leases that have run out: their replica was not heard of any more.",
)
RESUMED_REQUESTS: Final = Metric(
    "conserve_resumed_requests_total",
    Kind.COUNTER,
    "requests",
    "Batch requests that went on after the tokens of an earlier attempt.",
)
REUSED_TOKENS: Final = Metric(
    "conserve_reused_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens of earlier attempts that were not generated again.",
)
JOURNALED_TOKENS: Final = Metric(
    "conserve_journaled_tokens_total", Kind.COUNTER, "tokens", "Tokens that were written to the journal."
)
RESTARTED_REQUESTS: Final = Metric(
    "conserve_restarted_requests_total",
    Kind.COUNTER,
    "requests",
    "Batch requests that had begun elsewhere and began anew.",
    (RESTART,),
)
PREDICTED_LATENESS: Final = Metric(
    "conserve_predicted_lateness_seconds",
    Kind.GAUGE,
    "seconds",
    "How long after its completion window a batch of the tenant will end at most, by all that is known; 0: none.",
    (TENANT,),
)
LATE_BATCHES: Final = Metric(
    "conserve_predicted_late_batches",
    Kind.GAUGE,
    "batches",
    "Batches that will end after their completion window, by all that is known.",
    (TENANT,),
)
STRANDED_SEEN: Final = Metric(
    "conserve_stranded_seen_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens of batch work that replicas could have computed beside their online requests, by their latency models.",
    (MODEL,),
)
STRANDED_USED: Final = Metric(
    "conserve_stranded_used_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Tokens of batch work that they have answered; by `conserve_stranded_seen_tokens_total`, the share that was used.",
    (MODEL,),
)
REPLICAS: Final = Metric(
    "conserve_reporting_replicas",
    Kind.GAUGE,
    "replicas",
    "Replicas that the controller hears of; fewer than Serve runs while some start or are silent.",
    (MODEL,),
)
CONTROLLER_ROUND: Final = Metric(
    "conserve_controller_round_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time of a round of the controller: reports and batches in, allotments out.",
    (),
    AGE_BUCKETS_S,
)
CONTROLLER_LEADS: Final = Metric(
    "conserve_controller_leads", Kind.GAUGE, "boolean", "1 while this cluster's controller is the one at work."
)

JOB_METRICS: Final = (
    QUEUE_REQUESTS,
    QUEUE_AGE,
    BATCHES,
    PAUSED_BATCHES,
    DELAYED_BATCHES,
    FLEX_WAITING,
    BATCHES_ENDED,
    BATCH_REQUESTS,
    ATTEMPTS_ENDED,
    LEASES_EXPIRED,
    RESUMED_REQUESTS,
    REUSED_TOKENS,
    JOURNALED_TOKENS,
    RESTARTED_REQUESTS,
    PREDICTED_LATENESS,
    LATE_BATCHES,
    STRANDED_SEEN,
    STRANDED_USED,
    REPLICAS,
    CONTROLLER_ROUND,
    CONTROLLER_LEADS,
)
