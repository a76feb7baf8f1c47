"""The Python client: submits batches, follows their results. It imports neither Ray nor vLLM."""

from __future__ import annotations

from conserve.client.async_client import AsyncClient
from conserve.client.async_job import AsyncJob
from conserve.client.blocking_client import Client, Job
from conserve.client.errors import (
    AuthenticationError,
    BrokenAnswerError,
    ConflictError,
    ConServeError,
    CutOffError,
    GoneError,
    InvalidRequestError,
    JobFailedError,
    LimitError,
    NotFoundError,
    RequestFailedError,
    StatusError,
    UnavailableError,
    UnreachableError,
    UntrustedError,
    WaitTimeoutError,
)
from conserve.client.results import Answer, Failure, Result, TokenUsage
from conserve.client.status import BatchStatusLine, ClusterStatus, ReplicaStatus
from conserve.jobs.batch import Batch, BatchStatus

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncJob",
    "AuthenticationError",
    "Batch",
    "BatchStatus",
    "BatchStatusLine",
    "BrokenAnswerError",
    "Client",
    "ClusterStatus",
    "ConServeError",
    "ConflictError",
    "CutOffError",
    "Failure",
    "GoneError",
    "InvalidRequestError",
    "Job",
    "JobFailedError",
    "LimitError",
    "NotFoundError",
    "ReplicaStatus",
    "RequestFailedError",
    "Result",
    "StatusError",
    "TokenUsage",
    "UnavailableError",
    "UnreachableError",
    "UntrustedError",
    "WaitTimeoutError",
]
