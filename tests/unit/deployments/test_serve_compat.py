"""Says which name of Ray is gone when a version moves it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from unittest import mock

import pytest
from ray._private.state import GlobalState
from ray._private.worker import Worker
from ray.serve._private import default_impl, grpc_util, proxy, replica
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.haproxy import HAProxyConfig
from ray.serve.config import HTTPOptions
from ray.util.metrics import Counter

from conserve.launch.serve_proxy import GRPC_HOST_VARIABLE
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


def test_a_counter_records_what_its_inc_refuses() -> None:
    counter = Counter("conserve_nothing", "Nothing.", ("kind",))
    with pytest.raises(ValueError, match=">0"):
        counter.inc(0, {"kind": "x"})
    with mock.patch.object(counter, "_metric") as inner:
        serve_compat.count_nothing(counter, {"kind": "x"})
    inner.record.assert_called_once_with(0.0, tags={"kind": "x"})


def test_serve_says_where_its_proxies_listen() -> None:
    assert serve_compat.find_http_host() is None  # There is no cluster.
    client = ServeControllerClient.__new__(ServeControllerClient)
    client._http_config = HTTPOptions(host="10.1.2.3")
    with (
        mock.patch("ray.is_initialized", return_value=True),
        mock.patch("ray.serve.context._get_global_client", return_value=client),
    ):
        assert serve_compat.find_http_host() == "10.1.2.3"


def test_grpc_listens_where_http_does_behind_haproxy() -> None:
    assert "frontend_host" in HAProxyConfig.grpc_frontend_host.fget.__code__.co_names


def test_it_does_without_vllm() -> None:
    code = "import sys, deployments.harvesting; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("host", "listens"), [("127.0.0.1", "127.0.0.1:9000"), (None, "[::]:9000")])
def test_grpc_listens_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, host: str | None, listens: str
) -> None:
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
    if host is not None:
        monkeypatch.setenv(GRPC_HOST_VARIABLE, host)
    serve_compat.confine_grpc()
    server = mock.Mock()
    default_impl.add_grpc_address(server, "[::]:9000")
    server.add_insecure_port.assert_called_once_with(listens)


def test_serve_looks_up_how_to_listen_when_it_does() -> None:
    assert "import add_grpc_address" in inspect.getsource(grpc_util.start_grpc_server)


def test_servers_of_grpc_start_after_middlewares_are_built() -> None:
    source = inspect.getsource(replica.Replica._maybe_start_direct_ingress_servers)
    assert 0 < source.index("configure_http_middlewares") < source.index("start_grpc_server(")
    source = inspect.getsource(proxy)
    assert 0 < source.index("= configure_http_middlewares(") < source.index("start_grpc_server(\n")
