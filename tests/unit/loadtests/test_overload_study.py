"""Three times the capacity in the simulator: goodput stays, offline work goes and comes back."""

from __future__ import annotations

import pytest

from conserve.simulator.roofline import find_profile
from conserve.simulator.scenarios import SCENARIOS
from loadtests.overload_study import LEAST_SHARE, Study, find_share


@pytest.fixture(scope="module", params=[(500.0, 50.0), (500.0, 25.0)], ids=["prompts are short of", "decodes are"])
def study(request: pytest.FixtureRequest) -> Study:
    return Study(SCENARIOS["chat"], find_profile("h100/llama-3.1-8b").costs, *request.param, duration_s=40.0, seed=1)


def test_goodput_stays_beyond_capacity_only_with_refusals(study: Study) -> None:
    capacity_per_s = study.find_capacity()
    kept = [study.run(load, capacity_per_s, refuses=True) for load in (0.5, 1.5, 3.0)]
    assert find_share(kept) >= LEAST_SHARE
    quiet, loud = kept[0], kept[-1]
    assert loud.ttft_attainment >= 0.95
    assert loud.offline_tokens_per_s < 0.01 * quiet.offline_tokens_per_s
    assert sum(quiet.refused_per_s.values()) < 0.03 * quiet.offered_per_s
    lost = study.run(3.0, capacity_per_s, refuses=False)
    assert lost.goodput_per_s < 0.1 * loud.goodput_per_s


def test_offline_work_is_back_within_seconds(study: Study) -> None:
    before, *after = study.follow_return(3.0, study.find_capacity())
    assert before == 0.0
    assert max(after[:4]) > 1_000.0


def test_the_same_seed_gives_the_same_figures(study: Study) -> None:
    assert study.run(1.5, 13.0, refuses=True) == study.run(1.5, 13.0, refuses=True)
