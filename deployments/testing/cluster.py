"""A Ray cluster of several nodes on this machine, with Serve, whose processes are killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from conserve.launch.ports import find_free_ports
from conserve.launch.serve_proxy import make_proxy_environment, remove_proxy_dir
from deployments.testing.names import APPLICATION, ENGINE_RESOURCE

START_LIMIT_S: Final = 120.0
NODE_TRIES: Final = 3
"""Ray gives a node 30 s to start, which on a busy machine may not be enough."""
STORE_BYTES: Final = 100 * 1024 * 1024

log = structlog.get_logger(__name__)

PATIENCE: Final = {
    # A node whose processes are gone refuses connections: it is given up after five of them, by default three seconds
    # apart. One that is slow has as much time as by default.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    # Of a proxy that starts on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "10",
}


class LocalCluster:
    """A head with Serve's proxy, and nodes with one engine each.

    Args:
        folder: For what HAProxy needs.
        nodes: How many, beside the head.
        redis_address: Of a Redis in which the head keeps what it knows, if it is to survive its end.
        environ: Variables of Ray beside those that every such cluster has, or in place of them.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int,
        redis_address: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._count = nodes
        self._gcs_port, self._dashboard_port, self.http_port = find_free_ports(3)
        # Sockets are there, whose paths must be short.
        self._temp_dir = Path(tempfile.mkdtemp(prefix="cs-"))
        self._environ = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_TMPDIR": str(self._temp_dir),
            **make_proxy_environment(folder),
            **PATIENCE,
            **(environ or {}),
        }
        if redis_address is not None:
            self._environ["RAY_REDIS_ADDRESS"] = redis_address
            self._environ["RAY_external_storage_namespace"] = self._temp_dir.name
        self._cluster: Any = None

    @property
    def base_url(self) -> str:
        """Of the HTTP front."""
        return f"http://127.0.0.1:{self.http_port}"

    def start(self) -> None:
        """Starts all nodes."""
        # Ray and Serve read their environment when they are imported.
        os.environ.update(self._environ)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(shutdown_at_exit=False)
        self.start_head()
        for _ in range(self._count):
            self._add_node(resources={ENGINE_RESOURCE: 1})
        self._cluster.wait_for_nodes(START_LIMIT_S)

    def run(self, application: Any) -> None:
        """Deploys an application with Serve, or changes it, and waits until it runs.

        It leaves the cluster again: its head may be killed.
        """
        import ray
        from ray import serve

        ray.init(
            address=self._cluster.address,
            namespace="serve",
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.http_port})
        serve.run(application, name=APPLICATION, route_prefix="/")
        ray.shutdown()

    def start_head(self) -> None:
        """Starts the head, also again where it was killed."""
        self._add_node(gcs_server_port=self._gcs_port, include_dashboard=False, dashboard_port=self._dashboard_port)

    def _add_node(self, **arguments: Any) -> None:
        for tries_left in reversed(range(NODE_TRIES)):
            known = {process.pid for process in self._list_all()}
            try:
                self._cluster.add_node(wait=False, num_cpus=1, object_store_memory=STORE_BYTES, **arguments)
                return
            except Exception as error:  # Ray has no type of its own for it.
                kill_all(process for process in self._list_all() if process.pid not in known)
                if not tries_left:
                    raise
                log.warning("a node did not start in time; starting another", error=str(error))

    def _list_all(self) -> list[psutil.Process]:
        """Everything that was started for this cluster: what names its folder, and what that has started."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self._temp_dir) in " ".join(process.cmdline()):
                    found.update((one.pid, one) for one in (process, *process.children(recursive=True)))
        return list(found.values())

    def list_nodes(self) -> list[Any]:
        """The nodes that live, without the head."""
        return list(self._cluster.worker_nodes)

    def list_processes(self, node: Any) -> list[psutil.Process]:
        """All processes of a node."""
        found: dict[int, psutil.Process] = {}
        for one in (info.process.pid for infos in node.all_processes.values() for info in infos):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(one)
                found.update((member.pid, member) for member in (process, *process.children(recursive=True)))
        return list(found.values())

    def kill_node(self, node: Any) -> set[int]:
        """Kills all processes of a node at once, as when a machine loses its power; their ids."""
        killed = self.list_processes(node)
        kill_all(killed)
        self._cluster.remove_node(node, allow_graceful=False)
        return {process.pid for process in killed}

    def drain_node(self, node: Any, deadline_s: int) -> None:
        """Tells Ray that a node will vanish.

        Raises:
            subprocess.CalledProcessError: Ray does not accept it.
        """
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self._cluster.address]
        command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", str(deadline_s)]
        subprocess.run(command, check=True, capture_output=True, timeout=START_LIMIT_S)

    def kill_head(self) -> set[int]:
        """Kills the head with Serve's controller and proxy; the ids of their processes."""
        return self.kill_node(self._cluster.head_node)

    def find_actors(self, name: str, node: Any = None) -> list[psutil.Process]:
        """Processes of actors by the name that Ray gives them, see `names`; on a node or all."""
        every = [*self.list_nodes(), *([self._cluster.head_node] if self._cluster.head_node else [])]
        found = []
        for process in (process for one in ([node] if node else every) for process in self.list_processes(one)):
            with suppress(psutil.Error):
                if f"ray::{name}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def stop(self) -> None:
        """Ends all of it."""
        import ray

        ray.shutdown()
        for node in self.list_nodes():
            self.kill_node(node)
        if self._cluster.head_node is not None:
            self.kill_head()
        kill_all(self._list_all())
        remove_proxy_dir(self._folder)
        shutil.rmtree(self._temp_dir, ignore_errors=True)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kills processes at once."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
