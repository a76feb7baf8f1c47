"""What iterations of an engine cost, and the latency model that its scheduler has of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from conserve.policy.latency import FEATURES, IterationShape, LatencyModel, LatencyProfile

LARGE_TOKENS = 512
_TEACHING_SEED = 7


class EngineCosts(BaseModel):
    """An engine as the simulator sees it.

    Attributes:
        iteration_ms: Of an iteration itself: weights are read, kernels launched, a batch is scheduled.
        token_ms: Of a prompt token.
        attention_ms: Of a pair of a prompt token and a token before it.
        prompt_ms: Of a prompt chunk itself.
        decode_ms: Of a sequence that decodes.
        context_ms: Of a token of context that a decode reads.
        large_token_ms: Of a prompt token besides, for those beyond `LARGE_TOKENS` in one iteration: on a CPU the
            activations fall out of the caches. The latency model knows nothing of it, as in the engine.
        kv_blocks, block_size: KV blocks of the engine, and tokens of one.
        block_bytes: Of a KV block, on all workers.
        layers: Of the model.
        copy_bytes_per_s: Rate of copies of KV blocks to host memory and back.
        host_kv_gib: Host memory for them.
        stop_ms: From a safepoint that stops a pass to the next iteration.
        resume_ms: Of continuing a stopped pass, before its first layer.
        stop_lag_layers: Layers that are computed before a stop takes effect.
        safepoint_share: Time that safepoints add to a pass that can be stopped, as a share.
        front_ms: From a request's arrival to the scheduler, and from the end of an iteration to the client, together.
        noise: Standard deviation of the logarithm of an iteration's time.
        noise_memory: Correlation of that with the same of the iteration before: what slows one down slows the next.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    iteration_ms: float = Field(gt=0)
    token_ms: float = Field(gt=0)
    attention_ms: float = Field(ge=0)
    prompt_ms: float = Field(0.0, ge=0)
    decode_ms: float = Field(ge=0)
    context_ms: float = Field(ge=0)
    large_token_ms: float = Field(0.0, ge=0)
    kv_blocks: int = Field(gt=0)
    block_size: int = Field(16, gt=0)
    block_bytes: int = Field(gt=0)
    layers: int = Field(gt=0)
    copy_bytes_per_s: float = Field(gt=0)
    host_kv_gib: float = Field(4.0, ge=0)
    stop_ms: float = Field(0.0, ge=0)
    resume_ms: float = Field(0.0, ge=0)
    stop_lag_layers: int = Field(1, ge=0)
    safepoint_share: float = Field(0.0, ge=0)
    front_ms: float = Field(0.0, ge=0)
    noise: float = Field(0.0, ge=0, lt=0.5)
    noise_memory: float = Field(0.0, ge=0, lt=1)

    def time_ms(self, shape: IterationShape) -> float:
        """Time of an iteration, without noise."""
        return self.make_timer()(shape)

    def make_timer(self) -> Callable[[IterationShape], float]:
        """The function `time_ms`, for who calls it often: a model's attributes take long to read."""
        iteration_ms, token_ms, attention_ms, prompt_ms = (
            self.iteration_ms,
            self.token_ms,
            self.attention_ms,
            self.prompt_ms,
        )
        decode_ms, context_ms, large_token_ms = self.decode_ms, self.context_ms, self.large_token_ms

        def time_ms(shape: IterationShape) -> float:
            tokens, attention, prompts, decodes, context = shape
            return (
                iteration_ms
                + token_ms * tokens
                + attention_ms * attention
                + prompt_ms * prompts
                + decode_ms * decodes
                + context_ms * context
                + large_token_ms * max(0, tokens - LARGE_TOKENS)
            )

        return time_ms

    def at_speed(self, factor: float) -> EngineCosts:
        """The same engine where iterations take so many times as long."""
        names = ("iteration_ms", "token_ms", "attention_ms", "prompt_ms", "decode_ms", "context_ms", "large_token_ms")
        return self.model_copy(update={name: getattr(self, name) * factor for name in names})

    def with_profile(self, profile: LatencyProfile) -> EngineCosts:
        """The same engine with the costs that `conserve profile` has measured."""
        cost = profile.coefficients_ms
        measured = {
            "iteration_ms": max(cost[FEATURES[0]], 1e-3),
            "token_ms": max(cost[FEATURES[1]], 1e-6),
            "attention_ms": cost[FEATURES[2]],
            "prompt_ms": cost[FEATURES[3]],
            "decode_ms": cost[FEATURES[4]],
            "context_ms": cost[FEATURES[5]],
            # The safety factor is the 99th percentile of measured over predicted.
            "noise": math.log(profile.safety_factor) / 2.326,
        }
        return self.model_copy(update=measured)


class Noise:
    """What times of iterations are multiplied with, one after the other.

    Args:
        costs: Of the engine.
        generator: Decides it.
    """

    def __init__(self, costs: EngineCosts, generator: random.Random) -> None:
        self._costs = costs
        self._random = generator
        self._fresh = math.sqrt(1.0 - costs.noise_memory**2)
        self._state = generator.gauss(0.0, 1.0)

    def next_factor(self) -> float:
        """For the next iteration."""
        costs = self._costs
        if not costs.noise:
            return 1.0
        self._state = costs.noise_memory * self._state + self._fresh * self._random.gauss(0.0, 1.0)
        return math.exp(costs.noise * self._state)


@lru_cache(maxsize=64)
def _teach(costs: EngineCosts) -> LatencyProfile:
    noise = Noise(costs, random.Random(_TEACHING_SEED))  # noqa: S311 - a simulation
    model = LatencyModel()
    for turn in range(160):
        decodes = (0, 1, 8, 32, 128)[turn % 5]
        tokens = (0, 16, 64, 256, 1024, 2048)[turn // 5 % 6] or (0 if decodes else 16)
        shape = IterationShape()
        if tokens:
            shape = shape.add_prefill(tokens, (0, 512, 2048)[turn // 30 % 3])
        if decodes:
            shape = shape.add_decodes(decodes, decodes * (256, 1024, 2048)[turn % 3])
        model.observe(shape, costs.time_ms(shape) * noise.next_factor())
    return model.to_profile()


def make_model(costs: EngineCosts) -> LatencyModel:
    """The latency model of an engine's scheduler, taught as by `conserve profile`."""
    return LatencyModel(_teach(costs))
