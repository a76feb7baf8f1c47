"""Metrics of online requests: what clients feel, and whether it is what they were promised."""

from __future__ import annotations

from typing import Final

from conserve.telemetry.metric import Kind, Label, Metric

SLO_CLASS: Final = Label(
    "slo_class", "class of online requests, as in `slo.classes`; `other`: one that there is not", 102
)
OUTCOME: Final = Label(
    "outcome",
    "`answered`; `failed`: by the engine or its end; `abandoned`: its client has left; `refused`: no such class, or "
    "nothing the engine takes; `overload`: by `overload`",
    5,
)
REFUSED_FOR: Final = Label(
    "reason",
    "`ttft`: its first token would have come late; `tbt`: the next tokens of others would have; `queue`: as many "
    "waited as may wait",
    3,
)

LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
REQUEST_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)

ONLINE_REQUESTS: Final = Metric(
    "conserve_online_requests_total",
    Kind.COUNTER,
    "requests",
    "Online requests that have ended at a replica.",
    (SLO_CLASS, OUTCOME),
)
ONLINE_OVERLOAD: Final = Metric(
    "conserve_online_overload_refusals_total",
    Kind.COUNTER,
    "requests",
    "Online requests that a replica has refused with 429 because it had no capacity for them.",
    (SLO_CLASS, REFUSED_FOR),
)
ONLINE_TTFT: Final = Metric(
    "conserve_online_ttft_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time from the arrival of an online request at its replica to the first piece of its answer (TTFT), of those that "
    "are streamed.",
    (SLO_CLASS,),
    LATENCY_BUCKETS_S,
)
ONLINE_TBT: Final = Metric(
    "conserve_online_tbt_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time between two outputs of the engine for a streamed online answer (TBT), of a token each, or of several that "
    "came at once.",
    (SLO_CLASS,),
    TOKEN_BUCKETS_S,
)
ONLINE_QUEUE: Final = Metric(
    "conserve_online_queue_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time that an online request has waited in the engine before an iteration took it in.",
    (SLO_CLASS,),
    LATENCY_BUCKETS_S,
)
ONLINE_E2E: Final = Metric(
    "conserve_online_e2e_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time from the arrival of an online request at its replica to the end of its answer, of those that were answered.",
    (SLO_CLASS,),
    REQUEST_BUCKETS_S,
)
ONLINE_FIRST_TOKENS: Final = Metric(
    "conserve_online_first_tokens_total",
    Kind.COUNTER,
    "tokens",
    "First pieces of streamed online answers; with `conserve_online_late_first_tokens_total`, the attainment of the "
    "TTFT objective.",
    (SLO_CLASS,),
)
ONLINE_LATE_FIRST_TOKENS: Final = Metric(
    "conserve_online_late_first_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Those of them that came after the TTFT objective of their class.",
    (SLO_CLASS,),
)
ONLINE_NEXT_TOKENS: Final = Metric(
    "conserve_online_next_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Further outputs of the engine for streamed online answers; with `conserve_online_late_next_tokens_total`, the "
    "attainment of the TBT objective.",
    (SLO_CLASS,),
)
ONLINE_LATE_NEXT_TOKENS: Final = Metric(
    "conserve_online_late_next_tokens_total",
    Kind.COUNTER,
    "tokens",
    "Those of them that came after the TBT objective of their class.",
    (SLO_CLASS,),
)
ONLINE_RUNNING: Final = Metric(
    "conserve_online_running_requests",
    Kind.GAUGE,
    "requests",
    "Online requests at a replica whose answer has begun.",
)
ONLINE_WAITING: Final = Metric(
    "conserve_online_waiting_requests",
    Kind.GAUGE,
    "requests",
    "Online requests at a replica whose answer has not begun.",
)
FRONT_TTFT: Final = Metric(
    "conserve_front_ttft_seconds",
    Kind.HISTOGRAM,
    "seconds",
    "Time from the arrival of an online request at the front to the first piece of its answer, of those that are "
    "streamed: routing, waiting for a replica and a second try included.",
    (SLO_CLASS,),
    LATENCY_BUCKETS_S,
)
FRONT_RETRIES: Final = Metric(
    "conserve_front_retries_total",
    Kind.COUNTER,
    "requests",
    "Online requests that the front has sent to a second replica, because the first one ended or fell silent.",
)

ONLINE_METRICS: Final = (
    ONLINE_REQUESTS,
    ONLINE_OVERLOAD,
    ONLINE_TTFT,
    ONLINE_TBT,
    ONLINE_QUEUE,
    ONLINE_E2E,
    ONLINE_FIRST_TOKENS,
    ONLINE_LATE_FIRST_TOKENS,
    ONLINE_NEXT_TOKENS,
    ONLINE_LATE_NEXT_TOKENS,
    ONLINE_RUNNING,
    ONLINE_WAITING,
    FRONT_TTFT,
    FRONT_RETRIES,
)
