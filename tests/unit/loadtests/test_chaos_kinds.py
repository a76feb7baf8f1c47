"""Processes are known by what they are called."""

from __future__ import annotations

import pytest

from loadtests.chaos.kinds import Census, ProcessKind, find_missing
from loadtests.chaos.real import TITLES

CENSUS = Census(TITLES, ("sleep", "86400"))


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["ray::ServeReplica:conserve:ConServeReplica:smollm2"], ProcessKind.REPLICA),
        (["ray::ServeReplica:conserve:ConServeReplica:smollm2.initialize_and_get_metadata"], None),
        (["ray::ServeReplica:conserve:Ingress"], ProcessKind.FRONT),
        (["ray::ServeReplica:conserve:Controller"], ProcessKind.CONTROLLER),
        (["ray::ServeController.listen_for_change"], ProcessKind.SERVE_CONTROLLER),
        (["ray::HAProxyManager"], ProcessKind.PROXY_MANAGER),
        (["ray::ProxyActor"], ProcessKind.PROXY),
        (["/somewhere/bin/haproxy", "-f", "haproxy.cfg"], ProcessKind.HAPROXY),
        (["VLLM::EngineCore"], ProcessKind.ENGINE_CORE),
        (["VLLM::Worker"], ProcessKind.WORKER),
        (["sleep", "86400"], ProcessKind.ENGINE_CORE),
        (["sleep", "5"], None),
        ([], None),
    ],
)
def test_kinds(command: list[str], kind: ProcessKind | None) -> None:
    assert CENSUS.classify(command) is kind


def test_missing_ones_are_counted() -> None:
    present = CENSUS.sort([])
    assert find_missing(present, {ProcessKind.REPLICA: 2, ProcessKind.WORKER: 0}) == {ProcessKind.REPLICA: 2}
