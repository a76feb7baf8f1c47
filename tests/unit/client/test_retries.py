"""What the client does when an application is away, busy, or says what it should not."""

from __future__ import annotations

import email.utils
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from conserve.client import (
    BrokenAnswerError,
    Client,
    ConServeError,
    CutOffError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    UnavailableError,
    UnreachableError,
)
from conserve.client.retries import find_pause_s
from conserve.client.transport import BlockingTransport

BATCH = {
    "id": "batch_1",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-in",
    "completion_window": "24h",
    "created_at": 1,
    "status": "in_progress",
}
FILE = {"id": "file-in", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}

Handler = Callable[[httpx.Request], httpx.Response]


class Bed:
    """A client whose calls `handlers` answer one after the other, the last one all that are left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *handlers: Handler, retries: int = 3) -> None:
        self.calls: list[httpx.Request] = []
        self.pauses_s: list[float] = []
        self.told: list[ConServeError] = []
        left = list(handlers)

        def answer(request: httpx.Request) -> httpx.Response:
            self.calls.append(request)
            return (left.pop(0) if len(left) > 1 else left[0])(request)

        async def sleep(transport: BlockingTransport, seconds: float) -> None:
            self.pauses_s.append(seconds)

        transport = httpx.MockTransport(answer)
        real = httpx.Client
        monkeypatch.setattr(httpx, "Client", lambda **options: real(transport=transport, **options))
        monkeypatch.setattr(BlockingTransport, "sleep", sleep)
        self.client = Client("http://conserve", retries=retries, on_retry=lambda error, _: self.told.append(error))

    @property
    def paths(self) -> list[str]:
        return [f"{call.method} {call.url.path}" for call in self.calls]


def gives(status: int, content: Any = None, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: httpx.Response(status, json=content, headers=named)


def refuses(status: int, code: str = "c", **headers: str) -> Handler:
    return gives(status, {"error": {"message": "no", "code": code, "param": "p", "more": 7}}, **headers)


def breaks(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("broken", request=request)


def test_what_passes_is_tried_again_with_longer_and_longer_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, breaks, refuses(503), gives(502), gives(200, BATCH))
    assert bed.client.get("batch_1").id == "batch_1"
    assert [type(error) for error in bed.told] == [UnreachableError, UnavailableError, UnavailableError]
    for pause_s, longest_s in zip(bed.pauses_s, (0.5, 1.0, 2.0), strict=True):
        assert 0.75 * longest_s <= pause_s <= longest_s


def test_tries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, breaks, retries=2)
    with pytest.raises(UnreachableError, match="nothing answers at http://conserve"):
        bed.client.get("batch_1")
    assert len(bed.calls) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidRequestError), (404, NotFoundError), (413, InvalidRequestError), (500, UnavailableError)],
)
def test_a_refusal_is_not(monkeypatch: pytest.MonkeyPatch, status: int, kind: type[ConServeError]) -> None:
    bed = Bed(monkeypatch, refuses(status))
    with pytest.raises(kind, match=rf"no \(HTTP {status}\)") as caught:
        bed.client.get("batch_1")
    error = caught.value
    assert isinstance(error, InvalidRequestError | NotFoundError | UnavailableError)
    assert (error.code, error.param, error.details) == ("c", "p", {"more": 7})
    assert len(bed.calls) == 1


@pytest.mark.parametrize("status", [404, 500])
def test_what_a_proxy_says_for_an_application_that_is_not_there_yet_passes(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    bed = Bed(monkeypatch, lambda request: httpx.Response(status, text="Path not found."), gives(200, BATCH))
    assert bed.client.get("batch_1").id == "batch_1"


def test_who_says_when_to_come_back_is_asked_then(monkeypatch: pytest.MonkeyPatch) -> None:
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    bed = Bed(monkeypatch, refuses(429, Retry_After="7"), refuses(503, Retry_After=date), gives(200, BATCH))
    bed.client.get("batch_1")
    assert bed.pauses_s[0] == 7
    assert 60 < bed.pauses_s[1] <= 90


@pytest.mark.parametrize("headers", [{"Retry_After": "3600"}, {"x_should_retry": "false"}])
def test_where_waiting_takes_too_long_or_does_not_help_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    bed = Bed(monkeypatch, refuses(429, **headers))
    with pytest.raises(LimitError):
        bed.client.get("batch_1")
    assert (len(bed.calls), bed.pauses_s) == (1, [])


def test_a_pause_has_a_bound() -> None:
    assert find_pause_s(UnreachableError("x"), 10_000) <= 10


def test_a_batch_whose_answer_is_lost_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"data": [BATCH | {"id": "batch_0", "input_file_id": "file-other"}, BATCH]}
    bed = Bed(monkeypatch, gives(200, FILE), breaks, gives(200, page))
    assert bed.client.submit(["hello"], model="m").id == "batch_1"
    assert bed.paths == ["POST /v1/files", "POST /v1/batches", "GET /v1/batches"]


def test_a_batch_that_was_not_made_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, gives(200, FILE), breaks, breaks, gives(200, {"data": []}), gives(200, BATCH))
    assert bed.client.submit(["hello"], model="m").id == "batch_1"
    assert bed.paths[1:] == ["POST /v1/batches", "GET /v1/batches", "GET /v1/batches", "POST /v1/batches"]


def test_an_upload_is_sent_whole_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytes] = []

    def cut(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return refuses(503)(request) if len(bodies) == 1 else gives(200, FILE)(request)

    bed = Bed(monkeypatch, cut, cut, gives(200, BATCH))
    bed.client.submit(["hello"], model="m")
    first, second = (body.split(b"\r\n\r\n", 2)[2].split(b"\r\n")[0] for body in bodies)
    assert first == second
    assert json.loads(second)["body"]["messages"][0]["content"] == "hello"


ENDED = BATCH | {"status": "completed", "request_counts": {"total": 2, "completed": 2, "failed": 0}}
FIRST, SECOND = b'{"id":"1"}\n', b'{"id":"2"}\n'


def streams(content: bytes) -> Handler:
    return lambda request: httpx.Response(200, content=content)


def test_results_go_on_where_they_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    get = gives(200, ENDED)
    # The first stream ends in the middle of a line, as it does when its connection breaks.
    bed = Bed(monkeypatch, get, get, streams(FIRST + b"\n" + SECOND[:4]), get, breaks, get, streams(SECOND), get)
    assert list(bed.client.get("batch_1").lines()) == [FIRST, SECOND]
    assert [call.url.params["after"] for call in bed.calls if "results" in call.url.path] == ["0", "1", "1"]
    assert [type(error) for error in bed.told] == [CutOffError, UnreachableError]


def test_results_that_break_off_again_and_again_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(
        monkeypatch,
        lambda request: streams(b"")(request) if "results" in request.url.path else gives(200, ENDED)(request),
    )
    with pytest.raises(CutOffError, match="end after 0 of 2 lines"):
        list(bed.client.get("batch_1").lines())
    assert len(bed.pauses_s) == 3


def test_an_answer_that_is_not_of_conserve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, lambda request: httpx.Response(200, text="<html>hello"))
    for ask in (bed.client.status, lambda: bed.client.get("batch_1"), lambda: bed.client.submit(["hello"])):
        with pytest.raises(BrokenAnswerError):
            ask()


def test_a_key_and_an_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSERVE_URL", "http://elsewhere:9/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    bed = Bed(monkeypatch, gives(200, {"replicas": [], "batches": []}))
    Client().status()
    (call,) = bed.calls
    assert (str(call.url), call.headers["authorization"]) == ("http://elsewhere:9/conserve/v1/status", "Bearer sk-1")


@pytest.mark.parametrize(
    ("requests", "options", "error", "said"),
    [
        ([], {}, ValueError, "there are none"),
        ([7], {"model": "m"}, TypeError, "request 1: must be a prompt, a body or a line"),
        (["a", {"body": "b"}], {"model": "m"}, TypeError, "request 2"),
        (7, {}, TypeError, "requests: must be"),
        ({"body": {}}, {}, TypeError, "requests: must be"),
        ("in.jsonl", {"model": "m"}, ValueError, "body, model: not with a file"),
        ("/no/such/file", {}, FileNotFoundError, "/no/such/file"),
    ],
)
def test_requests_that_are_none_are_named_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, requests: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    bed = Bed(monkeypatch, breaks)
    with pytest.raises(error, match=said):
        bed.client.submit(requests, **options)
    assert bed.calls == []


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [("/v1/completions", "prompt"), ("/v1/embeddings", "input"), ("/v1/chat/completions", "messages")],
)
def test_a_prompt_stands_where_the_endpoint_has_it(monkeypatch: pytest.MonkeyPatch, endpoint: str, field: str) -> None:
    bodies: list[bytes] = []

    def take(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        return gives(200, FILE)(request)

    bed = Bed(monkeypatch, take, gives(200, BATCH))
    bed.client.submit(["hello"], endpoint=endpoint, body={"model": "m", "seed": 1})
    line = json.loads(bodies[0].split(b"\r\n\r\n", 2)[2].split(b"\r\n")[0])
    assert line["url"] == endpoint
    assert "hello" in str(line["body"].pop(field))
    assert line["body"] == {"model": "m", "seed": 1}


def test_imports_stay_cheap() -> None:
    program = (
        "import sys, conserve; assert 'httpx' not in sys.modules; import conserve.client;"
        "names = {'ray', 'vllm', 'torch', 'redis', 'numpy', 'openai', 'transformers'};"
        "print(*names & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
