"""The executor of CPU engines: vLLM's, but it sleeps while its workers compute."""

from __future__ import annotations

from conserve.engine.vllm_compat import MultiprocExecutor, limit_busy_waiting

SPIN_S = 0.002
POLL_MS = 10


class SleepingMultiprocExecutor(MultiprocExecutor):
    """Waits for the workers' answers on a socket, where vLLM 0.32 spins for up to a second after each.

    A GPU server has cores to spare for that. On a CPU machine the spinning takes a whole core from the front, the
    proxy and the clients: on two cores these waited for seconds to run. Being woken up costs about half a millisecond
    of steps that take 15 ms and more.
    """

    def _post_init_executor(self) -> None:
        super()._post_init_executor()
        for queue in self.response_mqs:
            limit_busy_waiting(queue, SPIN_S, POLL_MS)
