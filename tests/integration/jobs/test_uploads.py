"""Uploads at once are limited, from their first byte on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest

from conserve.config import Settings
from conserve.jobs.service import JobService
from deployments import file_routes
from tests.integration.bench import MODEL, Bench
from tests.integration.jobs.test_batch_routes import BASE, make_app

BOUNDARY = "xyz"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


class SlowFile:
    """The body of an upload that goes on when it is told to."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()

    async def read(self) -> AsyncIterator[bytes]:
        yield HEAD
        self.began.set()
        await self.go_on.wait()
        yield b"content" + TAIL


def serve(bench: Bench) -> httpx.AsyncClient:
    raw = bench.settings.model_dump(mode="json")
    settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"max_uploads": 1}})
    app = make_app(JobService(bench.redis, bench.store, settings, [MODEL]))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE)


async def upload(http: httpx.AsyncClient, file: SlowFile) -> httpx.Response:
    return await http.post("/v1/files", content=file.read(), headers=HEADERS)


async def test_a_further_upload_is_refused_while_the_first_goes_on(bench: Bench) -> None:
    async with serve(bench) as http:
        first = SlowFile()
        going_on = asyncio.create_task(upload(http, first))
        await first.began.wait()
        second = SlowFile()
        refused = await upload(http, second)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_uploads")
        assert int(refused.headers["retry-after"]) > 0
        assert not second.began.is_set(), "nothing of it was taken in"
        first.go_on.set()
        assert (await going_on).status_code == 200
        second.go_on.set()
        assert (await upload(http, second)).status_code == 200


async def test_an_upload_that_is_refused_or_broken_off_leaves_its_place(bench: Bench) -> None:
    async with serve(bench) as http:
        for content in (b"nonsense", HEAD.replace(b"batch", b"other") + b"content" + TAIL):
            assert (await http.post("/v1/files", content=content, headers=HEADERS)).status_code == 400
        file = SlowFile()
        going_on = asyncio.create_task(upload(http, file))
        await file.began.wait()
        going_on.cancel()
        with suppress(asyncio.CancelledError):
            await going_on
        file = SlowFile()
        file.go_on.set()
        assert (await upload(http, file)).status_code == 200


async def test_a_client_that_says_nothing_more_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_routes, "LONGEST_SILENCE_S", 0.05)
    async with serve(bench) as http:
        late = await upload(http, SlowFile())
        assert (late.status_code, late.json()["error"]["code"]) == (408, "upload_timeout")


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "unicode_escape", "latin-1", "nobody"])
async def test_a_form_in_another_charset_is_refused(bench: Bench, charset: str) -> None:
    kind = HEADERS["Content-Type"] + f"; charset={charset}"
    async with serve(bench) as http:
        answer = await http.post("/v1/files", content=HEAD + b"content" + TAIL, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
        kind = HEADERS["Content-Type"] + "; charset=UTF-8"
        answer = await http.post("/v1/files", content=HEAD + b"content" + TAIL, headers={"Content-Type": kind})
        assert answer.status_code == 200


async def test_a_length_of_thousands_of_digits_is_too_long(bench: Bench) -> None:
    async with serve(bench) as http:
        headers = HEADERS | {"Content-Length": "9" * 5_000}
        answer = await http.post("/v1/files", content=HEAD + b"content" + TAIL, headers=headers)
        assert answer.status_code == 413
