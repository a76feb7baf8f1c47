"""A bare vLLM server with the settings of an application's engines: what its front door is compared with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from conserve.config import Settings
from conserve.launch.ports import find_free_ports
from conserve.models import resolve_model
from loadtests.front.calls import CallError, Calls

START_LIMIT_S: Final = 300.0
END_LIMIT_S: Final = 20.0
POLL_S: Final = 0.5
SHOWN_LINES: Final = 3


class BareServerError(RuntimeError):
    """The bare server does not come up; the message says what it printed last."""


def make_command(settings: Settings, port: int, *, on_cpu: bool) -> list[str]:
    """The command line of `vllm serve` with the model and the sizes of the settings.

    Raises:
        ModelError: there is no such model.
    """
    engine = settings.engine
    options: dict[str, object] = {
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": settings.model.served_name,
        "max-num-seqs": engine.max_num_seqs,
        "max-num-batched-tokens": engine.max_num_batched_tokens,
        "dtype": engine.dtype,
        "tensor-parallel-size": engine.tensor_parallel_size,
    }
    if engine.max_model_len is not None:
        options["max-model-len"] = engine.max_model_len
    if on_cpu:
        options["kv-cache-memory-bytes"] = int(engine.kv_cache_gib * 2**30)
    else:
        options["gpu-memory-utilization"] = engine.gpu_memory_utilization
    command = [sys.executable, "-m", "loadtests.vllm_cli", "serve", resolve_model(settings.model.source)]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*command, *(["--enforce-eager"] if on_cpu else []), "--disable-uvicorn-access-log"]


@contextlib.contextmanager
def run_bare_server(settings: Settings, log_path: Path, *, on_cpu: bool) -> Iterator[str]:
    """The address of a bare server that answers; it is ended with all its processes afterwards.

    Raises:
        BareServerError: it does not come up.
        ModelError: there is no such model.
    """
    port = find_free_ports(1)[0]
    environ = dict(os.environ)
    if on_cpu and settings.engine.cpu_threads_bind != "auto":
        environ["VLLM_CPU_OMP_THREADS_BIND"] = settings.engine.cpu_threads_bind
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = make_command(settings, port, on_cpu=on_cpu)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
        )
        try:
            base_url = f"http://127.0.0.1:{port}"
            _wait(process, base_url, log_path)
            yield base_url
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], base_url: str, log_path: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    calls = Calls(base_url)
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise BareServerError(f"vllm serve ended: {' '.join(lines[-SHOWN_LINES:])}; log: {log_path}")
        with contextlib.suppress(CallError):
            calls.get("/health", timeout_s=5.0)
            return
        time.sleep(POLL_S)
    raise BareServerError(f"vllm serve does not answer after {START_LIMIT_S:g} s; log: {log_path}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its session is its own: what it started is ended with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT_S)
            if number == signal.SIGTERM and _is_group_left(process.pid):
                continue
            return


def _is_group_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
