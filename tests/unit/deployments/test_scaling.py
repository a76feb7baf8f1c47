from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from conserve.config import load_settings
from deployments import scaling
from deployments.scaling import EXTRA_REPLICAS, OnlineAndDeadlines, SpotPlaces, find_scaling, find_spot_scaling


def decide(policy: Any, online_requests: float, told: dict[str, float], running: int = 2) -> float:
    config = AutoscalingConfig(min_replicas=1, max_replicas=9, target_ongoing_requests=4)
    context = SimpleNamespace(
        config=config,
        current_num_replicas=running,
        target_num_replicas=running,
        total_num_requests=online_requests,
        capacity_adjusted_min_replicas=1,
        aggregated_metrics={EXTRA_REPLICAS: told},
        policy_state={},
    )
    return float(policy(context)[0])


@pytest.mark.parametrize(
    ("online_requests", "told", "wanted"),
    [
        (0.0, {}, 1),
        (0.0, {"a": 0.0, "b": 0.0}, 1),
        (9.0, {}, 3),
        (99.0, {}, 4),  # the ceiling of online load
        (0.0, {"a": 0.0, "b": 0.4}, 2),  # an average of what was heard
        (9.0, {"a": 1.0}, 4),
        (99.0, {"a": 7.0}, 6),  # both ceilings
    ],
)
def test_online_load_and_deadlines_have_a_ceiling_each(
    online_requests: float, told: dict[str, float], wanted: int
) -> None:
    assert decide(OnlineAndDeadlines(most_for_online=4, most_extra=2), online_requests, told) == wanted


def test_serve_gets_the_policy_to_its_controller() -> None:
    settings = load_settings({"replicas": 2, "harvest": {"scale_for_deadlines": 3}}, {})
    config: AutoscalingConfig = find_scaling(settings)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (2, 5)
    policy: AutoscalingPolicy = config.policy
    carried = AutoscalingPolicy.from_serialized_policy_def(
        {"policy_function": policy.policy_function, "policy_kwargs": policy.policy_kwargs},
        policy.get_serialized_policy_def(),
    )
    made = carried.get_policy()(**policy.policy_kwargs)
    assert decide(made, 99.0, {"a": 9.0}) == 5


def test_online_load_alone_scales_by_serve_s_own_policy() -> None:
    scaling = {"max_replicas": 6, "target_online_requests": 3, "upscale_delay_s": 1, "downscale_delay_s": 2}
    config = find_scaling(load_settings({"autoscaling": scaling}, {}))["autoscaling_config"]
    assert config.policy.is_default_policy_function()
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (1, 6, 3)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (1, 2)


@pytest.mark.parametrize("args", [{}, {"replicas": 3}, {"replicas": 3, "autoscaling": {"max_replicas": 3}}])
def test_without_more_there_is_a_fixed_number(args: dict[str, Any]) -> None:
    assert find_scaling(load_settings(args, {})) == {"num_replicas": args.get("replicas", 1)}


def test_there_are_as_many_spot_replicas_as_places(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"CPU": 8.0, "spot": 3.0}
    monkeypatch.setattr(scaling, "LOOK_PERIOD_S", 0.0)
    monkeypatch.setattr(scaling.ray, "cluster_resources", lambda: resources)
    policy = SpotPlaces("spot", most=2)
    assert decide(policy, 0.0, {}) == 2
    resources["spot"] = 1.0
    assert decide(policy, 0.0, {}) == 1
    del resources["spot"]
    assert decide(policy, 99.0, {}) == 0


def test_spot_replicas_wait_for_no_place() -> None:
    config = find_spot_scaling(load_settings({"spot": {"max_replicas": 3}}, {}))["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas, config.downscale_delay_s) == (0, 3, 0)
    assert config.policy.policy_kwargs == {"resource": "spot", "most": 3}
