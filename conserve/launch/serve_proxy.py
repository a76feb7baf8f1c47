"""The environment of Ray Serve's proxies, on a Ray head of our own.

HAProxy stands in front in place of Serve's proxy in Python: on a CPU machine a chat's first token comes some 15 ms
earlier, and large uploads wait for the front to take them in. Ray brings it along (2.60, docs: "HAProxy"). On a cluster
of somebody else's it is as its owner has set it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from conserve.launch.haproxy_command import VARIABLE, find_command
from conserve.launch.paths import proxy_dir
from conserve.launch.ports import find_free_block, find_free_ports

PACING: Final = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.proxy_pacing.build_middlewares"}
"""What the proxy in Python needs, which HAProxy falls back to while no front runs."""
DRAINING_S: Final = 5
"""HAProxy hears sooner than that of a front that goes; Ray's default is made for load balancers of clouds."""
HEALTH_CHECK_PERIOD_S: Final = 2
"""Three failed checks, and a proxy that has died is started again; by Ray's default that takes half a minute."""
GRPC_MESSAGE_BYTES: Final = 32 << 20
"""Longest message; by default it is 2 GiB, and each stands in the memory of the front."""
FRONT_PORTS: Final = 100
"""That the fronts of a stack choose from, for HTTP and for gRPC; a front that goes keeps its own for a while."""
GRPC_HOST_VARIABLE: Final = "CONSERVE_GRPC_HOST"
"""Where Serve's own servers of gRPC listen, behind HAProxy or without it; see `deployments/serve_compat.py`."""
SWITCH: Final = "RAY_SERVE_ENABLE_HA_PROXY"
PROXY_ENVIRONMENT: Final = {
    **PACING,
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(GRPC_MESSAGE_BYTES),
    SWITCH: "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(HEALTH_CHECK_PERIOD_S),
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_S),
}
"""Of every node; cluster/ has the same for nodes that are started in other ways, and where `conserve-haproxy` is."""


def make_proxy_environment(state_dir: Path) -> dict[str, str]:
    """Variables for all processes of a stack's head; ports and paths are its own, so that several run on a machine.

    Raises:
        OSError: the folder of its sockets cannot be made, or ports are missing.
    """
    folder = proxy_dir(state_dir)
    remove_proxy_dir(state_dir)
    folder.mkdir(mode=0o700)
    stats, metrics, fallback_http, fallback_grpc = find_free_ports(4)
    both = find_free_block(2 * FRONT_PORTS)
    http, grpc = both[:FRONT_PORTS], both[FRONT_PORTS:]
    return {
        **PROXY_ENVIRONMENT,
        # Two servers of gRPC can listen on the same port, although Ray 2.60 means to forbid it: it gives gRPC a text
        # where that takes a number. The calls to one stack would reach the other.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http.stop - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc.stop - 1),
        VARIABLE: str(find_command()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }


def has_haproxy(environ: Mapping[str, str]) -> bool:
    """Whether HAProxy stands in front with this environment: unless Ray's variable takes it out."""
    return environ.get(SWITCH, "1") == "1"


def find_grpc_environment(http_host: str) -> dict[str, str]:
    """Variables with which gRPC is on loopback where HTTP is; of Serve only HAProxy has one host for both."""
    is_loopback = http_host == "localhost" or http_host.startswith("127.") or http_host == "::1"
    return {GRPC_HOST_VARIABLE: http_host} if is_loopback else {}


def remove_proxy_dir(state_dir: Path) -> None:
    """Removes what a stack's HAProxy has left, once it has ended; Ray does not."""
    shutil.rmtree(proxy_dir(state_dir), ignore_errors=True)
