"""Steps in which requests begin and end: how long they are, and what their later iterations are like.

Prompts follow each other within such a step, online ones first. Once those are computed, iterations take as many
offline tokens as the limit lets them, the last of them what is left, and after that those that decode go on alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from conserve.policy.latency import IterationShape
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Part, Step

if TYPE_CHECKING:
    from conserve.simulator.engine_state import EngineState

LEAST_COARSE: Final = 4
"""Fewer requests that decode are looked at one by one: the end of each makes a difference."""
COARSE_STEP_MS: Final = 1_000.0
"""Steps are no longer than this."""
ENDED_SHARE: Final = 1 / 16
"""With nobody waiting, a step ends once more than this share of the offline requests has ended."""
JOINABLE_SHARE: Final = 0.9
"""Iterations are as long as the limit lets them if they take this share of it; then online prompts that come change
nothing but whose tokens are computed."""
_NOTHING: Final = IterationShape()


def bound_coarsely(
    state: EngineState, step: Step, spare_tokens: float, kept_tokens: int, after_ms: float | None
) -> bool:
    """Sets the iterations of a step; False if they must be looked at one by one.

    Args:
        state: Of the engine.
        step: With the time of its first iteration.
        spare_tokens: KV memory that it may take, in tokens.
        kept_tokens: KV memory that new offline requests leave free.
        after_ms: The longest predicted time of iterations after the online prompts of the first one; None if those
            must be decided anew.
    """
    if step.held and step.offline_decodes:
        return False
    tokens = 0
    has_prompts = False
    for request, part in step.chunks:
        if request.prefix:  # Common prefixes are found only where prompts come one after the other.
            return False
        has_prompts |= request.online
        tokens += part
    if step.held and not has_prompts:
        return False
    if has_prompts:
        following = _find_next_offline(state)
        if after_ms is None or state.waiting or (following is not None and following.prefix):
            return False
    most = 1 << 30
    offline = growth = len(step.held) or step.offline_decodes
    if step.online_decodes:
        growth += state.online.size
        if state.online.size < LEAST_COARSE:
            most = state.online.iterations_to_end()
    online_left = 0
    if has_prompts:
        for request in state.online_prompts:
            online_left += request.prompt_tokens + request.produced - request.computed
            if growth < LEAST_COARSE:
                most = min(most, -(-online_left // tokens) + max(1, request.output_tokens - 1))
            growth += 1
    left = online_left
    for request in state.offline_prompts:
        left += request.prompt_tokens + request.produced - request.computed
    begun = 0
    if len(state.backlog) and not state.waiting:
        # As many more as there are slots and memory for.
        wanted = state.backlog.peek_next().to_compute
        room = state.kv.free_tokens - kept_tokens - left
        begun = max(0, min(len(state.backlog), state.limits.max_num_seqs - state.running, room // wanted))
        left += wanted * begun
    if offline < LEAST_COARSE or len(state.backlog):
        if offline and (not begun or offline < LEAST_COARSE):
            # Others begin when one of these ends.
            most = min(most, state.offline.iterations_to_end())
    else:
        # Others come when some have ended, all of them before the next step.
        most = min(most, state.offline.iterations_until(1 + int(ENDED_SHARE * offline)))
    growth += tokens
    if growth:
        most = min(most, int(spare_tokens / growth))
    if tokens:
        _Flow(state, step, tokens, most, is_all=not begun).set_parts(online_left, left, after_ms)
        if step.parts and step.has_online and after_ms is not None:
            _let_join(state, step, after_ms, spare_tokens - (growth - tokens) * step.count)
    else:
        step.count = max(1, min(most, int(COARSE_STEP_MS / step.first_ms)))
    return True


def _find_next_offline(state: EngineState) -> SimRequest | None:
    if state.offline_prompts:
        return state.offline_prompts[0]
    return state.backlog.peek_next() if len(state.backlog) else None


def _let_join(state: EngineState, step: Step, after_ms: float, spare_tokens: float) -> None:
    """Says in which iterations online requests may join: in those that are as long as the limit lets them."""
    count, parts = 0, step.parts
    is_full = step.shape.tokens >= state.limits.max_num_batched_tokens
    if step.online_tokens:
        if len(parts) > 1 and parts[1].tokens and parts[1].iterations > 1:
            count = parts[0].iterations + parts[1].iterations
    elif is_full or step.predicted_ms >= JOINABLE_SHARE * after_ms:
        count = parts[0].iterations
    if not count:
        return
    step.joinable_count = count
    decodes = state.decode_shape()
    most = state.limits.max_num_batched_tokens - decodes.decode_sequences
    alone = state.model.fit_prefill_tokens(decodes, 0, after_ms, most)
    _, first_ms, _, tokens = parts[1 if step.online_tokens else 0]
    step.joinable_tokens = tokens
    step.joiner_share = min(1.0, tokens / max(1, alone))
    step.overhead_share = state.time_ms(decodes.add_decodes(state.offline.size, state.offline.context)) / first_ms
    step.spare_tokens = spare_tokens - step.count_fluid(step.count)


class _Flow:
    """Prompts that follow each other in a step.

    Args:
        state: Of the engine.
        step: With the time of its first iteration.
        tokens: Of prompts in this one.
        most: Iterations, at most.
        is_all: Whether no other prompt can follow those that are known.
    """

    def __init__(self, state: EngineState, step: Step, tokens: int, most: int, *, is_all: bool) -> None:
        self._state = state
        self._step = step
        self._tokens = tokens
        self._most = most
        self._is_all = is_all
        self._parts: list[Part] = []
        self._count = 0
        self._left_ms = COARSE_STEP_MS

    def set_parts(self, online_left: int, left: int, after_ms: float | None) -> None:
        """Sets the iterations of the step.

        Args:
            online_left: Tokens of online prompts that are not computed.
            left: Those of all prompts, likewise.
            after_ms: The longest predicted time of iterations after online prompts.
        """
        state, step, tokens = self._state, self._step, self._tokens
        shape, first_ms, slope_ms = step.shape, step.first_ms, step.slope_ms
        if online_left:
            # The last part of a prompt that is cut leaves room for others.
            self._add(max(1, online_left // tokens), first_ms, slope_ms, tokens)
            left -= self._count * tokens
            tokens = 0
            request = _find_next_offline(state)
            if after_ms is not None and request is not None and left > 0:
                tokens, shape, first_ms = self._size_following(request, after_ms)
        else:
            request = step.chunks[0].request
            count = min(self._most, left // tokens, int(COARSE_STEP_MS / first_ms))
            if count > 1 and count * tokens > request.to_compute:
                # Contexts of prompt tokens are on average those of half a prompt.
                middle = tokens * (request.prompt_tokens / 2 - request.computed - tokens / 2)
                first_ms += state.attention_ms * middle / 2
                slope_ms = state.context_ms * shape.decode_sequences
            step.first_ms, step.slope_ms = first_ms, slope_ms
            left -= count * tokens
            self._add(max(1, count), first_ms, slope_ms, tokens)
        if online_left and tokens:
            before = self._count
            self._add(left // tokens, first_ms, 0.0, tokens)
            left -= (self._count - before) * tokens
        if self._is_all:
            if 0 < left < tokens:
                attention = shape.prefill_attention * left / shape.prefill_tokens
                short = shape._replace(prefill_tokens=left, prefill_attention=attention)
                self._add(1, first_ms * state.time_ms(short) / state.time_ms(shape), 0.0, left)
                left = 0
            # Those alone cannot be stopped as a pass can.
            if left <= 0 and step.has_online:
                self._add_decodes()
        if self._count > 1:
            step.count, step.parts, step.admits = self._count, self._parts, not state.waiting
            step.online_tokens = step.online_end = online_left
            step.chunks = ()
            if step.held:
                # All of them: only the online prompts leave no time for them.
                step.held_count, step.offline_decodes, step.held = self._parts[0].iterations, len(step.held), ()

    def _add(self, count: int, first_ms: float, slope_ms: float, tokens: int) -> None:
        """Adds as many iterations as there is time for, but the first one in any case."""
        count = min(count, self._most - self._count, int(self._left_ms / first_ms))
        if not self._parts:
            count = max(1, count)
        if count > 0:
            part = Part(count, first_ms, slope_ms, tokens)
            self._parts.append(part)
            self._count += count
            self._left_ms -= part.duration_ms(count)

    def _size_following(self, request: SimRequest, after_ms: float) -> tuple[int, IterationShape, float]:
        """Iterations of offline prompts after online ones: tokens, shape and time."""
        state = self._state
        decodes = self._shape_decodes()
        most = state.limits.max_num_batched_tokens - decodes.decode_sequences
        # Contexts of prompt tokens are on average those of half a prompt.
        context = max(0, request.prompt_tokens // 2 - self._tokens // 2)
        tokens = state.model.fit_prefill_tokens(decodes, context, after_ms, most)
        shape = decodes.add_prefill(tokens, context)
        return tokens, shape, state.time_ms(shape)

    def _shape_decodes(self, *, and_offline: bool = False) -> IterationShape:
        """Those that decode, and those whose prompts are computed in this step."""
        state = self._state
        sequences, context = state.online.size + state.offline.size, state.online.context + state.offline.context
        for request in state.online_prompts:
            if request.output_tokens > 1:
                sequences += 1
                context += request.prompt_tokens
        if and_offline:
            for request in state.offline_prompts:
                sequences += 1
                context += request.prompt_tokens
        return _NOTHING.add_decodes(sequences, context)

    def _add_decodes(self) -> None:
        state = self._state
        for request in state.offline_prompts:
            self._most = min(self._most, self._count + max(0, request.output_tokens - request.produced - 1))
        shape = self._shape_decodes(and_offline=True)
        if shape.decode_sequences:
            self._add(1 << 30, state.time_ms(shape), state.context_ms * shape.decode_sequences, 0)
