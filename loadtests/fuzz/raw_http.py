"""Bytes over a socket that are hardly requests: broken heads and chunks, halves of requests, slow clients."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import psutil

from loadtests.fuzz.application import run_application
from loadtests.fuzz.corpus import CHAT, MODEL
from loadtests.fuzz.http_surface import INTERNALS
from loadtests.fuzz.report import Fault, Findings
from loadtests.fuzz.wild import Wild

AT_ONCE: Final = 64
LOOK_EVERY: Final = 1_000
"""Inputs after which the server is asked whether it is there."""
ANSWER_LIMIT_S: Final = 60.0
QUIET_S: Final = 0.1
"""After so long without an answer a client that has sent half a request goes."""
SLOW_CLIENTS: Final = 100
"""That stay in the middle of their requests until the end."""
WARM_UP_SHARE: Final = 0.3
MOST_GROWTH_BYTES: Final = 64 << 20
"""Of resident memory after that, for thousands of inputs: what grows with each of them would be more."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")
_BODY: Final = b'{"model": "%s", "messages": [{"role": "user", "content": "hello"}]}' % MODEL.encode()
_HEAD: Final = b"POST %s HTTP/1.1\r\nHost: front\r\nContent-Type: application/json\r\n" % CHAT.encode()
_GET: Final = b"GET /v1/models HTTP/1.1\r\nHost: front\r\n"
_LENGTH: Final = b"Content-Length: %d\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Bytes:
    """What one connection sends.

    Attributes:
        content: The bytes.
        cuts: Places at which there is a pause.
        shuts: Whether the client says that it has sent all.
    """

    content: bytes
    cuts: tuple[int, ...] = ()
    shuts: bool = False


def make_bytes(generator: random.Random) -> Iterator[Bytes]:
    """What connections send, without end."""
    wild = Wild(generator)
    makers = _list_makers(generator)
    while True:
        content = generator.choice(makers)()
        if generator.random() < 0.3:
            content = wild.spoil(content)
        if generator.random() < 0.15:
            content = content[: generator.randrange(len(content) + 1)]
        cuts = tuple(sorted(generator.randrange(len(content) + 1) for _ in range(generator.choice([0, 0, 0, 1, 3]))))
        yield Bytes(content, cuts, generator.random() < 0.5)


def _list_makers(draw: random.Random) -> list[Callable[[], bytes]]:
    methods = [b"GET", b"POST", b"CONNECT", b"PRI", b"get", b"", b"G\x00T", b"X" * 200]
    targets = [
        b"/v1/models",
        b"*",
        b"http://other/x",
        b"//",
        b"/\xff\x00",
        b"/" + b"a" * 70_000,
        b"/%zz",
        b"/?" + b"&" * 999,
    ]
    versions = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9", b"", b"http/1.1"]
    heads = [
        b"Host: a\r\nHost: b",
        b"No colon",
        b": no name",
        b"X:\x00",
        b" folded",
        b"X: " + b"y" * 80_000,
        b"X\xff: 1",
    ]
    heads += [
        b"\r\n".join(b"X-%d: y" % one for one in range(2_000)),
        b"Connection: close, upgrade",
        b"Upgrade: websocket",
    ]
    heads += [b"Expect: 100-continue", b"Expect: nonsense", b"Content-Encoding: gzip", b"Connection: keep-alive"]
    lengths = [b"0", b"-1", b"1", b"+5", b"5, 5", b"0x5", b"9" * 30, b"", b"%d" % len(_BODY)]
    codings = [b"chunked", b"gzip, chunked", b"chunked, identity", b"Chunked", b"\x0bchunked", b"x"]
    sizes = [b"5", b"0", b"-1", b"FFFFFFFFFFFFFFFFF", b"5;x=" + b"y" * 20_000, b"g", b"", b"5 ", b"0005"]

    def chunk() -> bytes:
        return draw.choice(sizes) + draw.choice([b"\r\n", b"\n", b""]) + b"hello" + draw.choice([b"\r\n", b"", b"xx"])

    return [
        lambda: draw.randbytes(draw.randrange(300)),
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(40),
        lambda: b"\x16\x03\x01" + draw.randbytes(100),
        lambda: b" ".join([draw.choice(methods), draw.choice(targets), draw.choice(versions)]) + b"\r\nHost: a\r\n\r\n",
        lambda: _GET + draw.choice(heads) + b"\r\n\r\n",
        lambda: _HEAD + draw.choice(heads) + b"\r\n" + _LENGTH % len(_BODY) + b"\r\n" + _BODY,
        lambda: _HEAD + b"Content-Length: " + draw.choice(lengths) + b"\r\n\r\n" + _BODY,
        lambda: _HEAD + 2 * (b"Content-Length: " + draw.choice(lengths) + b"\r\n") + b"\r\n" + _BODY,
        lambda: _HEAD + b"Transfer-Encoding: " + draw.choice(codings) + b"\r\n\r\n" + chunk() + b"0\r\n\r\n",
        lambda: _HEAD + _LENGTH % draw.choice([3, 9]) + _CHUNKED + chunk() + b"0\r\n\r\n",
        lambda: (
            _HEAD + _CHUNKED + b"".join(chunk() for _ in range(draw.randrange(5))) + draw.choice([b"0\r\n\r\n", b""])
        ),
        lambda: (_GET + b"\r\n") * draw.randrange(1, 20),
        lambda: _HEAD + _LENGTH % (len(_BODY) + 100) + b"\r\n" + _BODY,
        lambda: _HEAD[: draw.randrange(len(_HEAD))],
    ]


