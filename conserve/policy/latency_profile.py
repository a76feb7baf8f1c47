"""What a latency model has learnt, as it is kept in memory and stored."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from conserve.policy.latency_scores import MAX_SAFETY_FACTOR
from conserve.policy.least_squares import Array

FEATURES = (
    "iteration",
    "prefill_tokens",
    "prefill_attention",
    "prefill_sequences",
    "decode_sequences",
    "decode_context",
)
"""What an iteration costs by: a constant 1 and the counts of `IterationShape`."""
_COUNT = len(FEATURES)


class SizeProfile(BaseModel):
    """Iterations of one size: how many, with forgotten ones counting less, and the sums that least squares need."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int]
    weight: FiniteFloat = Field(gt=0)
    gram: tuple[FiniteFloat, ...] = Field(min_length=_COUNT * _COUNT, max_length=_COUNT * _COUNT)
    moments: tuple[FiniteFloat, ...] = Field(min_length=_COUNT, max_length=_COUNT)


class LatencyProfile(BaseModel):
    """A fitted model as it is stored.

    Attributes:
        coefficients_ms: Milliseconds per unit of each feature; for readers, the model solves for them again.
        safety_factor, error_median, error_p95: As the model reported them, of its last `error_samples` iterations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    coefficients_ms: dict[str, FiniteFloat]
    safety_factor: float = Field(ge=1, le=MAX_SAFETY_FACTOR)
    error_median: FiniteFloat = Field(ge=0)
    error_p95: FiniteFloat = Field(ge=0)
    error_samples: int = Field(ge=0)
    sizes: tuple[SizeProfile, ...] = Field(min_length=1)


class SizeSums:
    """A `SizeProfile` that grows. `newest` is the number of the latest iteration in it."""

    def __init__(self) -> None:
        self.weight = 0.0
        self.gram: Array = np.zeros((_COUNT, _COUNT))
        self.moments: Array = np.zeros(_COUNT)
        self.newest = 0

    @classmethod
    def from_profile(cls, profile: SizeProfile) -> Self:
        """The sums that were stored."""
        sums = cls()
        sums.weight = profile.weight
        sums.gram = np.array(profile.gram).reshape(_COUNT, _COUNT)
        sums.moments = np.array(profile.moments)
        return sums

    def to_profile(self, size: tuple[int, int]) -> SizeProfile:
        """The sums as they are stored."""
        return SizeProfile(
            size=size, weight=self.weight, gram=tuple(self.gram.ravel().tolist()), moments=tuple(self.moments.tolist())
        )

    def add(self, row: Array, measured_ms: float, scale_ms: float, trust: float) -> None:
        """Adds an iteration with these features; its error counts relative to `scale_ms`, and `trust` of it."""
        weight = trust / (scale_ms * scale_ms)
        self.weight += trust
        self.gram += np.outer(row * weight, row)
        self.moments += row * (weight * measured_ms)

    def fade(self, factor: float) -> None:
        """Makes everything so far count less."""
        self.weight *= factor
        self.gram *= factor
        self.moments *= factor

    def limit(self, weight: float) -> None:
        """Makes everything so far count for `weight` iterations at most."""
        if self.weight > weight:
            self.fade(weight / self.weight)

    def change_speed(self, slowdown: float) -> None:
        """Takes everything so far as measured on a machine that is slower by this factor."""
        self.gram /= slowdown * slowdown
        self.moments /= slowdown
