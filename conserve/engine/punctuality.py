"""Counts which tokens of online requests came in time, of those that were computed beside offline ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from conserve.engine.lanes import is_offline
from conserve.engine.options import Objective
from conserve.engine.page import Counters
from conserve.engine.vllm_compat import Request


class Punctuality:
    """Looks at the outputs of iterations.

    What comes late without any offline request in the iteration is not for offline work to mend, and does not count.

    Args:
        requests: The scheduler's, by id.
        counters: Where to count.
    """

    def __init__(self, requests: Mapping[str, Request], counters: Counters) -> None:
        self._requests = requests
        self._counters = counters
        self._tokens_s: dict[str, float] = {}

    def expect(self, scheduled: Iterable[str]) -> tuple[list[tuple[Request, int]], bool]:
        """Before the outputs of an iteration are taken in: its online requests with the tokens that they have so far.

        Args:
            scheduled: Ids of all of its requests.

        Returns:
            Those, and whether any offline request is in it.
        """
        online: list[tuple[Request, int]] = []
        is_mixed = False
        for request_id in scheduled:
            request = self._requests.get(request_id)
            if request is None:
                continue
            if is_offline(request):
                is_mixed = True
            else:
                online.append((request, request.num_output_tokens))
        return online, is_mixed

    def count(
        self,
        expected: tuple[list[tuple[Request, int]], bool],
        objectives: Sequence[Objective],
        now_s: float,
        epoch_s: float,
    ) -> None:
        """After they were taken in.

        Args:
            expected: As `expect` has given it.
            objectives: Of the classes of online requests.
            now_s: Now, monotonic.
            epoch_s: Now, since the epoch, as the arrivals of requests.
        """
        online, is_mixed = expected
        counters = self._counters
        for request, before in online:
            if request.num_output_tokens <= before:
                continue
            objective = objectives[min(int(request.priority), len(objectives) - 1)]
            last_s = self._tokens_s.get(request.request_id)
            if is_mixed and before == 0:
                counters.first_tokens += 1
                counters.late_first_tokens += (epoch_s - request.arrival_time) * 1e3 > objective.ttft_slo_ms
            elif is_mixed and last_s is not None:
                counters.next_tokens += 1
                counters.late_next_tokens += (now_s - last_s) * 1e3 > objective.tbt_slo_ms
            if request.request_id in self._requests:
                self._tokens_s[request.request_id] = now_s
            else:
                self._tokens_s.pop(request.request_id, None)
        if len(self._tokens_s) > 2 * len(self._requests) + 64:  # Of requests that were aborted.
            self._tokens_s = {one: at_s for one, at_s in self._tokens_s.items() if one in self._requests}
