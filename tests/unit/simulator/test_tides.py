from __future__ import annotations

from dataclasses import replace

import pytest

from conserve.simulator.batch_supply import Outage
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.scenarios import SCENARIOS
from conserve.simulator.tides import Tides
from tests.unit.simulator.clusters import COSTS, DOCUMENTS

SCENARIO = replace(SCENARIOS["tide"], limits=EngineLimits(64, 2_048))
TIDES = Tides(
    COSTS, SCENARIO, 2.0, replicas=4, period_s=60.0, warmup_s=10.0, duration_s=60.0, shape=DOCUMENTS, tbt_slo_ms=60.0
)


def test_tides_are_in_anti_phase() -> None:
    arrivals = TIDES.draw_arrivals(1)
    counts = [
        [sum(one.pool == pool and begin <= one.arrival_s < begin + 20 for one in arrivals) for begin in (20, 50)]
        for pool in (0, 1)
    ]
    assert counts[0][0] > 2 * counts[0][1]
    assert counts[1][1] > 2 * counts[1][0]


@pytest.fixture(scope="module")
def harvested() -> dict[str, float]:
    arrivals = TIDES.draw_arrivals(1)
    away = Outage(20.0, 60.0)
    return {
        "possible": TIDES.run_all_knowing(arrivals, 1).offline_tokens,
        "controlled": TIDES.run_controlled(arrivals, 1).offline_tokens,
        "away": TIDES.run_controlled(arrivals, 1, away).offline_tokens,
    }


def test_most_of_the_stranded_capacity_is_harvested(harvested: dict[str, float]) -> None:
    assert harvested["controlled"] >= 0.9 * harvested["possible"]


def test_replicas_go_on_without_a_controller(harvested: dict[str, float]) -> None:
    assert harvested["away"] >= 0.9 * harvested["controlled"]
