"""`Client`: the core of `AsyncClient` over blocking calls, without an event loop or a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from conserve.client.api import FileKind, OnProgress
from conserve.client.async_client import RETRIES, TIMEOUT_S, AsyncClient, find_key, find_url
from conserve.client.async_job import AsyncJob
from conserve.client.requests import CHAT, Request
from conserve.client.results import Result
from conserve.client.retries import OnRetry
from conserve.client.status import ClusterStatus
from conserve.client.transport import BlockingTransport, iterate, run
from conserve.jobs.batch import Batch


class Job:
    """A batch that was submitted. What its methods do and raise is said at those of `AsyncJob`."""

    def __init__(self, job: AsyncJob) -> None:
        self._job = job

    @property
    def id(self) -> str:
        """The batch's id, which OpenAI's client takes as well."""
        return self._job.id

    @property
    def batch(self) -> Batch:
        """What was last heard of it."""
        return self._job.batch

    def refresh(self) -> Batch:
        """The batch as it is now."""
        return run(self._job.refresh())

    def wait(self, timeout_s: float | None = None, on_progress: OnProgress | None = None) -> Batch:
        """Waits until the batch has ended, however it has, and returns it."""
        return run(self._job.wait(timeout_s, on_progress))

    def as_completed(self) -> Iterator[Result]:
        """Yields each result as it comes, until the batch has ended."""
        return iterate(self._job.as_completed())

    def in_order(self) -> Iterator[Result]:
        """Yields the results in the order of the requests, each as soon as it and all before it are there."""
        return iterate(self._job.in_order())

    def lines(self) -> Iterator[bytes]:
        """Yields what `as_completed` does, as lines of JSON."""
        return iterate(self._job.lines())

    def results(self, timeout_s: float | None = None) -> list[Result]:
        """Waits until the batch has ended and returns all its results, in the order of the requests."""
        return run(self._job.results(timeout_s))

    def read_file(self, kind: FileKind = "output") -> Iterator[bytes]:
        """Yields the pieces of the output or error file of a batch that has ended."""
        return iterate(self._job.read_file(kind))

    def cancel(self) -> Batch:
        """Cancels the batch; what is done is kept."""
        return run(self._job.cancel())

    def pause(self) -> Batch:
        """Begins no further request of the batch; its window goes on."""
        return run(self._job.pause())

    def resume(self) -> Batch:
        """Lets a paused batch go on."""
        return run(self._job.resume())

    def prioritise(self, priority: int) -> Batch:
        """Gives the batch another priority, -100 to 100; higher goes first."""
        return run(self._job.prioritise(priority))


class Client:
    """Submits batches to an application, and hears of their results.

    Its arguments, and what its methods do and raise, are those of `AsyncClient`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        on_retry: OnRetry | None = None,
    ) -> None:
        transport = BlockingTransport(find_url(base_url), find_key(api_key), timeout_s)
        self._client = AsyncClient.over(transport, retries, on_retry)

    def submit(
        self,
        requests: str | Path | Iterable[Request],
        *,
        endpoint: str = CHAT,
        window: str = "24h",
        model: str | None = None,
        body: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        priority: int = 0,
        output_kept_s: int | None = None,
    ) -> Job:
        """Makes a batch of requests and returns it at once."""
        submitted = self._client.submit(
            requests,
            endpoint=endpoint,
            window=window,
            model=model,
            body=body,
            metadata=metadata,
            priority=priority,
            output_kept_s=output_kept_s,
        )
        return Job(run(submitted))

    def map(
        self,
        requests: Iterable[Request],
        *,
        endpoint: str = CHAT,
        window: str = "24h",
        model: str | None = None,
        body: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Iterator[Result]:
        """Yields the results of requests in their order, each as soon as it and all before it are there."""
        results = self._client.map(
            requests, endpoint=endpoint, window=window, model=model, body=body, priority=priority
        )
        return iterate(results)

    def get(self, batch_id: str) -> Job:
        """A batch by its id, whoever has submitted it."""
        return Job(run(self._client.get(batch_id)))

    def list(self, limit: int = 20) -> list[Job]:
        """The newest batches, 100 at most."""
        return [Job(job) for job in run(self._client.list(limit))]

    def status(self) -> ClusterStatus:
        """Replicas, and the batches that have not ended."""
        return run(self._client.status())

    def is_ready(self) -> bool:
        """Whether a replica can answer."""
        return run(self._client.is_ready())

    def close(self) -> None:
        """Closes its connections."""
        run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
