"""The calls of the Files and Batch API that the client makes, each with its retries; the core of both clients."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import IO, Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from conserve.client.errors import (
    BrokenAnswerError,
    ConServeError,
    CutOffError,
    JobFailedError,
    StatusError,
    WaitTimeoutError,
)
from conserve.client.retries import FIRST_PAUSE_S, Retries
from conserve.client.status import ClusterStatus
from conserve.client.transport import CONNECT_TIMEOUT_S, Transport
from conserve.jobs.batch import Batch, BatchList, BatchStatus, FileObject

POLL_PERIOD_S = 1.0
SILENCE_S = 60.0
"""Of a stream of results, at most: the application sends a blank line every 15 seconds."""
SEARCHED_BATCHES = 100
"""Where an answer got lost, the batch that it was about is looked for among so many of the newest."""

FileKind = Literal["output", "error"]
OnProgress = Callable[[Batch], None]

_Model = TypeVar("_Model", bound=BaseModel)


class BatchApi:
    """Calls of one application.

    Args:
        transport: To it.
        retries: Makes them again.
    """

    def __init__(self, transport: Transport, retries: Retries) -> None:
        self._transport = transport
        self._retries = retries

    async def find_model(self) -> str:
        """The first model that is served.

        Raises:
            BrokenAnswerError: none is.
            ConServeError: see there.
        """
        answer = await self._send("GET", "/v1/models")
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise BrokenAnswerError("no model is served") from None

    async def upload(self, name: str, content: IO[bytes]) -> FileObject:
        """Stores an input file. One whose answer was lost is stored twice; the other one expires.

        Raises:
            ConServeError: see there.
        """

        async def attempt() -> httpx.Response:
            content.seek(0)
            files = {"file": (name, content, "application/jsonl")}
            return await self._transport.send("POST", "/v1/files", files=files, data={"purpose": "batch"})

        return _read(FileObject, await self._retries.call(attempt))

    async def delete_file(self, file_id: str) -> None:
        """Deletes a file.

        Raises:
            ConServeError: see there.
        """
        await self._send("DELETE", f"/v1/files/{file_id}")

    async def create(self, file_id: str, body: Mapping[str, Any]) -> Batch:
        """Makes a batch of a file that no other batch is made of.

        When an answer is lost, the batch is looked for by its file before it is made again.

        Raises:
            ConServeError: see there.
        """
        is_first = True

        async def attempt() -> Batch:
            nonlocal is_first
            if not is_first:
                newest = _read(BatchList, await self._list(SEARCHED_BATCHES))
                for batch in newest.data:
                    if batch.input_file_id == file_id:
                        return batch
            is_first = False
            answer = await self._transport.send("POST", "/v1/batches", json={"input_file_id": file_id, **body})
            return _read(Batch, answer)

        return await self._retries.call(attempt)

    async def get(self, batch_id: str) -> Batch:
        """A batch as it is now.

        Raises:
            ConServeError: see there.
        """
        return _read(Batch, await self._send("GET", f"/v1/batches/{batch_id}"))

    async def list_newest(self, limit: int) -> list[Batch]:
        """The newest batches.

        Raises:
            ConServeError: see there.
        """
        return _read(BatchList, await self._retries.call(lambda: self._list(limit))).data

    async def act(self, batch_id: str, action: str = "", body: Mapping[str, Any] | None = None) -> Batch:
        """Does something to a batch: `/cancel`, `/pause`, `/resume`, or a change of its fields.

        Raises:
            ConServeError: see there.
        """
        options: dict[str, Any] = {} if body is None else {"json": dict(body)}
        return _read(Batch, await self._send("POST", f"/v1/batches/{batch_id}{action}", **options))

    async def read_status(self) -> ClusterStatus:
        """Replicas, and batches that have not ended.

        Raises:
            ConServeError: see there.
        """
        return _read(ClusterStatus, await self._send("GET", "/conserve/v1/status"))

    async def is_ready(self) -> bool:
        """Whether a replica can answer; asked once.

        Raises:
            ConServeError: nothing answers.
        """
        try:
            await self._transport.send("GET", "/health")
        except StatusError:
            return False
        return True

    async def wait(self, batch_id: str, timeout_s: float | None, on_progress: OnProgress | None) -> Batch:
        """Waits until a batch has ended, and returns it.

        Raises:
            WaitTimeoutError: it has not in time.
            ConServeError: see there.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            batch = await self.get(batch_id)
            if on_progress is not None:
                on_progress(batch)
            if batch.status.ended:
                return batch
            left_s = POLL_PERIOD_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeoutError(f"{batch_id} has not ended within {timeout_s:g} s: it is {batch.status}")
            await self._transport.sleep(min(POLL_PERIOD_S, left_s))

    async def follow(self, batch_id: str) -> AsyncGenerator[bytes, None]:
        """Yields each result line of a batch once, in the order in which the requests were done, until it has ended.

        A connection that breaks is made again and goes on where it was.

        Raises:
            JobFailedError: nothing of it was run.
            ConServeError: it breaks off again and again, or is refused.
        """
        lines = failures = 0
        while True:
            # Read before the stream is opened: what has ended by now is complete in it.
            batch = await self.get(batch_id)
            if batch.status is BatchStatus.FAILED:
                raise JobFailedError(batch)
            done = batch.request_counts.completed + batch.request_counts.failed
            if batch.status.ended and lines >= done:
                return
            before = lines
            problem: ConServeError | None = None
            try:
                async with aclosing(self._read_results(batch_id, lines)) as found:
                    async for line in found:
                        lines, failures = lines + 1, 0
                        yield line
            except ConServeError as error:
                problem = error
            if problem is None and batch.status.ended and lines < done:
                problem = CutOffError(f"the results of {batch_id} end after {lines} of {done} lines")
            if problem is not None:
                failures += 1
                await self._retries.pause(problem, failures)
            elif lines == before:  # Nothing has come for an hour, or the front has ended.
                await self._transport.sleep(FIRST_PAUSE_S)

    async def read_file(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """Yields the pieces of a file's content. Opened again on failure, but not once something has come.

        Raises:
            ConServeError: see there.
        """
        failures, begun = 0, False
        while True:
            try:
                async with self._transport.stream(f"/v1/files/{file_id}/content") as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except ConServeError as error:
                if begun:
                    raise
                failures += 1
                await self._retries.pause(error, failures)

    async def read_lines(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """Yields the lines of a file, as `read_file` does its pieces.

        Raises:
            ConServeError: see there.
        """
        async with aclosing(self.read_file(file_id)) as pieces, aclosing(split_lines(pieces)) as lines:
            async for line in lines:
                yield line

    async def _read_results(self, batch_id: str, after: int) -> AsyncGenerator[bytes, None]:
        query = {"after": after, "follow": "true"}
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
        async with (
            self._transport.stream(f"/v1/batches/{batch_id}/results", params=query, timeout=timeout) as pieces,
            aclosing(split_lines(pieces)) as lines,
        ):
            async for line in lines:
                yield line

    async def _list(self, limit: int) -> httpx.Response:
        return await self._transport.send("GET", "/v1/batches", params={"limit": limit})

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._retries.call(lambda: self._transport.send(method, path, **options))


async def split_lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Whole lines that are not blank. What a broken connection leaves of a line is dropped."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line:
                yield line + b"\n"


def _read(kind: type[_Model], answer: httpx.Response) -> _Model:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError:
        said = " ".join(answer.text.split())[:100]
        raise BrokenAnswerError(f"what answers at {answer.url} is not ConServe: {said!r}") from None
