"""Free ports of this machine."""

from __future__ import annotations

import socket

import pytest

from conserve.launch import ports
from conserve.launch.ports import find_free_block


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
