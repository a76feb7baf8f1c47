from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from conserve.launch.ports import find_free_ports, is_free
from conserve.launch.processes import STACK_ID_VARIABLE, end_processes, find_processes, is_alive, start_daemon
from conserve.launch.ray_head import RayHeadError, start_ray_head

# A child that loses its environment, as Ray's agents do, and a parent that does not listen to SIGTERM.
PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={})
print(child.pid, flush=True)
time.sleep(600)
"""


def test_whole_family_of_a_stack_is_found_and_ended() -> None:
    stack_id = uuid.uuid4().hex
    environ = {**os.environ, STACK_ID_VARIABLE: stack_id}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environ, stdout=subprocess.PIPE, text=True)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert {process.pid for process in find_processes(stack_id)} == {parent.pid, child_pid}
        assert end_processes(stack_id, grace_s=0.5) == 2
        assert not psutil.pid_exists(child_pid) or psutil.Process(child_pid).status() == psutil.STATUS_ZOMBIE
        parent.wait(60)
        assert stranger.poll() is None
        assert find_processes(stack_id) == []
    finally:
        for process in (parent, stranger):
            process.kill()
            process.wait(60)
        if parent.stdout is not None:
            parent.stdout.close()


def test_free_ports_are_different_free_and_not_ray_s() -> None:
    ports = find_free_ports(5)
    assert len(set(ports)) == 5
    assert all(is_free(port) and not 10_002 <= port < 20_000 for port in ports)


def test_daemon_is_nobody_s_child_and_logs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "import time; print('started', flush=True); time.sleep(600)"
    pid = start_daemon([sys.executable, "-c", program], log, os.environ)
    try:
        assert is_alive(pid)
        assert psutil.Process(pid).ppid() != os.getpid()
        while not log.read_text():
            time.sleep(0.01)
        assert log.read_text() == "started\n"
    finally:
        psutil.Process(pid).kill()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
    assert not is_alive(pid)


def test_daemon_that_does_not_answer_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("python", 30)

    monkeypatch.setattr("conserve.launch.processes.subprocess.run", hang)
    with pytest.raises(OSError, match="no answer within 30 s"):
        start_daemon(["program"], tmp_path / "log", os.environ)
    monkeypatch.setattr("conserve.launch.ray_head.read_auth_token", lambda environ: None)
    with pytest.raises(RayHeadError, match="no answer within 60 s"):
        start_ray_head(tmp_path, {})
