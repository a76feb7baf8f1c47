"""The processes of one stack: found by a mark in their environment, ended by id."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

STACK_ID_VARIABLE = "CONSERVE_STACK_ID"
"""Everything that a stack starts inherits this variable; no other process has its value."""

START_TIMEOUT_S = 30.0

# Ends at once and leaves the program to init: the caller then neither holds nor has to reap it.
_DAEMON_STARTER = """
import subprocess, sys
with open(sys.argv[1], "ab") as log:
    program = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
print(program.pid)
program.returncode = 0
"""


def start_daemon(command: Sequence[str], log_path: Path, environ: Mapping[str, str]) -> int:
    """Starts a program that outlives this process, in a session of its own; its output is appended to `log_path`.

    Returns:
        Its process id.

    Raises:
        OSError: it cannot be started.
    """
    starter = [sys.executable, "-c", _DAEMON_STARTER, str(log_path), *command]
    try:
        started = subprocess.run(
            starter, env=dict(environ), capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} cannot be started: no answer within {START_TIMEOUT_S:g} s") from None
    if started.returncode != 0:
        raise OSError(f"{command[0]} cannot be started: {started.stderr.strip()[-300:]}")
    return int(started.stdout)


def is_alive(pid: int) -> bool:
    """True while the process runs; a zombie has ended."""
    try:
        return _lives(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def find_processes(stack_id: str) -> list[psutil.Process]:
    """The living processes that carry the mark of a stack, and what they have started, except the calling one.

    Ray's agents and workers overwrite their environment with their title: they are found as children.
    """
    marked: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(STACK_ID_VARIABLE) == stack_id:
                marked.append(process)
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            continue
    found: dict[int, psutil.Process] = {}
    for process in marked:
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
        found.update((member.pid, member) for member in family if member.pid != os.getpid() and _lives(member))
    return list(found.values())


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end_processes(stack_id: str, grace_s: float = 10.0) -> int:
    """Ends all processes of a stack: asks first, and kills what is left after `grace_s` seconds.

    Returns:
        How many there were.
    """
    found = find_processes(stack_id)
    _signal(found, kill=False)
    _, alive = psutil.wait_procs(found, timeout=grace_s)
    # Some may have been started meanwhile.
    alive = [*alive, *find_processes(stack_id)]
    _signal(alive, kill=True)
    psutil.wait_procs(alive, timeout=grace_s)
    return len(found)


def _signal(processes: list[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        try:
            process.kill() if kill else process.terminate()
        except psutil.Error:  # ended meanwhile
            continue
