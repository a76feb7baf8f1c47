"""A client that does not give up: what it is not told to have been accepted it sends again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Final

import httpx

from conserve.jobs.batch import Batch, BatchList
from loadtests.killing.questions import ENDPOINT, find_text

RETRY_S: Final = 0.1
TIMEOUT_S: Final = 20.0
PATIENCE_S: Final = 240.0
"""So long an answer is tried to be had."""
_PASSING: Final = ("service_unavailable", "queue_unavailable")
"""Codes of errors in the middle of a stream after which it is asked for again."""


class PatienceLostError(RuntimeError):
    """The front has not answered for `PATIENCE_S`."""


class NotNowError(RuntimeError):
    """A flex request was not answered, as the front says or as nobody does."""


class WrongAnswerError(RuntimeError):
    """A flex request was answered with an error that does not pass."""


class PatientClient:
    """Calls the Files and Batch API.

    Args:
        base_url: Of the front.
        key: Of the tenant.
        socket: Path of its socket, if it has one.
    """

    def __init__(self, base_url: str, key: str, socket: str | None = None) -> None:
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket),
            base_url=base_url,
            timeout=TIMEOUT_S,
            headers={"Authorization": f"Bearer {key}"},
        )

    async def close(self) -> None:
        """Ends its connections."""
        await self._http.aclose()

    async def submit(self, content: bytes, metadata: Mapping[str, str], priority: int = 0) -> Batch:
        """Uploads an input file and creates a batch of it; each call is repeated until it is answered.

        What was done without an answer is done again, so there may be more batches than answers.
        """
        form = {"files": {"file": ("in.jsonl", content)}, "data": {"purpose": "batch"}}
        file = await self._call("POST", "/v1/files", **form)
        body: dict[str, Any] = {"input_file_id": file.json()["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        body |= {"metadata": dict(metadata), "priority": priority}
        created = await self._call("POST", "/v1/batches", json=body)
        return Batch.model_validate(created.json())

    async def get(self, batch_id: str) -> Batch:
        """A batch."""
        return Batch.model_validate((await self._call("GET", f"/v1/batches/{batch_id}")).json())

    async def cancel(self, batch_id: str) -> None:
        """Cancels a batch; one that has ended meanwhile stays as it is."""
        with suppress(httpx.HTTPStatusError):
            await self._call("POST", f"/v1/batches/{batch_id}/cancel")

    async def list_batches(self) -> list[Batch]:
        """All of them."""
        batches: list[Batch] = []
        while True:
            after = {"after": batches[-1].id} if batches else {}
            answer = await self._call("GET", "/v1/batches", params={"limit": "100", **after})
            page = BatchList.model_validate(answer.json())
            batches += page.data
            if not page.has_more:
                return batches

    async def read_lines(self, batch: Batch) -> list[dict[str, Any]]:
        """The lines of its output and error files."""
        lines = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is not None:
                content = (await self._call("GET", f"/v1/files/{file_id}/content")).content
                lines += [json.loads(line) for line in content.splitlines()]
        return lines

    async def ask_flex(self, body: Mapping[str, Any], timeout_s: float) -> str:
        """Asks for an answer on harvested capacity, once; its text.

        Raises:
            NotNowError: it has to be asked for again.
            WrongAnswerError: it was refused for good.
        """
        streamed = bool(body.get("stream"))
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream("POST", ENDPOINT, json={**body, "service_tier": "flex"}, timeout=timeout_s) as answer,
            ):
                if answer.status_code != 200:
                    raise _explain(answer.status_code, (await answer.aread()).decode())
                if streamed:
                    return await _read_events(answer.aiter_lines())
                return find_text(json.loads(await answer.aread()))
        except (httpx.TransportError, TimeoutError) as error:
            raise NotNowError(f"{type(error).__name__} {error}") from error

    async def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PATIENCE_S
        while True:
            try:
                answer = await self._http.request(method, path, **arguments)
                if answer.status_code < 429 and not _is_of_proxy(answer):
                    return answer.raise_for_status()
                said = f"{answer.status_code} {answer.text}"
            except httpx.TransportError as error:
                said = f"{type(error).__name__} {error}"
            if loop.time() > until_s:
                raise PatienceLostError(f"{method} {path} is not answered for {PATIENCE_S:g} s; at last: {said}")
            await asyncio.sleep(RETRY_S)


def _is_of_proxy(answer: httpx.Response) -> bool:
    """Serve's proxy says 404, with no error body of ours, where it does not yet know that there is an application."""
    return answer.status_code == 404 and '"error"' not in answer.text


async def _read_events(lines: AsyncIterator[str]) -> str:
    """The text of a streamed answer."""
    text = ""
    async for line in lines:
        if line == "data: [DONE]":
            return text
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise _explain(503 if event["error"]["code"] in _PASSING else 500, line)
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    raise NotNowError("the stream broke off")


def _explain(status: int, said: str) -> Exception:
    # While the front is away, what is in front of it says so with 500, but with no error body of ours.
    is_passing = status in (429, 503) or (status >= 500 and '"error"' not in said)
    return (NotNowError if is_passing else WrongAnswerError)(f"{status} {said}")
