"""Says which name of Ray is gone when a version moves it."""

from __future__ import annotations

import inspect
import subprocess
import sys

from ray._private.state import GlobalState
from ray._private.worker import Worker
from ray.serve._private import replica

from deployments import serve_compat


def test_outside_of_a_cluster_there_is_no_replica() -> None:
    assert serve_compat.find_serve_replica() is None


def test_ray_keeps_actors_under_this_name() -> None:
    assert "actors" in Worker.__init__.__code__.co_names


def test_serve_keeps_its_replica_under_this_name() -> None:
    assert "_replica_impl" in replica.ReplicaActor.perform_graceful_shutdown.__code__.co_names


def test_a_replica_that_is_told_to_go_notes_it_before_it_waits_for_requests() -> None:
    source = inspect.getsource(replica.Replica._perform_graceful_shutdown)
    assert 0 < source.index("self._shutting_down = True") < source.index("_drain_ongoing_requests")
    assert "_shutting_down" in replica.Replica.__init__.__code__.co_names


def test_the_head_is_asked_for_nodes_that_go() -> None:
    assert callable(GlobalState.get_draining_nodes)


def test_it_does_without_vllm() -> None:
    code = "import sys, deployments.harvesting; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
