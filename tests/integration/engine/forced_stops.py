"""A scheduler that has every second batch of offline work stopped, before each layer in turn."""

from __future__ import annotations

from typing import Any

from conserve.engine.options import SchedulerOptions
from conserve.engine.pass_control import PassControl
from conserve.engine.scheduler import create_scheduler
from conserve.engine.vllm_compat import Scheduler, SchedulerOutput, VllmConfig
from tests.integration.engine.tiny_llama import LAYERS


class ForcedStops(PassControl):
    """Stops the second batch without an online request after each stop, before layer 0, 1, 2 and so on.

    With asynchronous scheduling there is one behind it by then, which is void. A batch that continues a pass from that
    layer or a later one is not stopped; then the second one after it is to be.
    """

    stops_so_far = 0
    batches_since = 0
    seen_generation = 0

    def choose_forced_stop(self, batch: SchedulerOutput, is_offline: bool) -> int:
        if self.generation != self.seen_generation:
            self.seen_generation = self.generation
            self.batches_since = 0
        self.batches_since += is_offline
        if not is_offline or self.batches_since % 2:
            return -1
        self.stops_so_far += 1
        return self.stops_so_far % LAYERS


def create_forced_scheduler(
    vllm_config: VllmConfig, options: SchedulerOptions | None = None, **kwargs: Any
) -> Scheduler:
    """What vLLM calls as its `scheduler_cls`."""
    return create_scheduler(vllm_config, options, control_class=ForcedStops, **kwargs)
