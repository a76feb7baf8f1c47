"""`AsyncJob`: a batch, for asyncio; `Job` is the same one over blocking calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from conserve.client.api import BatchApi, FileKind, OnProgress
from conserve.client.errors import CutOffError, JobFailedError
from conserve.client.results import Result, parse_result
from conserve.jobs.batch import Batch, BatchStatus
from conserve.jobs.result_id import result_id


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
