"""Free TCP ports of this machine."""

from __future__ import annotations

import ipaddress
import random
import socket

# Ray hands these to its workers and refuses them for anything else.
_RAY_WORKER_PORTS = range(10_002, 20_000)
# Between those and the ones that systems give to clients.
_BLOCK_PORTS = range(20_000, 32_000)


def is_loopback(host: str) -> bool:
    """Whether what listens at an address is reached by this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """True when nothing listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def find_free_ports(count: int) -> list[int]:
    """So many different free ports. Another process may take one before it is used; a start then fails, clearly."""
    found: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(found) < count:
            probe = socket.socket()
            held.append(probe)
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if port not in _RAY_WORKER_PORTS:
                found.append(port)
    finally:
        for probe in held:
            probe.close()
    return found


def find_free_block(length: int) -> range:
    """So many free ports in a row, none of which another caller is likely to get at the same time.

    Raises:
        OSError: there are no such ports.
    """
    starts = _BLOCK_PORTS[: -length + 1 : length]
    for start in random.sample(starts, len(starts)):
        block = range(start, start + length)
        if all(is_free(port) for port in block):
            return block
    raise OSError(f"no {length} free ports in a row from {_BLOCK_PORTS.start} to {_BLOCK_PORTS.stop - 1}")
