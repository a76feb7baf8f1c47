from __future__ import annotations

import pytest

from conserve.harvest.messages import CapacityReport
from conserve.jobs.batch import ActiveBatch, BatchStatus
from deployments.status import build_status


def make_batch(batch_id: str, tenant: str) -> ActiveBatch:
    return ActiveBatch(
        batch_id=batch_id,
        status=BatchStatus.IN_PROGRESS,
        created_at_ms=1,
        expires_at_ms=2,
        cancelling_at_ms=None,
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        model="m",
        total=3,
        completed=1,
        failed=0,
        ready=2,
        leased=0,
        outcome=None,
        tenant=tenant,
    )


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


@pytest.mark.parametrize(
    ("tenant", "own", "said"),
    [
        ("a", ["batch_a"], "begins nothing of 1 batch for"),
        ("b", ["batch_b1", "batch_b2"], "begins nothing of 2 batches for"),
        ("other", [], ""),
        (None, ["batch_a", "batch_b1", "batch_b2"], "begins nothing of 3 batches for"),
    ],
)
def test_a_caller_sees_batches_of_its_own_tenant_only_unless_it_is_an_admin(
    tenant: str | None, own: list[str], said: str
) -> None:
    batches = [make_batch("batch_b1", "b"), make_batch("batch_a", "a"), make_batch("batch_b2", "b")]
    # One has ended since the report, and is nobody's that is known.
    stopped = ("batch_a", "batch_b1", "batch_b2", "batch_ended")
    reports = [
        CapacityReport(replica_id="r1", model="m", state="serving", window=4, stopped=stopped),
        CapacityReport(replica_id="r2", model="m", state="serving", window=4),
    ]
    status = build_status(reports, batches, tenant)
    assert sorted(line.id for line in status.batches) == own
    assert [list(replica.stopped) for replica in status.replicas] == [own, []]
    assert said in status.replicas[0].doing
    assert bool(own) == ("begins nothing" in status.replicas[0].doing)
    assert all(batch.batch_id in own or batch.batch_id not in status.model_dump_json() for batch in batches)
