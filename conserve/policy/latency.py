"""How long an iteration of the engine will take, learnt from those it has run.

The time of an iteration is a sum of costs that are never negative: of the iteration itself, of each prompt token, each
prompt, each decoding sequence, each token of context that decodes read, and of the attention of prompt chunks. Relative
least squares fit them to measured times. The statistics are kept apart by the size of an iteration, and new ones of a
size push out old ones of that size: a minute of decodes does not make the model forget what prompts cost.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from conserve.policy.latency_profile import FEATURES, LatencyProfile, SizeSums
from conserve.policy.latency_scores import MAX_SAFETY_FACTOR, LatencyError, LatencyScores
from conserve.policy.least_squares import solve_nonnegative

__all__ = ["FEATURES", "MAX_SAFETY_FACTOR", "IterationShape", "LatencyError", "LatencyModel", "LatencyProfile"]

_LEAST_ITERATIONS = 24
_LEAST_OF_EACH = 4
_LEAST_SIZES = 3
"""A model without a profile is ready after so many iterations of so many sizes, so many of them with prompts, and so
many with decodes."""
_MEMORY = 32
"""Iterations of one size after which an old one of that size counts 1/e."""
_LONG_MEMORY = 4096
"""Iterations of any size after which an old one counts 1/e."""
_PROFILE_WEIGHT = 8.0
"""Iterations of each size that a stored profile counts for; or what was learnt before the machine's speed changed."""
_REFIT_PERIOD = 8

_UNSEEN_TOKEN_MS = 100.0
_LEAST_MS = 1e-3
_MOST_MS = 1e8
"""A measured time outside of these bounds is none."""

_make = tuple.__new__
"""Half the time of a named tuple's own constructor: a scheduler makes some tens of them for each iteration."""


class IterationShape(NamedTuple):
    """What one iteration computes.

    Attributes:
        prefill_tokens: Tokens of prompt chunks.
        prefill_attention: Sum over chunks of n * (context + n / 2) for n tokens after `context` tokens that are in the
            KV cache already.
        prefill_sequences: Prompt chunks.
        decode_sequences: Sequences that decode one token.
        decode_context: Sum of their contexts, in tokens.
    """

    prefill_tokens: int = 0
    prefill_attention: float = 0.0
    prefill_sequences: int = 0
    decode_sequences: int = 0
    decode_context: int = 0

    @property
    def tokens(self) -> int:
        """Tokens computed."""
        return self.prefill_tokens + self.decode_sequences

    def add_prefill(self, tokens: int, context: int) -> IterationShape:
        """With one more prompt chunk of `tokens` > 0 tokens after `context` tokens."""
        prefill_tokens, attention, prompts, decodes, decode_context = self
        attention += tokens * (context + tokens / 2)
        return _make(IterationShape, (prefill_tokens + tokens, attention, prompts + 1, decodes, decode_context))

    def add_decode(self, context: int) -> IterationShape:
        """With one more decoding sequence of `context` tokens."""
        return self.add_decodes(1, context)

    def add_decodes(self, sequences: int, context: int) -> IterationShape:
        """With more decoding sequences, of `context` tokens together."""
        prefill_tokens, attention, prompts, decodes, decode_context = self
        return _make(
            IterationShape, (prefill_tokens, attention, prompts, decodes + sequences, decode_context + context)
        )


_SMALLEST = IterationShape(decode_sequences=1)


