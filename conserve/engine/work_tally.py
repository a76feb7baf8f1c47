"""Counts what a scheduler has iterations compute, for whom, and what preemptions cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from conserve.engine.lanes import is_offline
from conserve.engine.page import Counters
from conserve.engine.vllm_compat import Request, SchedulerOutput, is_running
from conserve.policy.latency import IterationShape
from conserve.policy.priority import OFFLINE_PRIORITY


class Work(NamedTuple):
    """What an iteration computes: all of it, and how much of it for whom."""

    shape: IterationShape
    online_prefill_tokens: int
    online_decodes: int
    offline_tokens: int
    offline_prefill_tokens: int = 0

    @property
    def has_online(self) -> bool:
        """Whether it is for online requests, too."""
        return self.online_prefill_tokens + self.online_decodes > 0

    @property
    def is_mixed(self) -> bool:
        """Whether it is for online and for offline requests."""
        return self.offline_tokens > 0 and self.has_online


class WorkTally:
    """Keeps the counters of requests, tokens and preemptions, in the same way for all schedulers.

    Args:
        requests: The scheduler's, by id.
        counters: Where to count.

    Attributes:
        lost_tokens: Tokens that preempted requests had computed and have not begun to compute again, by id.
    """

    def __init__(self, requests: Mapping[str, Request], counters: Counters) -> None:
        self.lost_tokens: dict[str, int] = {}
        self._requests = requests
        self._counters = counters

    def preempt(self, request: Request) -> None:
        """To be called before a request gives up its KV blocks."""
        if is_offline(request):
            self._counters.offline_preemptions += 1
        else:
            self._counters.online_preemptions += 1
        self.lost_tokens[request.request_id] = request.num_computed_tokens

    def count(self, output: SchedulerOutput) -> Work:
        """Counts an iteration of at least one token, which was just scheduled, and says what it computes."""
        counters = self._counters
        requests = self._requests
        prefill_tokens = prefills = decodes = decode_context = offline = offline_prefill = offline_decode = 0
        prefill_attention = 0.0
        for request_id, tokens in output.num_scheduled_tokens.items():
            request = requests[request_id]
            # vLLM has added the tokens to the computed ones already.
            context = request.num_computed_tokens - tokens
            is_decode = tokens == 1 and context >= request.num_prompt_tokens
            if is_decode:
                decodes += 1
                decode_context += context
            else:
                prefills += 1
                prefill_tokens += tokens
                prefill_attention += tokens * (context + tokens / 2)
            if request.priority >= OFFLINE_PRIORITY:
                offline += 1
                if is_decode:
                    offline_decode += 1
                else:
                    offline_prefill += tokens
        counters.iterations += 1
        counters.mixed_iterations += 0 < offline < len(output.num_scheduled_tokens)
        counters.offline_iterations += offline == len(output.num_scheduled_tokens)
        counters.offline_prefill_tokens += offline_prefill
        counters.offline_decode_tokens += offline_decode
        for new in output.scheduled_new_reqs:
            if is_offline(requests[new.req_id]):
                counters.offline_cached_tokens += new.num_computed_tokens
        self._count_lost(output)
        return Work(
            IterationShape(prefill_tokens, prefill_attention, prefills, decodes, decode_context),
            prefill_tokens - offline_prefill,
            decodes - offline_decode,
            offline_prefill + offline_decode,
            offline_prefill,
        )

    def uncount(self, work: Work) -> None:
        """Takes an iteration back that was counted and stopped: its tokens will be scheduled again."""
        self._counters.offline_prefill_tokens -= work.offline_prefill_tokens
        self._counters.offline_decode_tokens -= work.offline_tokens - work.offline_prefill_tokens

    def _count_lost(self, output: SchedulerOutput) -> None:
        for request_id in [*self.lost_tokens]:
            request = self._requests.get(request_id)
            if request is None:
                del self.lost_tokens[request_id]
            elif is_running(request):
                regained = request.num_computed_tokens - output.num_scheduled_tokens.get(request_id, 0)
                lost = max(0, self.lost_tokens.pop(request_id) - regained)
                if is_offline(request):
                    self._counters.offline_recomputed_tokens += lost
                else:
                    self._counters.online_recomputed_tokens += lost
