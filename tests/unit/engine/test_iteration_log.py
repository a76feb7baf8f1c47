from __future__ import annotations

from pathlib import Path

import pytest

from conserve.engine.iteration_log import Iteration, IterationWriter, read_iterations
from conserve.engine.options import Objective
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, VirtualClock, make_config, make_scheduler


def test_what_is_written_is_read_from_a_time_on(tmp_path: Path) -> None:
    writer = IterationWriter(tmp_path / "log")
    written = [Iteration(float(end), end + 0.5, 10, 2, 30, 480.0, 0.0) for end in range(3)]
    for iteration in written:
        writer.write(iteration)
    writer.close()
    assert read_iterations(tmp_path / "log") == written
    assert read_iterations(tmp_path / "log", since_s=0.5) == written[1:]


def test_a_record_on_its_way_is_left_out(tmp_path: Path) -> None:
    writer = IterationWriter(tmp_path / "log")
    writer.write(Iteration(1.0, 2.0, 0, 1, 0, 3.0, 4.0))
    writer.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(b"half")
    assert len(read_iterations(tmp_path / "log")) == 1


def test_our_scheduler_writes_each_of_its_iterations(tmp_path: Path) -> None:
    config = make_config(
        EngineSize(), objectives=(Objective(ttft_slo_ms=9e5, tbt_slo_ms=1e5),), iteration_log=tmp_path / "log"
    )
    clock = VirtualClock()
    with clock.installed():
        engine = FakeEngine(make_scheduler("conserve", config), clock)
        engine.add("online", list(range(20)), 3)
        engine.step()
        engine.add_offline("offline", list(range(100, 130)), 2)
        engine.run()
    engine.scheduler.shutdown()
    first, second, *rest = read_iterations(tmp_path / "log")
    assert (first.online_prefill_tokens, first.online_decodes, first.offline_tokens) == (20, 0, 0)
    assert first.limit_ms == 0
    assert (second.online_prefill_tokens, second.online_decodes, second.offline_tokens) == (0, 1, 30)
    assert second.limit_ms > 0
    assert second.start_s == first.end_s
    assert second.end_s - second.start_s == pytest.approx((35.0 + 1.5 * 31) / 1e3)
    assert rest[-1].end_s == clock.now_s


@pytest.mark.parametrize(("limit_ms", "in_time"), [(0.0, True), (500.0, True), (499.0, False)])
def test_an_iteration_keeps_within_its_limit(limit_ms: float, in_time: bool) -> None:
    assert Iteration(1.0, 1.5, 0, 1, 30, 480.0, limit_ms).in_time is in_time