class LatencyModel:
    """Predicts the time of iterations and learns from each that was measured.

    Until it is `ready` its predictions are over-estimates: the shortest iteration seen, plus for each token the time
    per token of the dearest iteration seen (100 ms before the first).

    Args:
        profile: What an earlier model on the same engine and hardware has learnt; makes this one ready at once.
    """

    def __init__(self, profile: LatencyProfile | None = None) -> None:
        self._sums: dict[tuple[int, int], SizeSums] = {}
        self._coefficients = (0.0,) * len(FEATURES)
        self._scores = LatencyScores()
        self._observed = self._prefills_observed = self._decodes_observed = 0
        self._shortest_ms = self._dearest_token_ms = 0.0
        self._ready = False
        if profile is not None:
            self._scores = LatencyScores(profile.safety_factor)
            self._sums = {part.size: SizeSums.from_profile(part) for part in profile.sizes}
            for sums in self._sums.values():
                sums.limit(_PROFILE_WEIGHT)
            self._ready = True
            self._solve()
            self._shortest_ms = self.predict_ms(_SMALLEST)

    @property
    def ready(self) -> bool:
        """Whether predictions come from a fit: with a profile, or after some tens of iterations that differ."""
        return self._ready

    @property
    def coefficients_ms(self) -> dict[str, float]:
        """Milliseconds per unit of each feature; all 0 before the first fit."""
        return dict(zip(FEATURES, self._coefficients, strict=True))

    def predict_ms(self, shape: IterationShape) -> float:
        """Expected time of an iteration; more than 0, and no less for a shape that is no smaller in any count."""
        if not self._ready:
            return self._guess_ms(shape)
        iteration, token, attention, prompt, decode, context = self._coefficients
        prefill_tokens, prefill_attention, prompts, decodes, decode_context = shape
        predicted = (
            iteration
            + token * prefill_tokens
            + attention * prefill_attention
            + prompt * prompts
            + decode * decodes
            + context * decode_context
        )
        return _LEAST_MS if predicted < _LEAST_MS else predicted

    def observe(self, shape: IterationShape, measured_ms: float) -> None:
        """Learns from an iteration, after scoring the prediction of it. What cannot be a time is passed over."""
        if not (_LEAST_MS <= measured_ms <= _MOST_MS) or shape.tokens == 0:
            return
        trust, scale_ms = 1.0, measured_ms
        if self._ready:
            predicted_ms = self.predict_ms(shape)
            log_ratio = math.log(measured_ms / predicted_ms)
            self._scores.add(log_ratio)
            if (shift := self._scores.take_shift()) is not None:
                self._change_speed(math.exp(shift))
            else:
                trust = self._scores.trust(log_ratio)
            # An iteration that seems far too short must not weigh a hundred times as much as others.
            scale_ms = max(measured_ms, predicted_ms)
        self._observed += 1
        self._prefills_observed += shape.prefill_tokens > 0
        self._decodes_observed += shape.decode_sequences > 0
        self._dearest_token_ms = max(self._dearest_token_ms, measured_ms / shape.tokens)
        self._shortest_ms = min(self._shortest_ms or measured_ms, measured_ms)
        self._learn(shape, measured_ms, scale_ms, trust)
        if self._observed % _REFIT_PERIOD == 0:
            self._refit()

    def overhead_ms(self) -> float:
        """What an iteration costs before it computes much: the predicted time of one decode.

        No less than the shortest iteration that was measured, so that a bad fit cannot make it vanish.
        """
        return max(self._shortest_ms, self.predict_ms(_SMALLEST))

    def safety_factor(self) -> float:
        """What to multiply a prediction by to be right 99 times of 100, from the latest 128 iterations: 1 to 1.5."""
        return self._scores.safety_factor

    def fit_prefill_tokens(self, base: IterationShape, context: int, limit_ms: float, max_tokens: int) -> int:
        """The most tokens of one more prompt chunk with which the iteration is predicted to keep to a limit.

        Args:
            base: The iteration without the chunk.
            context: Tokens of its request that are in the KV cache.
            limit_ms: For the whole iteration.
            max_tokens: No more than these.

        Returns:
            0 if not even one token fits.
        """
        if max_tokens <= 0:
            return 0

        if self._ready:
            found = self._solve_prefill(base, context, limit_ms, max_tokens)
            fits = found == 0 or self._predict_with_ms(base, found, context) <= limit_ms
            if fits and (found == max_tokens or self._predict_with_ms(base, found + 1, context) > limit_ms):
                return found
            # Rounding has put it off.
        return bisect_right(
            range(1, max_tokens + 1), limit_ms, key=lambda tokens: self._predict_with_ms(base, tokens, context)
        )

    def _predict_with_ms(self, base: IterationShape, tokens: int, context: int) -> float:
        """Of `base` with one more prompt chunk."""
        return self.predict_ms(base.add_prefill(tokens, context))

    def _solve_prefill(self, base: IterationShape, context: int, limit_ms: float, max_tokens: int) -> int:
        _, token_ms, attention_ms, prompt_ms, _, _ = self._coefficients
        spare_ms = limit_ms - self.predict_ms(base) - prompt_ms
        if spare_ms <= 0:
            return 0
        linear, quadratic = token_ms + attention_ms * context, attention_ms / 2
        if linear * max_tokens + quadratic * max_tokens * max_tokens <= spare_ms:
            return max_tokens
        return int(2 * spare_ms / (linear + math.sqrt(linear * linear + 4 * quadratic * spare_ms)))

    def error(self) -> LatencyError:
        """Error of the predictions of recent iterations (256 at most), each made before learning from it."""
        return self._scores.error()

    def to_profile(self) -> LatencyProfile:
        """What was learnt.

        Raises:
            ValueError: the model is not ready.
        """
        if not self._ready:
            raise ValueError(f"the latency model is not ready: it has seen {self._observed} iterations")
        self._refit()
        error = self.error()
        return LatencyProfile(
            coefficients_ms=self.coefficients_ms,
            safety_factor=self.safety_factor(),
            error_median=error.median,
            error_p95=error.p95,
            error_samples=error.samples,
            sizes=tuple(sums.to_profile(size) for size, sums in sorted(self._sums.items())),
        )

    def _guess_ms(self, shape: IterationShape) -> float:
        return max(self._shortest_ms + (self._dearest_token_ms or _UNSEEN_TOKEN_MS) * shape.tokens, _LEAST_MS)

    def _change_speed(self, slowdown: float) -> None:
        """Goes on with what is known at another speed; it counts for little, since not all costs may change alike."""
        for sums in self._sums.values():
            sums.change_speed(slowdown)
            sums.limit(_PROFILE_WEIGHT)
        self._solve()

    def _learn(self, shape: IterationShape, measured_ms: float, scale_ms: float, trust: float) -> None:
        row = np.array(
            (
                1.0,
                shape.prefill_tokens,
                shape.prefill_attention,
                shape.prefill_sequences,
                shape.decode_sequences,
                shape.decode_context,
            )
        )
        size = (_size_class(shape.prefill_tokens), _size_class(shape.decode_sequences))
        sums = self._sums.setdefault(size, SizeSums())
        sums.fade(math.exp(-trust / _MEMORY - (self._observed - sums.newest) / _LONG_MEMORY))
        sums.newest = self._observed
        sums.add(row, measured_ms, scale_ms, trust)

    def _refit(self) -> None:
        if not self._ready:
            self._ready = (
                self._observed >= _LEAST_ITERATIONS
                and min(self._prefills_observed, self._decodes_observed) >= _LEAST_OF_EACH
                and len(self._sums) >= _LEAST_SIZES
            )
        if self._ready:
            self._solve()
            self._scores.summarise()

    def _solve(self) -> None:
        ages = [self._observed - sums.newest for sums in self._sums.values()]
        fades = np.exp(-np.array(ages) / _LONG_MEMORY)
        gram = sum(fade * sums.gram for fade, sums in zip(fades, self._sums.values(), strict=True))
        moments = sum(fade * sums.moments for fade, sums in zip(fades, self._sums.values(), strict=True))
        self._coefficients = tuple(solve_nonnegative(gram, moments).tolist())


def _size_class(count: int) -> int:
    """0 for 0, then one class for each power of four: 1 to 3, 4 to 15, 16 to 63, and so on."""
    return (count.bit_length() + 1) // 2
