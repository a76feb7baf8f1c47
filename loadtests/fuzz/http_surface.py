"""The HTTP routes: thousands of requests to the application itself, and bytes that are no requests over a socket."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.generation import GenerationMode

from loadtests.fuzz.application import LightApplication, run_application
from loadtests.fuzz.asgi import ANSWER_LIMIT_S, LEAVE_LIMIT_S, Answer, Request, ask
from loadtests.fuzz.corpus import CHAT, make_line
from loadtests.fuzz.http_inputs import KnownIds, disturb, fill, from_kwargs, make_wild, vary, with_places
from loadtests.fuzz.report import Fault, Findings
from loadtests.fuzz.wild import Wild

GENERATED_SHARE: Final = 0.5
"""Of all requests: made from the description. The others are wild."""
INPUTS_EACH: Final = 16
"""Requests for each that schemathesis makes, the others changed here and there: making them takes longest."""
MOST_CASES: Final = 12
"""Made of one operation."""
AT_ONCE: Final = 32
"""Requests in flight."""
RENEW_EVERY: Final = 500
"""Requests after which there are a new file and a new batch: earlier ones may have been deleted or cancelled."""
INTERNALS: Final = (b"Traceback (most recent", b'File "/', b"site-packages", str(Path(__file__).parents[2]).encode())
"""What no client is to read."""
_BASE_URL: Final = "http://front"
_FIRST_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_LIMIT_S: Final = 2 * (ANSWER_LIMIT_S + LEAVE_LIMIT_S)


def try_http(inputs: int, seed: int) -> Findings:
    """Sends so many requests."""
    findings = Findings()
    with run_application() as application:
        prober = Prober(application, findings)
        generated = round(inputs * GENERATED_SHARE)
        prober.send_generated(generated, seed)
        prober.send_wild(inputs - generated, seed)
    return findings


class Prober:
    """Sends requests to an application and judges the answers.

    Args:
        application: Runs.
        findings: Gets what was found.
    """

    def __init__(self, application: LightApplication, findings: Findings) -> None:
        self._application = application
        self._findings = findings
        self._secret = str(application.folder).encode()
        self._sent = 0
        self._waiting: list[Request] = []
        self._known = self._make_objects()

    def send_wild(self, count: int, seed: int) -> None:
        """Sends wild ones."""
        for request in islice(make_wild(random.Random(seed)), count):
            self._send(request)
        self.flush()

    def send_generated(self, count: int, seed: int) -> None:
        """Sends what schemathesis makes of operations, valid and not, as it is and with known ids; then changed."""
        schema = schemathesis.openapi.from_dict(self._application.app.openapi())
        generator = random.Random(seed)
        strategies = [one for found in schema.get_all_operations() for one in _list_strategies(found)]
        chosen = generator.sample(strategies, min(len(strategies), 1 + count // INPUTS_EACH))
        bases: list[Request] = []
        for strategy in chosen:
            for case in _draw(strategy, min(MOST_CASES, 1 + count // len(chosen) // INPUTS_EACH), seed):
                bases += _find_bases(case)
        wild = Wild(generator)
        for number in range(count):
            self._send(bases[number] if number < len(bases) else disturb(wild, vary(wild, generator.choice(bases))))
        self.flush()

    def _send(self, request: Request) -> None:
        self._sent += 1
        self._waiting.append(fill(request, self._known))
        if len(self._waiting) >= AT_ONCE:
            self.flush()
        if self._sent % RENEW_EVERY == 0:
            self._known = self._make_objects()

    def flush(self) -> None:
        """Sends what is left, and judges it."""
        requests, self._waiting = self._waiting, []
        for request, answer, took_s in self._application.do(self._ask_all(requests), _LIMIT_S):
            self._findings.note(str(answer.status), took_s)
            for kind in find_faults(answer, self._secret):
                detail = f"{answer.status} {answer.body!r} {answer.error!r}"
                self._findings.blame(Fault.of(kind, str(request), detail))

    async def _ask_all(self, requests: Sequence[Request]) -> list[tuple[Request, Answer, float]]:
        async def ask_one(request: Request) -> tuple[Request, Answer, float]:
            began_s = time.monotonic()
            return request, await ask(self._application.app, request), time.monotonic() - began_s

        return await asyncio.gather(*map(ask_one, requests))

    def _make_objects(self) -> KnownIds:
        """A file and a batch of it."""
        lines = [json.dumps(make_line(f"id-{number}", {"messages": []})) for number in range(3)]
        purpose = ['Content-Disposition: form-data; name="purpose"', "", "batch"]
        upload = ['Content-Disposition: form-data; name="file"; filename="a"', "", "\n".join(lines)]
        content = "\r\n".join(["--b", *purpose, "--b", *upload, "--b--", ""])
        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        file = self._post("/v1/files", headers, content.encode())
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch = self._post("/v1/batches", [(b"content-type", b"application/json")], json.dumps(body).encode())
        return KnownIds(file["id"], batch["id"])

    def _post(self, target: str, headers: list[tuple[bytes, bytes]], body: bytes) -> dict[str, Any]:
        answer = self._application.do(ask(self._application.app, Request("POST", target, headers, body)), _LIMIT_S)
        found: dict[str, Any] = json.loads(answer.body)
        if "id" not in found:
            raise RuntimeError(f"{target} has answered {answer.status}: {found}")
        return found


def find_faults(answer: Answer, secret: bytes) -> Iterator[str]:
    """What is wrong with an answer.

    Args:
        answer: What has come.
        secret: A path of the server that no client is to read.
    """
    if answer.is_stuck:
        yield "stuck"
    elif answer.status is None:
        yield "no answer"
    elif answer.status >= _SERVER_ERROR:
        yield "server error"
    elif answer.error is not None:
        yield "error past the handlers"
    elif answer.status >= _FIRST_ERROR and answer.is_whole and answer.body and not _is_error(answer.body):
        yield "error without its form"
    elif not answer.is_stream and not answer.is_whole:
        yield "broken off"
    if any(found in answer.body for found in (*INTERNALS, secret)):
        yield "internals"


def _is_error(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
        return isinstance(error["message"], str) and {"type", "param", "code"} <= error.keys()
    except (ValueError, KeyError, TypeError):
        return False


def _list_strategies(found: Any) -> Iterator[Any]:
    """For right requests, and for wrong ones where there are any: a path alone cannot be wrong."""
    operation = found.ok()
    yield operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if operation.body or operation.query:
        yield operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


def _find_bases(case: Any) -> Iterator[Request]:
    """The request of a case, and the same for objects that there are."""
    if (found := from_kwargs(case.as_transport_kwargs(base_url=_BASE_URL))) is not None:
        yield found
    if with_places(case) and (found := from_kwargs(case.as_transport_kwargs(base_url=_BASE_URL))) is not None:
        yield found


def _draw(strategy: Any, count: int, seed: int) -> list[Any]:
    drawn: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def take(case: Any) -> None:
        drawn.append(case)

    take()
    return drawn
