"""HAProxy as the command starts it, with the options of Serve's that it would fail with."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from conserve.launch.haproxy_command import NO_SPLICE, find_command
from conserve.launch.ports import find_free_ports

TIMEOUT_S = 30
CLIENTS = 12
CONFIG = """
global
    stats socket {socket} mode 666 level admin
    nbthread 4
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    option abortonclose
    option splice-request
frontend prometheus
    bind :{metrics_port}
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    server first 127.0.0.1:{server_port}
listen stats
    bind *:{stats_port}
"""


@contextmanager
def haproxy(config: Path) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        [find_command(), "-db", "-f", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


async def connect(port: int) -> StreamWriter:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(OSError):
                return (await asyncio.open_connection("127.0.0.1", port))[1]
            await asyncio.sleep(0.05)


async def leave(port: int, asked: asyncio.Event) -> None:
    """A request in two pieces, whose client goes when it is with the server."""
    writer = await connect(port)
    asked.clear()
    writer.write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.write(b"{}")
    await writer.drain()
    await asyncio.wait_for(asked.wait(), TIMEOUT_S)
    writer.close()
    await writer.wait_closed()


def test_the_server_hears_of_clients_that_leave_and_no_core_is_spent(tmp_path: Path) -> None:
    assert "option splice-request" in HAPROXY_CONFIG_TEMPLATE, f"Serve splices no more: {NO_SPLICE} can go"
    asked, left = asyncio.Event(), asyncio.Semaphore(0)

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        asked.set()
        with contextlib.suppress(ConnectionError):  # HAProxy resets it.
            assert await reader.read() == b""
        left.release()
        writer.close()

    async def run() -> float:
        port, server_port, metrics_port, stats_port = find_free_ports(4)
        config = tmp_path / "haproxy.cfg"
        ports = {"port": port, "server_port": server_port, "metrics_port": metrics_port, "stats_port": stats_port}
        config.write_text(CONFIG.format(socket=tmp_path / "admin.sock", **ports))
        async with await asyncio.start_server(serve, "127.0.0.1", server_port):
            with haproxy(config) as process:
                (await connect(port)).close()
                assert process.name() == "haproxy"
                before = process.cpu_times()
                for _ in range(CLIENTS):
                    await leave(port, asked)
                    await asyncio.wait_for(left.acquire(), TIMEOUT_S)
                after = process.cpu_times()
        return after.user + after.system - before.user - before.system

    assert asyncio.run(run()) < 0.5
