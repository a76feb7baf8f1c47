"""The worker of vLLM's CPU build, with safepoints."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from conserve.engine.worker import Safepoints


class SafepointCPUWorker(Safepoints, CPUWorker):
    """For CPUs."""
