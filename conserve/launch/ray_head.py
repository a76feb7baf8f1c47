"""A Ray head of our own: one process that holds the cluster's, on free ports."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from conserve.launch.paths import ray_temp_dir
from conserve.launch.ports import find_free_ports, is_free
from conserve.launch.private_file import make_private_folder, write_private
from conserve.launch.processes import is_alive, start_daemon
from conserve.launch.serve_proxy import make_proxy_environment

DEFAULT_DASHBOARD_PORT = 8265
START_TIMEOUT_S = 90.0
TOKEN_TIMEOUT_S = 60.0
OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Requests and results are small, and no dataset passes through Ray's object store."""

RAY_ENVIRONMENT: Final = {
    # Ray gives its workers a lower priority by default; an engine would starve beside any busy process.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Of every node; cluster/ has the same for nodes that are started in other ways."""


class RayHeadError(RuntimeError):
    """The Ray head did not start. The message says why, or where its log is."""


@dataclass(frozen=True)
class RayHead:
    """A running head. `dashboard_url` also takes Serve's REST calls."""

    pid: int
    gcs_address: str
    dashboard_url: str
    temp_dir: Path


def read_auth_token(environ: Mapping[str, str]) -> str | None:
    """The token that Ray's dashboard wants; the places are Ray's (docs: "Token authentication").

    None when Ray has none: it is switched off, or no cluster was ever started here.
    """
    if environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"]
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def start_ray_head(state_dir: Path, environ: Mapping[str, str]) -> int:
    """Starts a head with everything it starts below it, and does not wait; see `wait_for_ray_head`.

    It outlives the caller. The dashboard is on loopback, on port 8265 when that is free; Ray 2.60 puts others on the
    machine's own address, and asks for its token there.

    Returns:
        Its process id.

    Raises:
        RayHeadError: Ray makes no authentication token.
        OSError: the process cannot be started, or a folder cannot be made.
    """
    gcs, client, agent, agent_grpc, runtime_env, metrics, dashboard = find_free_ports(7)
    if is_free(DEFAULT_DASHBOARD_PORT):
        dashboard = DEFAULT_DASHBOARD_PORT
    temp_dir = ray_temp_dir(state_dir)
    make_private_folder(temp_dir)
    _ensure_auth_token(environ)
    log_path = state_dir / "ray_head.log"
    (state_dir / "ray_head.ports").write_text(f"{gcs} {dashboard}\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(gcs), "--ray-client-server-port", str(client)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--dashboard-agent-listen-port", str(agent), "--dashboard-agent-grpc-port", str(agent_grpc)),
        *("--runtime-env-agent-port", str(runtime_env), "--metrics-export-port", str(metrics)),
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--object-store-memory", str(OBJECT_STORE_BYTES), "--temp-dir", str(temp_dir)),
    ]
    write_private(log_path, "")
    return start_daemon(command, log_path, {**RAY_ENVIRONMENT, **make_proxy_environment(state_dir), **environ})


def wait_for_ray_head(pid: int, state_dir: Path, environ: Mapping[str, str]) -> RayHead:
    """Waits until the head's dashboard answers.

    Raises:
        RayHeadError: it ended, or did not answer in time.
    """
    gcs, dashboard = (state_dir / "ray_head.ports").read_text(encoding="utf-8").split()
    head = RayHead(pid, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", ray_temp_dir(state_dir))
    log_path = state_dir / "ray_head.log"
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if not is_alive(pid):
            tail = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise RayHeadError(f"Ray did not start: {' '.join(tail)}; log: {log_path}")
        if _answers(head, environ):
            return head
        time.sleep(0.25)
    raise RayHeadError(f"Ray did not answer within {START_TIMEOUT_S:g} s; log: {log_path}")


def _answers(head: RayHead, environ: Mapping[str, str]) -> bool:
    token = read_auth_token(environ)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        response = httpx.get(f"{head.dashboard_url}/api/serve/applications/", headers=headers, timeout=5)
    except httpx.HTTPError:
        return False
    return response.status_code == httpx.codes.OK


def _ensure_auth_token(environ: Mapping[str, str]) -> None:
    """`ray start` wants a token to be there and, other than `ray.init`, makes none."""
    if environ.get("RAY_AUTH_MODE") == "disabled" or read_auth_token(environ) is not None:
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
    try:
        made = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=TOKEN_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise RayHeadError(
            f"Ray could not make an authentication token: no answer within {TOKEN_TIMEOUT_S:g} s"
        ) from None
    if made.returncode != 0:
        raise RayHeadError(f"Ray could not make an authentication token: {made.stderr.strip()[-500:]}")
