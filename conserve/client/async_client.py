"""`AsyncClient`, for asyncio; `Client` is the same one over blocking calls."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from conserve.client.api import BatchApi, FileKind, OnProgress
from conserve.client.errors import ConServeError, CutOffError, JobFailedError, StatusError
from conserve.client.requests import CHAT, Request, make_input
from conserve.client.results import Result, parse_result
from conserve.client.retries import OnRetry, Retries
from conserve.client.status import ClusterStatus
from conserve.client.transport import AsyncTransport, Transport
from conserve.jobs.batch import Batch, BatchStatus
from conserve.jobs.result_id import result_id

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 60.0
RETRIES = 5


class AsyncJob:
    """A batch that was submitted. `batch` is what was last heard of it."""

    def __init__(self, api: BatchApi, batch: Batch) -> None:
        self._api = api
        self.batch = batch

    @property
    def id(self) -> str:
        """The batch's id, which OpenAI's client takes as well."""
        return self.batch.id

    async def refresh(self) -> Batch:
        """The batch as it is now, with `status`, `request_counts`, `predicted_end_at` and so on.

        Raises:
            ConServeError: see `conserve.client.errors`.
        """
        self.batch = await self._api.get(self.id)
        return self.batch

    async def wait(self, timeout_s: float | None = None, on_progress: OnProgress | None = None) -> Batch:
        """Waits until the batch has ended, however it has, and returns it.

        Args:
            timeout_s: At most; by default as long as it takes, which its completion window bounds.
            on_progress: Called with the batch once a second.

        Raises:
            WaitTimeoutError: it has not ended in time.
            ConServeError: see `conserve.client.errors`.
        """
        self.batch = await self._api.wait(self.id, timeout_s, on_progress)
        return self.batch

    async def as_completed(self) -> AsyncGenerator[Result, None]:
        """Yields each result as it comes, until the batch has ended; connections that break are made again.

        Raises:
            JobFailedError: nothing of it was run.
            ConServeError: see `conserve.client.errors`.
        """
        async with aclosing(self.lines()) as lines:
            async for line in lines:
                yield parse_result(line)

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Yields what `as_completed` does, as lines of JSON.

        Raises:
            JobFailedError: nothing of it was run.
            ConServeError: see `conserve.client.errors`.
        """
        async with aclosing(self._api.follow(self.id)) as lines:
            async for line in lines:
                yield line

    async def results(self, timeout_s: float | None = None) -> list[Result]:
        """Waits until the batch has ended and returns all its results, in the order of the requests.

        Raises:
            JobFailedError: nothing of it was run.
            WaitTimeoutError: it has not ended in time.
            ConServeError: see `conserve.client.errors`.
        """
        batch = await self.wait(timeout_s)
        if batch.status is BatchStatus.FAILED:
            raise JobFailedError(batch)
        found = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                async with aclosing(self._api.read_lines(file_id)) as lines:
                    found += [parse_result(line) async for line in lines]
        if len(found) != batch.request_counts.total:
            raise CutOffError(f"{self.id} has {len(found)} results for {batch.request_counts.total} requests")
        places = {result_id(self.id, line): line for line in range(1, len(found) + 1)}
        return sorted(found, key=lambda result: places.get(result.id, 0))

    async def in_order(self) -> AsyncGenerator[Result, None]:
        """Yields the results in the order of the requests, each as soon as it and all before it are there.

        Raises:
            JobFailedError: nothing of it was run.
            ConServeError: see `conserve.client.errors`.
        """
        early: dict[str, Result] = {}
        position = 0
        async with aclosing(self.as_completed()) as results:
            async for result in results:
                early[result.id] = result
                while (due := early.pop(result_id(self.id, position + 1), None)) is not None:
                    position += 1
                    yield due
        if early:
            raise CutOffError(f"{self.id} has no result for request {position + 1}")

    async def read_file(self, kind: FileKind = "output") -> AsyncGenerator[bytes, None]:
        """Yields the pieces of the output or error file of a batch that has ended; nothing if there is no such file.

        Raises:
            ConServeError: see `conserve.client.errors`.
        """
        batch = await self.refresh()
        file_id = batch.output_file_id if kind == "output" else batch.error_file_id
        if file_id is not None:
            async with aclosing(self._api.read_file(file_id)) as pieces:
                async for piece in pieces:
                    yield piece

    async def cancel(self) -> Batch:
        """Cancels the batch; what is done is kept. Again is no error.

        Raises:
            ConflictError: it has ended otherwise.
            ConServeError: see `conserve.client.errors`.
        """
        self.batch = await self._api.act(self.id, "/cancel")
        return self.batch

    async def pause(self) -> Batch:
        """Begins no further request of the batch; its window goes on.

        Raises:
            ConServeError: see `conserve.client.errors`.
        """
        self.batch = await self._api.act(self.id, "/pause")
        return self.batch

    async def resume(self) -> Batch:
        """Lets a paused batch go on.

        Raises:
            ConServeError: see `conserve.client.errors`.
        """
        self.batch = await self._api.act(self.id, "/resume")
        return self.batch

    async def prioritise(self, priority: int) -> Batch:
        """Gives the batch another priority, -100 to 100; higher goes first.

        Raises:
            ConServeError: see `conserve.client.errors`.
        """
        self.batch = await self._api.act(self.id, body={"priority": priority})
        return self.batch


