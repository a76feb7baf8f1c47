"""Free ports of this machine."""

from __future__ import annotations

import socket

import pytest

from conserve.launch import ports
from conserve.launch.ports import find_free_block, is_loopback


def test_a_block_has_no_port_that_somebody_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find_free_block(10)
    assert len(block) == 10
    # Of two blocks one is taken, by somebody who would share his port.
    monkeypatch.setattr(ports, "_BLOCK_PORTS", range(block.start - 10, block.stop))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", block[-1]))
        listener.listen()
        assert {find_free_block(10).start for _ in range(20)} == {block.start - 10}
        monkeypatch.setattr(ports, "_BLOCK_PORTS", block)
        with pytest.raises(OSError, match="no 10 free ports in a row"):
            find_free_block(10)


@pytest.mark.parametrize(
    ("host", "is_so"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("", False),
        ("front.example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, is_so: bool) -> None:
    assert is_loopback(host) is is_so
