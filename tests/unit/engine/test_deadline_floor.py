"""What late batches get beside online requests whose objectives leave nothing. An iteration: 35 ms, 1.5 ms a token."""

from __future__ import annotations

import pytest

from conserve.engine.options import Objective
from conserve.engine.page import EnginePage, Knobs
from conserve.engine.testing.scheduling import EngineSize, FakeEngine
from tests.unit.engine.engines import Start, prompt, scheduled

MISSED = Objective(ttft_slo_ms=float("inf"), tbt_slo_ms=30.0)
"""Not even an iteration without any token takes no longer."""
FLOOR = 0.2


def run_beside(engine: FakeEngine, steps: int) -> tuple[float, int]:
    """Time of so many iterations, in ms, and the offline tokens that they computed."""
    began_s, tokens = engine.clock.now_s, 0
    for _ in range(steps):
        batch = scheduled(engine)
        assert batch["online"] == 1
        tokens += batch.get("offline", 0)
    return (engine.clock.now_s - began_s) * 1e3, tokens


def test_offline_requests_get_the_share_that_is_granted_and_no_more(start: Start) -> None:
    page = EnginePage.create()
    try:
        engine = start(EngineSize(), MISSED, page=page.path)
        engine.add("online", prompt(10), 400)
        engine.step()
        engine.add_offline("offline", prompt(200, 1), 50)
        _, tokens = run_beside(engine, 20)
        assert tokens == 0, "without a floor nothing rides along"
        page.write_knobs(Knobs(offline_floor=FLOOR))
        passed_ms, tokens = run_beside(engine, 40)
        assert 1.5 * tokens <= FLOOR * passed_ms * 1.05
        assert 1.5 * tokens > 0.6 * FLOOR * passed_ms
        run_beside(engine, 60)
        assert len(engine.answers["offline"]) > 10
        page.write_knobs(Knobs())
        _, tokens = run_beside(engine, 10)
        assert tokens == 0
    finally:
        page.remove()


@pytest.mark.parametrize("share", [0.0, FLOOR])
def test_where_the_objective_leaves_more_the_floor_changes_nothing(start: Start, share: float) -> None:
    page = EnginePage.create()
    try:
        loose = Objective(ttft_slo_ms=float("inf"), tbt_slo_ms=200.5)
        engine = start(EngineSize(max_num_batched_tokens=512), loose, page=page.path)
        page.write_knobs(Knobs(offline_floor=share))
        engine.add("online", prompt(10), 30)
        engine.step()
        engine.add_offline("offline", prompt(400, 1), 5)
        assert scheduled(engine)["offline"] == int((200.5 - 35) / 1.5) - 1
    finally:
        page.remove()


def test_paused_offline_work_runs_beside_nobody_online_and_alone(start: Start) -> None:
    page = EnginePage.create()
    try:
        loose = Objective(ttft_slo_ms=float("inf"), tbt_slo_ms=200.5)
        engine = start(EngineSize(max_num_batched_tokens=512), loose, page=page.path)
        page.write_knobs(Knobs(offline_paused=1.0))
        engine.add("online", prompt(10), 20)
        engine.step()
        engine.add_offline("offline", prompt(400, 1), 5)
        _, tokens = run_beside(engine, 10)
        assert tokens == 0
        page.write_knobs(Knobs(offline_paused=1.0, offline_floor=FLOOR))
        _, tokens = run_beside(engine, 5)
        assert tokens > 0, "a floor was granted to a batch whatever online requests want"
        page.write_knobs(Knobs(offline_paused=1.0))
        for _ in range(40):
            engine.step()
        assert len(engine.answers["offline"]) == 5
    finally:
        page.remove()
