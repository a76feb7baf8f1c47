from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from conserve.engine.options import KEY, Objective, SchedulerOptions


def test_options_come_back_as_they_were_sent_through_json() -> None:
    options = SchedulerOptions(
        objectives=(Objective(ttft_slo_ms=500, tbt_slo_ms=math.inf), Objective(ttft_slo_ms=200, tbt_slo_ms=50.5)),
        page=Path("/dev/shm/page"),
        profile_dir=Path("/var/cache/profiles"),
    )
    sent = json.loads(json.dumps(options.to_additional_config(), allow_nan=False))
    assert SchedulerOptions.from_additional_config({**sent, "mine": 1}) == options


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_objectives_are_above_zero(value: float) -> None:
    with pytest.raises(ValidationError, match="tbt_slo_ms"):
        Objective(ttft_slo_ms=1, tbt_slo_ms=value)


def test_there_is_an_objective() -> None:
    with pytest.raises(ValidationError, match="objectives"):
        SchedulerOptions.from_additional_config({KEY: {"objectives": []}})
