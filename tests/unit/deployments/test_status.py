from __future__ import annotations

import pytest

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
