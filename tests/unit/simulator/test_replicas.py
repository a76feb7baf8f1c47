"""Replicas in virtual time: nothing is lost, nothing is made up, and mechanisms do what they are for."""

from __future__ import annotations

import itertools
import random

import pytest
from msgspec.structs import replace

from conserve.policy.window import WindowRule
from conserve.simulator.batch_supply import BatchSupply, SimBatch
from conserve.simulator.cluster import Cluster, Incident
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES
from conserve.simulator.workload import Arrival, OfflineShape
from tests.unit.simulator.clusters import COSTS, DOCUMENTS, make_arrivals, run_cluster

CO_SERVING = [name for name, policy in POLICIES.items() if policy.has_online and policy.has_offline]
SMALL_MEMORY = COSTS.model_copy(update={"kv_blocks": 900})


@pytest.mark.parametrize("name", CO_SERVING)
@pytest.mark.parametrize("coarse", [False, True])
def test_every_online_request_gets_its_tokens_and_no_more(name: str, coarse: bool) -> None:
    arrivals = make_arrivals(40, 0.3)

    metrics = run_cluster(name, arrivals, 90.0, coarse=coarse).metrics

    assert metrics.online_requests == metrics.online_finished == 40
    assert metrics.online_tokens == 40 * 550
    assert metrics.tbt.count == 40 * 49


@pytest.mark.parametrize("name", CO_SERVING)
def test_offline_tokens_are_those_of_the_requests_in_scarce_memory_too(name: str) -> None:
    shape = OfflineShape((3_000, 3_000), (100, 100))

    cluster = run_cluster(name, make_arrivals(30, 1.0), 120.0, costs=SMALL_MEMORY, offline=shape, in_flight=16)

    metrics, state = cluster.metrics, cluster.replicas[0].state
    assert metrics.online_finished == 30
    # Whoever has not ended has at most computed all of its prompt, and has at most one token less than all.
    done = metrics.offline_requests
    assert 3_000 * done <= metrics.offline_prompt_tokens <= 3_000 * (done + 16)
    assert 100 * done <= metrics.offline_output_tokens <= 100 * done + 16 * 99
    assert 0 <= state.kv.used <= state.kv.capacity


