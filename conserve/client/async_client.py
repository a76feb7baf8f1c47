"""`AsyncClient`, for asyncio; `Client` is the same one over blocking calls."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from conserve.client.api import BatchApi
from conserve.client.async_job import AsyncJob
from conserve.client.errors import ConServeError, StatusError
from conserve.client.requests import CHAT, Request, make_input
from conserve.client.results import Result
from conserve.client.retries import OnRetry, Retries
from conserve.client.status import ClusterStatus
from conserve.client.transport import AsyncTransport, Transport
from conserve.launch.serve_config import DEFAULT_HTTP_HOST, DEFAULT_HTTP_PORT

DEFAULT_URL = f"http://{DEFAULT_HTTP_HOST}:{DEFAULT_HTTP_PORT}"
TIMEOUT_S = 60.0
RETRIES = 5


class AsyncClient:
    """Submits batches to an application, and hears of their results.

    Args:
        base_url: Where it listens, with or without `/v1`; by default what `CONSERVE_URL` says, or this machine.
        api_key: A tenant's key; by default what `OPENAI_API_KEY` says, or none.
        timeout_s: How long an answer may keep quiet.
        retries: How often a call is made again while what is wrong may pass, an outage for example.
        on_retry: Called before each of those with what went wrong, and how many seconds are waited.

    Raises:
        ValueError: `base_url` is no address.
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

        They are one batch, submitted when the first result is asked for, and cancelled when the results are not read
        to their end. The arguments are those of `submit`. `requests` may be empty.

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
    """Where the application listens, without `/v1`, which OpenAI's client wants and this one does not.

    Raises:
        ValueError: that is no address.
    """
    found = base_url or os.environ.get("CONSERVE_URL") or DEFAULT_URL
    try:
        url = httpx.URL(found)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url must be an http:// or https:// address (it is {found!r})")
    return found.rstrip("/").removesuffix("/v1").rstrip("/")


def find_key(api_key: str | None) -> str | None:
    """The key of the tenant, if there is one."""
    return api_key or os.environ.get("OPENAI_API_KEY")
