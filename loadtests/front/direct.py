"""Chats sent to a replica past the proxy and the front, by a process that may import Ray."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from conserve.config import Settings

START_LIMIT_S: Final = 60.0
ANSWER_LIMIT_S: Final = 70.0
END_LIMIT_S: Final = 15.0

Ask = Callable[[dict[str, Any]], float]
"""Sends the body of a chat; milliseconds to its first content."""


class DirectError(RuntimeError):
    """The replica cannot be asked directly; the message says why."""


def find_address(settings: Settings) -> str | None:
    """Where Ray is, of a stack that `conserve up` has started on this machine."""
    try:
        port, _ = (settings.state_dir / "ray_head.ports").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return f"127.0.0.1:{port}"


@contextlib.contextmanager
def ask_replica(address: str, application: str, log_path: Path) -> Iterator[Ask]:
    """Joins the cluster for as long as it is needed.

    Raises:
        DirectError: it cannot be joined, or a chat failed.
    """
    command = [sys.executable, "-m", "deployments.stage_times", address, application]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    # Ray's own default is to have no token, other than that of the heads it starts.
    environ = {"RAY_AUTH_MODE": "token", **os.environ, "PYTHONPATH": path}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environ, start_new_session=True
        )
        try:
            _read_line(process, START_LIMIT_S, log_path)  # it is ready

            def ask(body: dict[str, Any]) -> float:
                if process.stdin is None:
                    raise DirectError("its input is closed")
                process.stdin.write(json.dumps(body).encode() + b"\n")
                process.stdin.flush()
                return float(_read_line(process, ANSWER_LIMIT_S, log_path))

            yield ask
        finally:
            _end(process)


def _read_line(process: subprocess.Popen[bytes], limit_s: float, log_path: Path) -> str:
    output = process.stdout
    if output is None:
        raise DirectError("its output is closed")
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        # Lines come one at a time and are short, so that none stays behind in a buffer.
        if select.select([output], [], [], 0.5)[0]:
            line = output.readline().decode().strip()
            if not line:
                raise DirectError(f"the replica cannot be asked directly; log: {log_path}")
            return line
    raise DirectError(f"no answer within {limit_s:g} s; log: {log_path}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
