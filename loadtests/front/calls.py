"""HTTP calls with nothing but the standard library, so that they work the same under gevent and without it."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

SHOWN_CHARACTERS: Final = 200
CALL_TIMEOUT_S: Final = 30.0


class CallError(Exception):
    """A call that was not answered as it should be; the message says how it was."""


class Calls:
    """Calls of one server, each on a connection of its own, as new clients make them.

    Args:
        base_url: `http://host:port`, with or without `/v1`.
        api_key: Sent as a bearer token; None for none.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url must be an http:// or https:// address (it is {base_url!r})")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def get(self, path: str, timeout_s: float = CALL_TIMEOUT_S) -> bytes:
        """The body of an answer. Raises `CallError`."""
        with self._answer("GET", path, None, {}, timeout_s) as response:
            return response.read()

    def post(self, path: str, content: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Sends and returns JSON. Raises `CallError`."""
        body = json.dumps(content).encode()
        with self._answer("POST", path, body, {"Content-Type": "application/json"}, timeout_s) as response:
            return _parse(response.read())

    def get_json(self, path: str, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """JSON. Raises `CallError`."""
        return _parse(self.get(path, timeout_s))

    def upload(self, path: Path, timeout_s: float = CALL_TIMEOUT_S) -> str:
        """Sends a batch's input file and returns its id. Raises `CallError` and `OSError`."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        with self._answer("POST", "/v1/files", body, headers, timeout_s) as response:
            return str(_parse(response.read())["id"])

    @contextmanager
    def stream(self, path: str, content: Any, timeout_s: float) -> Iterator[Iterator[bytes]]:
        """The lines of an answer as they come. Raises `CallError`; also `TimeoutError`, after `timeout_s` in all."""
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        deadline_s = time.monotonic() + timeout_s
        connection = self._kind(self._host, self._port, timeout=timeout_s)
        try:
            response = _open(connection, "POST", self._prefix + path, body, {**self._headers, **headers})
            yield _read_lines(connection, response, deadline_s)
        except TimeoutError:
            raise TimeoutError(f"no complete answer within {timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise CallError(f"POST {path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()

    @contextmanager
    def _answer(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._kind(self._host, self._port, timeout=timeout_s)
        try:
            yield _open(connection, method, self._prefix + path, body, {**self._headers, **headers})
        except (OSError, http.client.HTTPException) as error:
            raise CallError(f"{method} {path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()


def _open(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> http.client.HTTPResponse:
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    if response.status >= http.client.BAD_REQUEST:
        said = response.read().decode(errors="replace")[:SHOWN_CHARACTERS]
        raise CallError(f"{method} {path}: HTTP {response.status}: {said}")
    return response


def _read_lines(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline_s: float
) -> Iterator[bytes]:
    socket = connection.sock  # None once the answer is known to be the last of the connection
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if socket is not None:
            socket.settimeout(left_s)
        line = response.readline()
        if not line:
            return
        yield line


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise CallError(f"the answer is no JSON: {error}") from None
