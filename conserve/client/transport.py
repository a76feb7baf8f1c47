"""HTTP for the one core that the client has, with and without an event loop.

The core is written with `async` and `await`. Over `AsyncTransport` that is what it looks like. Over `BlockingTransport`
nothing in it ever suspends: a call blocks, and its coroutine is at its end when `run` has begun it. So there is no
loop and no thread, and the blocking client works wherever it is called from, inside of a running loop, too.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import httpx

from conserve.client.errors import (
    BrokenAnswerError,
    ConServeError,
    UnreachableError,
    UntrustedError,
    make_status_error,
)

CONNECT_TIMEOUT_S = 10.0

T = TypeVar("T")


class Transport(Protocol):
    """One server, over a pool of connections."""

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Sends a call and reads its answer.

        Args:
            method: Of HTTP.
            path: Below the base URL.
            options: As httpx has them: `json`, `params`, `files`, `data`.

        Raises:
            UnreachableError: nothing answers.
            UntrustedError: what answers has a certificate that is not trusted.
            StatusError: the answer is an error.
        """

    def stream(self, path: str, **options: Any) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Gives the pieces of an answer to GET as they come.

        Raises:
            UnreachableError: nothing answers, or the connection breaks.
            UntrustedError: what answers has a certificate that is not trusted.
            StatusError: the answer is an error.
        """

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    async def close(self) -> None:
        """Closes all connections."""


def _arguments(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
    return {"base_url": base_url, "headers": headers, "timeout": timeout}


class AsyncTransport:
    """`Transport` on the running event loop of asyncio."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        self._http = httpx.AsyncClient(**_arguments(base_url, api_key, timeout_s))

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """See `Transport`."""
        with _named_errors(self._http.base_url):
            return _check(await self._http.request(method, path, **options))

    @asynccontextmanager
    async def stream(self, path: str, **options: Any) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """See `Transport`."""
        with _named_errors(self._http.base_url):
            async with self._http.stream("GET", path, **options) as response:
                if response.is_error:
                    await response.aread()
                yield _check(response).aiter_bytes()

    async def sleep(self, seconds: float) -> None:
        """See `Transport`."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """See `Transport`."""
        await self._http.aclose()


class BlockingTransport:
    """`Transport` without a loop: its coroutines block, and never suspend."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        self._http = httpx.Client(**_arguments(base_url, api_key, timeout_s))

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """See `Transport`."""
        with _named_errors(self._http.base_url):
            return _check(self._http.request(method, path, **options))

    @asynccontextmanager
    async def stream(self, path: str, **options: Any) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """See `Transport`."""
        with _named_errors(self._http.base_url), self._http.stream("GET", path, **options) as response:
            if response.is_error:
                response.read()
            yield _as_async(_check(response).iter_bytes())

    async def sleep(self, seconds: float) -> None:
        """See `Transport`."""
        time.sleep(seconds)  # noqa: ASYNC251 - there is no loop that this would hold up

    async def close(self) -> None:
        """See `Transport`."""
        self._http.close()


def is_untrusted(error: BaseException) -> bool:
    """Whether a connection failed since the server's certificate is not trusted, or is another host's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def explain_untrusted(url: str) -> str:
    """What to say then."""
    return (
        f"the certificate of {url} is not trusted here, or is another host's; the variable SSL_CERT_FILE may name the "
        "file of its authority"
    )


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over `BlockingTransport`."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine over a blocking transport has suspended")


def iterate(generator: AsyncGenerator[T, None]) -> Iterator[T]:
    """What an asynchronous generator over `BlockingTransport` yields. It is closed whenever this ends."""
    try:
        while True:
            try:
                value = run(generator.asend(None))
            except StopAsyncIteration:
                return
            yield value
    finally:
        run(generator.aclose())


async def _as_async(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _check(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise make_status_error(response)
    return response


@contextmanager
def _named_errors(base_url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except ConServeError:
        raise
    except httpx.TransportError as error:
        if is_untrusted(error):
            raise UntrustedError(explain_untrusted(str(base_url))) from error
        raise UnreachableError(f"nothing answers at {base_url}: {error or type(error).__name__}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BrokenAnswerError(f"the answer of {base_url} cannot be read: {error}") from error
