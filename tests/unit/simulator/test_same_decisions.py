"""The simulator against the engine's real schedulers: the same requests, the same costs, no model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.policies import POLICIES
from conserve.simulator.workload import Arrival, OfflineShape
from tests.unit.simulator.clusters import COSTS, run_cluster
from tests.unit.simulator.real_schedulers import run_scheduler

UNTIL_S = 30.0
_NEITHER = replace(
    POLICIES["no-safepoints"], name="neither", mechanisms=POLICIES["no-safepoints"].mechanisms.without(["checkpoints"])
)


@pytest.mark.parametrize("kv_blocks", [800, 1_300, 6_000])
@pytest.mark.parametrize(("kind", "policy"), [("stock", "stock-priority"), ("conserve", "neither")])
def test_as_much_is_done_and_tokens_come_as_late(
    kind: Literal["stock", "conserve"], policy: str, kv_blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICIES, "neither", _NEITHER)
    generator = random.Random(1)
    arrivals = [
        Arrival(1.0 + 0.4 * number, generator.randint(50, 1_500), generator.randint(10, 120)) for number in range(60)
    ]
    options: dict[str, Any] = {
        "costs": COSTS.model_copy(update={"kv_blocks": kv_blocks}),
        "offline": OfflineShape((2_000, 6_000), (64, 128)),
        "in_flight": 24,
        "ttft_slo_ms": 400.0,
        "tbt_slo_ms": 60.0,
        "limits": EngineLimits(32, 2_048),
    }

    real = run_scheduler(kind, arrivals, UNTIL_S, tmp_path, **options)
    simulated = run_cluster(policy, arrivals, UNTIL_S, **options).metrics

    assert real.ttft.count == simulated.ttft.count == 60
    assert simulated.offline_output_tokens == pytest.approx(real.offline_output_tokens, rel=0.06)
    assert simulated.tbt.percentile(0.99) == pytest.approx(real.tbt.percentile(0.99), rel=0.05)
    assert simulated.ttft.percentile(0.5) == pytest.approx(real.ttft.percentile(0.5), rel=0.35)
