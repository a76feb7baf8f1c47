"""How many replicas are needed, and what they harvest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.plan_input import PlanInput, cut_busiest, draw_requests
from conserve.simulator.plan_report import list_answers, list_variants, to_dict, write_report
from conserve.simulator.planning import (
    Outcome,
    Plan,
    PlanError,
    Variant,
    find_replicas,
    make_plan,
    simulate_replicas,
)
from conserve.simulator.roofline import find_profile
from conserve.simulator.workload import Arrival, OfflineShape, scale_rate


@pytest.fixture(scope="module")
def given() -> PlanInput:
    return PlanInput(
        arrivals=draw_requests(30.0, 60.0, 800, 100, 1.0, seed=1),
        duration_s=60.0,
        ttft_slo_ms=1_000.0,
        tbt_slo_ms=100.0,
        profile=find_profile("h100/llama-3.1-8b"),
        batch=OfflineShape((2_000, 4_000), (64, 128)),
        batch_requests=10_000,
        limits=EngineLimits(128, 2_048),
    )


def test_the_fewest_replicas_keep_the_objectives_and_one_less_does_not(given: PlanInput) -> None:
    found = find_replicas(given)

    assert found.replicas > 1
    assert found.ttft_p99_ms <= given.ttft_slo_ms
    assert found.tbt_p99_ms <= given.tbt_slo_ms
    fewer = simulate_replicas(given, found.replicas - 1, with_batch=False)
    assert fewer.ttft_p99_ms > given.ttft_slo_ms or fewer.tbt_p99_ms > given.tbt_slo_ms


def test_more_requests_need_more_replicas(given: PlanInput) -> None:
    more = replace(given, arrivals=list(scale_rate(given.arrivals, 3.0, 1)))

    assert find_replicas(more).replicas > find_replicas(given).replicas


def test_more_replicas_harvest_more(given: PlanInput) -> None:
    two, six = (simulate_replicas(given, replicas, with_batch=True) for replicas in (2, 6))

    assert six.offline_tokens_per_s > 2 * two.offline_tokens_per_s


@pytest.mark.parametrize(
    ("changes", "option"), [({"tbt_slo_ms": 5.0}, "--tbt-slo-ms"), ({"ttft_slo_ms": 20.0}, "--ttft-slo-ms")]
)
def test_objectives_that_nothing_keeps_are_refused(given: PlanInput, changes: dict[str, float], option: str) -> None:
    with pytest.raises(PlanError, match=option):
        find_replicas(replace(given, **changes))


def test_the_busiest_time_is_found() -> None:
    quiet = [Arrival(float(at_s), 10, 10) for at_s in range(0, 3_600, 10)]
    busy = [Arrival(1_800.0 + at_s, 10, 10) for at_s in range(500)]
    whole = PlanInput(
        arrivals=sorted([*quiet, *busy], key=lambda arrival: arrival.arrival_s),
        duration_s=3_600.0,
        ttft_slo_ms=1_000.0,
        tbt_slo_ms=100.0,
        profile=find_profile("h100/llama-3.1-8b"),
        batch=OfflineShape((10, 10), (1, 1)),
        batch_requests=1,
        limits=EngineLimits(),
    )

    cut = cut_busiest(whole)

    assert cut.duration_s == 600.0
    assert len(cut.arrivals) >= 500
    assert all(0 <= arrival.arrival_s < 600 for arrival in cut.arrivals)


def test_a_scaled_trace_has_as_many_more_requests_and_the_same_hours() -> None:
    trace = [Arrival(float(at_s), 10 + at_s, 5) for at_s in range(1_000)]

    for factor in (0.25, 1.0, 3.5):
        scaled = list(scale_rate(trace, factor, 1))
        assert len(scaled) == pytest.approx(1_000 * factor, rel=0.1)
        times = [arrival.arrival_s for arrival in scaled]
        assert times == sorted(times)
        assert sum(at_s < 500 for at_s in times) == pytest.approx(len(times) / 2, rel=0.1)


def make_finished_plan(given: PlanInput, rate: float) -> Plan:
    alone, together = Outcome(3, 400.0, 50.0, 0.0), Outcome(3, 500.0, 60.0, rate)
    return Plan(given, alone, together, 10_000.0, [Variant("x 0.5", None, None)], [Variant("CV 1", alone, together)])


def test_the_sums_of_a_plan(given: PlanInput) -> None:
    plan = make_finished_plan(given, 25_000.0)

    assert plan.tokens_per_day == 25_000 * 86_400
    assert plan.backlog_hours == pytest.approx(10_000 * (3_000 + 96) / 25_000 / 3_600)
    assert plan.separate_replicas == 3
    assert plan.separate_dollars_per_day == 3 * 4.0 * 24


def test_a_report_has_the_answers_as_page_picture_and_numbers(given: PlanInput, tmp_path: Path) -> None:
    plan = make_finished_plan(given, 25_000.0)

    numbers, picture, page = write_report(plan, tmp_path / "new" / "folder")

    assert json.loads(numbers.read_text()) == to_dict(plan)
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert all(answer in text for _, answer in list_answers(plan) if "&" not in answer)
    assert "data:image/png;base64," in text
    assert list_variants(plan.by_slo) == [("x 0.5", "-", "cannot be kept", "-")]


def test_without_anything_harvested_the_backlog_is_never_done(given: PlanInput, tmp_path: Path) -> None:
    plan = make_finished_plan(given, 0.0)

    assert to_dict(plan)["backlog_hours"] is None
    assert any("never" in answer for _, answer in list_answers(plan))
    assert len(write_report(plan, tmp_path)) == 3


def test_a_plan_is_made(given: PlanInput) -> None:
    lines: list[str] = []

    plan = make_plan(given, lines.append)

    assert plan.together.replicas == plan.alone.replicas
    assert plan.together.offline_tokens_per_s > 0
    assert plan.batch_rate > plan.together.offline_tokens_per_s / plan.together.replicas
    assert [variant.name for variant in plan.by_slo] == ["x 0.5", "x 0.75", "x 1", "x 1.5", "x 2"]
    needed = [variant.alone.replicas for variant in plan.by_slo if variant.alone is not None]
    assert needed == sorted(needed, reverse=True)
    assert len(lines) == 11