def try_raw_http(inputs: int, seed: int) -> Findings:
    """Opens so many connections."""
    findings = Findings()
    with run_application() as application, application.serve() as port:
        asyncio.run(_Connector(port, str(application.folder).encode(), findings).run(inputs, seed))
    return findings


class _Connector:
    def __init__(self, port: int, secret: bytes, findings: Findings) -> None:
        self._port = port
        self._secret = secret
        self._findings = findings

    async def run(self, inputs: int, seed: int) -> None:
        process = psutil.Process()
        generator = random.Random(seed)
        connections = make_bytes(generator)
        slow = [await self._stay(generator) for _ in range(min(SLOW_CLIENTS, inputs))]
        warm_bytes: int | None = None
        while self._findings.inputs < inputs:
            count = min(AT_ONCE, inputs - self._findings.inputs)
            await asyncio.gather(*(self._connect(next(connections)) for _ in range(count)))
            if self._findings.inputs % LOOK_EVERY < AT_ONCE:
                await self._look()
            if warm_bytes is None and self._findings.inputs >= WARM_UP_SHARE * inputs:
                warm_bytes = process.memory_info().rss
        await self._look()
        for writer in slow:
            writer.close()
        if warm_bytes is not None:
            growth = self._findings.memory_growth_bytes = process.memory_info().rss - warm_bytes
            if growth > MOST_GROWTH_BYTES:
                self._findings.blame(Fault.of("memory has grown", f"{inputs} inputs", f"{growth:,} bytes"))

    async def _stay(self, generator: random.Random) -> asyncio.StreamWriter:
        """A client in the middle of its request."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        whole = _HEAD + _LENGTH % len(_BODY) + b"\r\n" + _BODY
        writer.write(whole[: generator.randrange(1, len(whole))])
        return writer

    async def _connect(self, sent: Bytes) -> None:
        began_s = time.monotonic()
        answer = b""
        with suppress(OSError):  # The server has hung up on it.
            answer = await self._exchange(sent)
        statuses = _STATUS.findall(answer)
        self._findings.note(statuses[0].decode() if statuses else "closed", time.monotonic() - began_s)
        if any(status >= b"500" for status in statuses):
            self._findings.blame(Fault.of("server error", sent, answer))
        if any(found in answer for found in (*INTERNALS, self._secret)):
            self._findings.blame(Fault.of("internals", sent, answer))

    async def _exchange(self, sent: Bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        answer = b""
        try:
            places = [0, *sent.cuts, len(sent.content)]
            for start, end in pairwise(places):
                writer.write(sent.content[start:end])
                await writer.drain()
                await asyncio.sleep(0)
            if sent.shuts:
                writer.write_eof()
            with suppress(TimeoutError):
                while piece := await asyncio.wait_for(reader.read(1 << 16), QUIET_S):
                    answer += piece
        finally:
            writer.close()
        return answer

    async def _look(self) -> None:
        """Whether the server still answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_GET + b"Connection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), ANSWER_LIMIT_S)
        except TimeoutError:
            answer = b""
        finally:
            writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            self._findings.blame(Fault.of("the server is gone", _GET, answer))
