"""How many replicas Ray Serve is to run: for online load, and for deadlines as far as the operator allows it."""

from __future__ import annotations

import math
import time
from typing import Any, Final

import ray
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from conserve.config import Settings

EXTRA_REPLICAS: Final = "conserve_extra_replicas"
"""What replicas tell Serve's autoscaler: how many more are wanted for deadlines, as they have heard."""

LOOK_PERIOD_S: Final = 2.0
"""Serve asks its policies several times a second."""


class OnlineAndDeadlines:
    """A policy of Serve's autoscaler: as many as its own policy wants for online load, and some more for deadlines.

    It knows of deadlines what the replicas report, so that the controller of Serve waits for nothing.

    Args:
        most_for_online: No more than so many for online load.
        most_extra: No more than so many beyond those.
    """

    def __init__(self, most_for_online: int, most_extra: int) -> None:
        self._most_for_online = most_for_online
        self._most_extra = most_extra

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number that is wanted; Serve applies limits and delays to it."""
        wanted, state = replica_queue_length_autoscaling_policy(context)
        fewest = context.capacity_adjusted_min_replicas
        online = min(max(math.ceil(wanted), fewest), self._most_for_online)
        told = (context.aggregated_metrics or {}).get(EXTRA_REPLICAS, {})
        extra = math.ceil(max(told.values(), default=0.0) - 1e-9)
        return online + min(max(extra, 0), self._most_extra), state


class SpotPlaces:
    """A policy of Serve's autoscaler: as many replicas as there are places for them on nodes that may vanish.

    So Serve waits for no place that is gone.

    Args:
        resource: Ray's name for a place.
        most: No more than so many.
    """

    def __init__(self, resource: str, most: int) -> None:
        self._resource = resource
        self._most = most
        self._looked_at_s = float("-inf")
        self._places = 0

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number that is wanted; Serve applies limits and delays to it."""
        now_s = time.monotonic()
        if now_s - self._looked_at_s >= LOOK_PERIOD_S:
            self._looked_at_s = now_s
            self._places = int(ray.cluster_resources().get(self._resource, 0))
        return float(min(self._places, self._most)), {}


def find_spot_scaling(settings: Settings) -> dict[str, Any]:
    """The same fields of the deployment of spot replicas."""
    spot = settings.spot
    policy = AutoscalingPolicy(
        policy_function=f"{__name__}:{SpotPlaces.__name__}",
        policy_kwargs={"resource": spot.resource, "most": spot.max_replicas},
    )
    config = AutoscalingConfig(
        min_replicas=0, max_replicas=spot.max_replicas, upscale_delay_s=0, downscale_delay_s=0, policy=policy
    )
    return {"autoscaling_config": config}


def find_scaling(settings: Settings) -> dict[str, Any]:
    """The fields of the deployment's configuration that say how many replicas there are."""
    most = settings.most_replicas
    if most == settings.replicas:
        return {"num_replicas": settings.replicas}
    scaling = settings.autoscaling
    extra = settings.harvest.scale_for_deadlines
    policy = AutoscalingPolicy(
        policy_function=f"{__name__}:{OnlineAndDeadlines.__name__}",
        policy_kwargs={"most_for_online": most - extra, "most_extra": extra},
    )
    config = AutoscalingConfig(
        min_replicas=settings.replicas,
        max_replicas=most,
        target_ongoing_requests=scaling.target_online_requests,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        look_back_period_s=scaling.look_back_s,
        **({"policy": policy} if extra else {}),
    )
    return {"autoscaling_config": config}
