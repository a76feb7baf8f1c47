from __future__ import annotations

import pytest

from conserve.harvest.messages import CapacityReport
from deployments.status import build_status


@pytest.mark.parametrize(
    ("controller", "cluster", "elsewhere"),
    [("a", "a", False), ("b", "a", True), (None, "a", False), ("b", None, False)],
)
def test_the_controller_of_another_cluster_is_said(
    controller: str | None, cluster: str | None, elsewhere: bool
) -> None:
    status = build_status([], [], controller=controller, cluster=cluster)
    assert (status.controller, status.controller_elsewhere) == (controller, elsewhere)


def test_a_replica_says_in_words_what_it_is_doing() -> None:
    report = CapacityReport(replica_id="r1", model="m", state="serving", window=4, offline_running=3)
    (replica,) = build_status([report], []).model_dump()["replicas"]
    assert replica["doing"] == "no online requests, runs 3 batch requests in a window of 4"
    assert replica["window"] == 4