class AsyncClient:
    """Submits batches to an application, and hears of their results.

    Args:
        base_url: Where it listens, with or without `/v1`; by default what `CONSERVE_URL` says, or this machine.
        api_key: A tenant's key; by default what `OPENAI_API_KEY` says, or none.
        timeout_s: How long an answer may keep quiet. Streams of results are never quiet for long.
        retries: How often a call is made again while what is wrong may pass, an outage for example.
        on_retry: Called before each of those with what went wrong, and how many seconds are waited.
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
        transport = AsyncTransport(find_url(base_url), find_key(api_key), timeout_s)
        self._use(transport, retries, on_retry)

    @classmethod
    def over(cls, transport: Transport, retries: int, on_retry: OnRetry | None) -> Self:
        """A client over another transport."""
        client = cls.__new__(cls)
        client._use(transport, retries, on_retry)
        return client

    def _use(self, transport: Transport, retries: int, on_retry: OnRetry | None) -> None:
        self._transport = transport
        self._api = BatchApi(transport, Retries(transport, retries, on_retry))

    async def submit(
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
    ) -> AsyncJob:
        """Makes a batch of requests and returns it at once.

        However often a call has to be made again, there is one batch.

        Args:
            requests: The path of a file in OpenAI's batch format, or requests: each a prompt, a body, or a whole line
                (a mapping with `body`). What has no `custom_id` is `request-N`, counted from 1.
            endpoint: What is asked.
            window: Time to complete it in: a number of minutes, hours or days, such as `30m`.
            model: Of requests that name none; by default the first one that is served.
            body: Fields of every request that does not have them itself, such as `{"max_tokens": 64}`.
            metadata: Kept with the batch, 16 pairs at most.
            priority: -100 to 100; batches of higher priority go first.
            output_kept_s: How long its output files are kept; by default until they are deleted.

        Raises:
            InvalidRequestError: it is refused. With the code `window_too_short`, `details` has the
                `earliest_completion_window`.
            ConServeError: see `conserve.client.errors`.
            OSError: the file cannot be read.
            TypeError: a request is none.
            ValueError: there is no request, or `model` or `body` is given with a file.
        """
        fields: dict[str, Any] = {"endpoint": endpoint, "completion_window": window}
        if metadata is not None:
            fields["metadata"] = dict(metadata)
        if priority:
            fields["priority"] = priority
        if output_kept_s is not None:
            fields["output_expires_after"] = {"anchor": "created_at", "seconds": output_kept_s}
        name, content = await make_input(requests, endpoint, body, model, self._api.find_model)
        with content:
            file = await self._api.upload(name, content)
        try:
            batch = await self._api.create(file.id, fields)
        except StatusError:
            with suppress(ConServeError):
                await self._api.delete_file(file.id)
            raise
        return AsyncJob(self._api, batch)

    async def map(
        self,
        requests: Iterable[Request],
        *,
        endpoint: str = CHAT,
        window: str = "24h",
        model: str | None = None,
        body: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[Result, None]:
        """Yields the results of requests in their order, each as soon as it and all before it are there.

        They are one batch, which is cancelled when its results are not read to their end. The arguments are those of
        `submit`. `requests` may be empty.

        Raises:
            JobFailedError: nothing of it was run.
            ConServeError: see `conserve.client.errors`.
        """
        listed = list(requests)
        if not listed:
            return
        job = await self.submit(listed, endpoint=endpoint, window=window, model=model, body=body, priority=priority)
        is_read = False
        try:
            async with aclosing(job.in_order()) as results:
                async for result in results:
                    yield result
            is_read = True
        finally:
            if not is_read:
                with suppress(ConServeError):
                    await job.cancel()

    async def get(self, batch_id: str) -> AsyncJob:
        """A batch by its id, whoever has submitted it.

        Raises:
            NotFoundError: there is none.
            ConServeError: see `conserve.client.errors`.
        """
        return AsyncJob(self._api, await self._api.get(batch_id))

    async def list(self, limit: int = 20) -> list[AsyncJob]:
        """The newest batches, 100 at most.

        Raises:
            ConServeError: see `conserve.client.errors`.
        """
        return [AsyncJob(self._api, batch) for batch in await self._api.list_newest(limit)]

    async def status(self) -> ClusterStatus:
        """Replicas, and the batches that have not ended.

        Raises:
            ConServeError: see `conserve.client.errors`.
        """
        return await self._api.read_status()

    async def is_ready(self) -> bool:
        """Whether a replica can answer.

        Raises:
            ConServeError: nothing answers.
        """
        return await self._api.is_ready()

    async def close(self) -> None:
        """Closes its connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def find_url(base_url: str | None) -> str:
    """Where the application listens, without `/v1`, which OpenAI's client wants and this one does not."""
    found = base_url or os.environ.get("CONSERVE_URL") or DEFAULT_URL
    return found.rstrip("/").removesuffix("/v1").rstrip("/")


def find_key(api_key: str | None) -> str | None:
    """The key of the tenant, if there is one."""
    return api_key or os.environ.get("OPENAI_API_KEY")
