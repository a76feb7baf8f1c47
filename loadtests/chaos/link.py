"""The way between the application's processes and the node of Redis, on which packets are delayed and dropped."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

TUN: Final = Path("/dev/net/tun")
# linux/if_tun.h: TUNSETIFF, IFF_TUN, IFF_NO_PI.
SET_INTERFACE: Final = 0x400454CA
IS_TUN: Final = 0x0001
NO_PACKET_INFO: Final = 0x1000
PACKET_BYTES: Final = 65_536
COMMAND_LIMIT_S: Final = 10.0
LOST_CHUNK_S: Final = 0.2
"""What TCP waits at least until it sends again."""
CHUNK_BYTES: Final = 65_536


class Link(Protocol):
    """A way to the node of Redis.

    Attributes:
        host, port: Where the application reaches Redis.
        bind: Where Redis listens.
        prefix: What its command begins with.
        description: In words.
    """

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def bind(self) -> str: ...
    @property
    def prefix(self) -> Sequence[str]: ...
    @property
    def description(self) -> str: ...

    async def open(self) -> None:
        """Makes it."""

    async def close(self) -> None:
        """Takes it away."""

    def impair(self, delay_s: float, loss: float) -> None:
        """Delays each packet, in each direction, and drops so many of them; 1 is all."""

    def restore(self) -> None:
        """From here on it is as good as any."""


def has_namespaces() -> bool:
    """Whether this process can have network namespaces with a device of its own between them."""
    return os.geteuid() == 0 and TUN.exists() and shutil.which("ip") is not None


class TunnelLink:
    """A network namespace for Redis, and between it and this one two TUN devices whose packets this process carries.

    So it is packets of IP that are delayed and dropped, and TCP of the kernel that copes with it. It does what netem of
    the kernel does, which not every kernel has.

    Args:
        port: Of Redis.
        generator: Draws which packets are dropped.
    """

    def __init__(self, port: int, generator: random.Random) -> None:
        number = os.getpid() % 16_384
        network = f"10.213.{number // 64}.{number % 64 * 4}"
        base, last = network.rsplit(".", 1)
        self._here, self.host = (f"{base}.{int(last) + place}" for place in (1, 2))
        self.bind, self.port = self.host, port
        self._namespace = f"conserve-chaos-{number}"
        self._devices = (f"cch{number}", f"ccr{number}")
        self.prefix = ("ip", "netns", "exec", self._namespace)
        self.description = "a network namespace, joined by TUN devices whose packets are delayed and dropped"
        self._generator = generator
        self._files: list[int] = []
        self._delay_s = self._loss = 0.0

    async def open(self) -> None:
        """Makes the namespace and the devices.

        Raises:
            OSError, subprocess.CalledProcessError: it is not allowed to.
        """
        near, far = self._devices
        await _ip("netns", "add", self._namespace)
        self._files = [_open_tun(device) for device in self._devices]
        await _ip("link", "set", far, "netns", self._namespace)
        await _ip("addr", "add", f"{self._here}/30", "dev", near)
        await _ip("link", "set", near, "up")
        await _ip("-n", self._namespace, "addr", "add", f"{self.host}/30", "dev", far)
        await _ip("-n", self._namespace, "link", "set", far, "up")
        loop = asyncio.get_running_loop()
        for source, target in (self._files, self._files[::-1]):
            loop.add_reader(source, self._carry, source, target)

    async def close(self) -> None:
        """Takes them away; the devices go with their files."""
        for file in self._files:
            asyncio.get_running_loop().remove_reader(file)
            os.close(file)
        self._files = []
        await _ip("netns", "delete", self._namespace, check=False)

    def impair(self, delay_s: float, loss: float) -> None:
        """See `Link.impair`."""
        self._delay_s, self._loss = delay_s, loss

    def restore(self) -> None:
        """See `Link.restore`."""
        self.impair(0.0, 0.0)

    def _carry(self, source: int, target: int) -> None:
        while True:
            try:
                packet = os.read(source, PACKET_BYTES)
            except BlockingIOError:
                return
            if self._loss and self._generator.random() < self._loss:
                continue
            if self._delay_s:
                asyncio.get_running_loop().call_later(self._delay_s, self._write, target, packet)
            else:
                self._write(target, packet)

    def _write(self, target: int, packet: bytes) -> None:
        if target not in self._files:
            return  # Closed meanwhile.
        try:
            os.write(target, packet)
        except OSError:
            return  # A full queue drops packets, as a device that is down does.


class RelayLink:
    """A TCP relay, where there can be no namespaces: what passes through it waits as it would for packets sent again.

    Args:
        port: Where it listens.
        redis_port: Where Redis does.
        generator: Draws what is dropped.
    """

    prefix: Sequence[str] = ()
    host = bind = "127.0.0.1"
    description = "a TCP relay that delays and stalls what passes; no network namespace can be had here"

    def __init__(self, port: int, redis_port: int, generator: random.Random) -> None:
        self.port = port
        self._redis_port = redis_port
        self._generator = generator
        self._server: asyncio.Server | None = None
        self._delay_s = self._loss = 0.0
        self._passes = asyncio.Event()
        self._passes.set()

    async def open(self) -> None:
        """Listens."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port)

    async def close(self) -> None:
        """Listens no more, and ends its connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def impair(self, delay_s: float, loss: float) -> None:
        """See `Link.impair`."""
        self._delay_s, self._loss = delay_s, loss
        if loss >= 1.0:
            self._passes.clear()

    def restore(self) -> None:
        """See `Link.restore`."""
        self._delay_s = self._loss = 0.0
        self._passes.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._passes.wait()
            from_redis, to_redis = await asyncio.open_connection(self.bind, self._redis_port)
        except OSError:
            writer.transport.abort()
            return
        ways = [asyncio.create_task(self._pass_on(reader, to_redis))]
        ways.append(asyncio.create_task(self._pass_on(from_redis, writer)))
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.transport.abort()
            to_redis.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(CHUNK_BYTES):
                await self._passes.wait()
                pause_s = self._delay_s
                while self._loss and self._generator.random() < self._loss:
                    pause_s += LOST_CHUNK_S
                if pause_s:
                    await asyncio.sleep(pause_s)
                target.write(chunk)
                await target.drain()
        except OSError:
            return


def _open_tun(name: str) -> int:
    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(file, SET_INTERFACE, struct.pack("16sH22x", name.encode(), IS_TUN | NO_PACKET_INFO))
    except OSError:
        os.close(file)
        raise
    return file


async def _ip(*arguments: str, check: bool = True) -> None:
    await asyncio.to_thread(
        subprocess.run, ["ip", *arguments], check=check, capture_output=True, timeout=COMMAND_LIMIT_S
    )
