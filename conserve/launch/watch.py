"""Watches a stack that runs, for whoever stays with it: a service manager, a container."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from conserve.launch.processes import find_processes
from conserve.launch.record import StackError, StackRecord, read_record
from conserve.launch.serve_api import ServeApi, ServeApiError

LOOK_PERIOD_S = 5.0
SILENCE_TOLERATED_S = 60.0
"""Serve replaces its own controller within seconds, and the application with what it serves stays meanwhile."""


def watch_stack(
    state_dir: Path,
    environ: Mapping[str, str],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Stays while the stack of a state folder runs; returns once somebody has taken it down, or brought up another.

    Args:
        state_dir: of the stack.
        environ: where Ray's token is looked up.
        clock: seconds, monotonic.
        sleep: waits for so many seconds.

    Raises:
        StackError: Ray has ended, or Serve has not had the application for `SILENCE_TOLERATED_S`.
    """
    watched = read_record(state_dir)
    if watched is None or watched.dashboard_url is None:
        return
    api = ServeApi(watched.dashboard_url, environ)
    seen_at_s = clock()
    while _is_of(read_record(state_dir), watched):
        trouble = _look(api, watched)
        now_s = clock()
        if trouble is None:
            seen_at_s = now_s
        elif watched.owns_ray and not find_processes(watched.stack_id):
            # Who takes a stack down ends its processes first and removes its record then.
            sleep(LOOK_PERIOD_S)
            if _is_of(read_record(state_dir), watched):
                raise StackError("The stack is lost: Ray has ended")
            return
        elif now_s - seen_at_s > SILENCE_TOLERATED_S:
            raise StackError(f"The stack is lost, for {now_s - seen_at_s:.0f} s: {trouble}")
        sleep(LOOK_PERIOD_S)


def tell_ready(environ: Mapping[str, str]) -> None:
    """Tells systemd that the stack is up, where it waits to hear it (`Type=notify`); sd_notify(3).

    Raises:
        OSError: the socket that it names is not there.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(b"READY=1")


def _is_of(record: StackRecord | None, watched: StackRecord) -> bool:
    return record is not None and record.stack_id == watched.stack_id


def _look(api: ServeApi, watched: StackRecord) -> str | None:
    try:
        applications = api.read_applications()
    except ServeApiError as error:
        return str(error)
    return None if watched.application in applications else f"Ray Serve has no application {watched.application}"
