"""Private names of Ray that processes without vLLM use, too: `ray_compat`, whose imports take seconds, has the others.

Tested with Ray 2.60; `tests/unit/deployments/test_serve_compat.py` says which one is gone when they move.
"""

from __future__ import annotations

import os
from typing import Any

from conserve.launch.serve_proxy import GRPC_HOST_VARIABLE


def find_serve_replica() -> Any:
    """The object of Serve around the deployment's own in this process; None where this is no replica."""
    import ray
    from ray._private.worker import global_worker

    actor_id = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    if actor_id is None:
        return None
    actors = {key.hex(): actor for key, actor in global_worker.actors.items()}
    return getattr(actors.get(actor_id), "_replica_impl", None)


def is_told_to_stop(serve_replica: Any) -> bool:
    """Whether Serve has told this replica to go; only then, and after its last request, it calls the destructor."""
    return bool(serve_replica._shutting_down)


def is_node_draining() -> bool:
    """Whether Ray was told that this node goes, as by `ray drain-node` or at the notice of a spot machine.

    Asks the head, for which it waits.
    """
    import ray
    from ray._private.state import state

    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()


def count_nothing(counter: Any, tags: dict[str, str]) -> None:
    """Makes a series of a `ray.util.metrics.Counter` begin at 0; its `inc` of Ray 2.60 refuses that.

    Prometheus sees no increase where a series begins with its first event.
    """
    counter._record(0.0, tags=tags)


def confine_grpc() -> None:
    """Has Serve's servers of gRPC in this process listen where the environment says; without a word of it, everywhere.

    Serve 2.60 puts those of proxies and fronts on all interfaces, and has no setting for it; HAProxy asks those of its
    own node on loopback.
    """
    from ray.serve._private import default_impl

    host = os.environ.get(GRPC_HOST_VARIABLE)
    if host is None:
        return

    def add_address(server: Any, address: str) -> None:
        server.add_insecure_port(f"{host}:{address.rpartition(':')[2]}")

    default_impl.add_grpc_address = add_address


def find_http_host() -> str | None:
    """The address that Serve's proxies listen on, gRPC's behind HAProxy among them; None: it is not known."""
    import ray
    from ray.serve.context import _get_global_client

    # It would start a cluster otherwise.
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return None if client is None else client.http_config.host