@pytest.mark.parametrize("coarse", [False, True])
def test_memory_in_use_is_that_of_the_requests_that_run(coarse: bool) -> None:
    cluster = run_cluster("conserve", make_arrivals(60, 0.4), 30.0, costs=SMALL_MEMORY, coarse=coarse)

    state = cluster.replicas[0].state
    running = [*state.online, *state.offline, *state.online_prompts, *state.offline_prompts]
    held = sum(state.computed_of(request) + state.kv.block_size // 2 for request in running)
    # A request on its way back from host memory holds some, too.
    landing = state.kv.used - held
    assert landing == 0 or 0 < landing < 7_000


def test_the_same_seed_gives_the_same_figures_and_another_one_does_not() -> None:
    noisy = COSTS.model_copy(update={"noise": 0.05})
    runs = [run_cluster("conserve", make_arrivals(40, 0.3), 30.0, costs=noisy, seed=seed) for seed in (1, 1, 2)]

    first, again, other = (run.metrics.to_dict() for run in runs)

    assert first == again
    assert first != other


def test_online_requests_alone_meet_nobody() -> None:
    arrivals = make_arrivals(20, 2.0, prompt_tokens=1_000, output_tokens=20)

    metrics = run_cluster("online-only", arrivals, 60.0, offline=None).metrics

    assert metrics.ttft.percentile(0.99) == pytest.approx(8.0 + 30.0 + 0.5, rel=0.01)
    assert metrics.tbt.percentile(0.99) == pytest.approx(8.1, rel=0.01)


def test_a_request_waits_for_layers_of_a_pass_and_not_for_its_end() -> None:
    arrivals = [Arrival(20.0 + 5.0 * number, 100, 1) for number in range(20)]
    # Nobody has time to wait for a pass of 2,048 tokens, which takes 70 ms.
    options = {"ttft_slo_ms": 25.0, "tbt_slo_ms": 100.0}

    stopped = run_cluster("conserve", arrivals, 130.0, **options).metrics
    fixed = run_cluster("no-safepoints", arrivals, 130.0, **options).metrics
    stock = run_cluster("stock-priority", arrivals, 130.0, **options).metrics

    assert stopped.stops >= 10
    assert stopped.ttft.percentile(0.99) < 30.0 < stock.ttft.percentile(0.5)
    assert stopped.offline_tokens_per_s > fixed.offline_tokens_per_s


def test_a_stopped_pass_that_goes_on_loses_nothing() -> None:
    arrivals = [Arrival(20.0 + 0.5 * number, 100, 1) for number in range(200)]
    options = {"ttft_slo_ms": 25.0, "tbt_slo_ms": 100.0}

    resumed = run_cluster("conserve", arrivals, 130.0, **options).metrics
    thrown_away = run_cluster("no-resume", arrivals, 130.0, **options).metrics

    assert resumed.resumed_passes > 100
    assert resumed.recomputed_tokens < 0.1 * thrown_away.recomputed_tokens
    assert resumed.offline_tokens_per_s > thrown_away.offline_tokens_per_s


def test_checkpoints_bring_preempted_requests_back() -> None:
    shape = OfflineShape((2_000, 3_000), (400, 600))
    # Bursts that need most of the memory.
    arrivals = [Arrival(20.0 + 10.0 * burst, 2_500, 30) for burst in range(10) for _ in range(4)]

    saved = run_cluster("conserve", arrivals, 130.0, costs=SMALL_MEMORY, offline=shape).metrics
    lost = run_cluster("no-checkpoints", arrivals, 130.0, costs=SMALL_MEMORY, offline=shape).metrics

    assert saved.offline_preemptions > 10
    assert saved.restored_blocks > 100
    assert lost.restored_blocks == 0
    assert saved.recomputed_tokens < lost.recomputed_tokens


def test_the_budget_keeps_tokens_in_time_where_stock_does_not() -> None:
    arrivals = make_arrivals(200, 0.4, output_tokens=100)

    ours = run_cluster("conserve", arrivals, 90.0).metrics
    stock = run_cluster("stock-priority", arrivals, 90.0).metrics

    assert ours.tbt.percentile(0.99) <= 61.0
    assert stock.tbt.percentile(0.99) > 70.0


def test_a_gateway_keeps_offline_requests_out_while_online_ones_are_late() -> None:
    arrivals = make_arrivals(300, 0.25)

    limited = run_cluster("gateway-limit", arrivals, 80.0, ttft_slo_ms=100.0).metrics
    stock = run_cluster("stock-priority", arrivals, 80.0, ttft_slo_ms=100.0).metrics

    assert limited.offline_tokens_per_s < stock.offline_tokens_per_s
    assert limited.ttft.percentile(0.9) < stock.ttft.percentile(0.9)


@pytest.mark.parametrize("costs", [COSTS, SMALL_MEMORY])
def test_coarse_steps_give_nearly_the_figures_of_exact_ones(costs: object) -> None:
    arrivals = make_arrivals(200, 0.5, output_tokens=150)
    options = {"costs": costs, "in_flight": 24}

    exact = run_cluster("conserve", arrivals, 120.0, **options).metrics
    coarse = run_cluster("conserve", arrivals, 120.0, coarse=True, **options).metrics

    assert coarse.steps < 0.75 * exact.steps
    assert coarse.offline_tokens_per_s == pytest.approx(exact.offline_tokens_per_s, rel=0.05)
    assert coarse.ttft.percentile(0.99) == pytest.approx(exact.ttft.percentile(0.99), rel=0.15)


def test_online_requests_join_coarse_steps_and_are_as_fast_as_in_exact_ones() -> None:
    generator = random.Random(2)
    gaps_s = [generator.expovariate(4.0) for _ in range(400)]
    arrivals = [
        Arrival(1.0 + at_s, generator.randint(100, 2_000), generator.randint(20, 200))
        for at_s in itertools.accumulate(gaps_s)
    ]
    costs = COSTS.model_copy(update={"kv_blocks": 40_000})
    options = {"costs": costs, "in_flight": 64, "ttft_slo_ms": 1_500.0, "tbt_slo_ms": 200.0}

    exact = run_cluster("conserve", arrivals, 130.0, **options).metrics
    coarse = run_cluster("conserve", arrivals, 130.0, coarse=True, **options).metrics

    assert coarse.steps < 0.25 * exact.steps
    assert coarse.online_finished == exact.online_finished == 400
    assert coarse.online_tokens == exact.online_tokens
    assert coarse.tbt.count == exact.tbt.count
    assert coarse.ttft.percentile(0.5) == pytest.approx(exact.ttft.percentile(0.5), rel=0.1)
    assert coarse.tbt.percentile(0.5) == pytest.approx(exact.tbt.percentile(0.5), rel=0.05)
    assert coarse.offline_tokens_per_s == pytest.approx(exact.offline_tokens_per_s, rel=0.03)


def test_requests_of_a_failed_replica_are_answered_elsewhere() -> None:
    arrivals = make_arrivals(200, 0.1)
    incidents = [Incident(10.0, 0, "fail"), Incident(15.0, 0, "start")]

    cluster = run_cluster("conserve", arrivals, 60.0, replicas=2, incidents=incidents)

    assert cluster.metrics.online_requests == 200
    assert cluster.metrics.online_finished == 200
    assert cluster.metrics.online_broken > 0
    assert cluster.replicas[0].state.has_offline


def test_with_all_replicas_gone_requests_wait_until_one_is_back() -> None:
    incidents = [Incident(5.0, 0, "fail"), Incident(8.0, 0, "start")]

    metrics = run_cluster("conserve", make_arrivals(50, 0.2), 60.0, incidents=incidents).metrics

    assert metrics.online_finished == 50
    assert metrics.ttft.percentile(0.99) > 2_000.0


def test_a_draining_replica_gets_nothing_new() -> None:
    cluster = run_cluster("conserve", make_arrivals(200, 0.1), 60.0, replicas=2, incidents=[Incident(5.0, 0, "drain")])

    assert cluster.metrics.online_finished == 200
    assert not cluster.replicas[0].state.has_online
    assert not cluster.replicas[0].state.has_offline
    assert cluster.replicas[1].state.has_offline


def test_batches_are_done_once_although_a_replica_fails() -> None:
    batches = [SimBatch("one", DOCUMENTS, 60), SimBatch("two", DOCUMENTS, 40, created_s=5.0)]
    supply = BatchSupply(batches, WindowRule(16, 32, 16, 0.95, 0.8), 1)
    metrics = Metrics(0.0, 200.0)
    policy = POLICIES["conserve"].with_objectives(500.0, 60.0)
    cluster = Cluster(COSTS, EngineLimits(64, 2_048), policy, 3, metrics, 1, supply)

    cluster.run(make_arrivals(100, 0.1), 200.0, [Incident(4.0, 1, "fail"), Incident(9.0, 1, "start")])

    assert metrics.offline_requests == 100
    assert all(at_s is not None for at_s in supply.finished_s.values())
    assert supply.used_tokens["one"] == pytest.approx(60 * DOCUMENTS.mean_tokens, rel=0.15)


def test_tenants_share_by_weight() -> None:
    batches = [SimBatch(name, DOCUMENTS, 10_000, tenant=name) for name in ("heavy", "light")]
    supply = BatchSupply(batches, WindowRule(16, 32, 16, 0.95, 0.8), 1, {"heavy": 3.0, "light": 1.0})
    policy = POLICIES["conserve"].with_objectives(500.0, 60.0)
    cluster = Cluster(COSTS, EngineLimits(64, 2_048), policy, 2, Metrics(0.0, 200.0), 1, supply)

    cluster.run((), 200.0)

    used = supply.used_tokens
    assert used["heavy"] / used["light"] == pytest.approx(3.0, rel=0.1)


def test_a_replica_that_reports_no_headroom_is_shut_with_many_online_requests() -> None:
    rule = replace(WindowRule(16, 32, 16, 0.95, 0.8), shut_at_online_requests=2, open_at_online_requests=0)
    supply = BatchSupply([SimBatch("one", DOCUMENTS, 10_000)], rule, 1)
    policy = POLICIES["stock-priority"].with_objectives(500.0, 60.0)
    cluster = Cluster(COSTS, EngineLimits(64, 2_048), policy, 1, Metrics(0.0, 60.0), 1, supply)

    cluster.run(make_arrivals(600, 0.1, output_tokens=300), 60.0)

    assert not cluster.replicas[0].state.has_offline
