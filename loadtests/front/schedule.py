"""Which online requests a load sends, and when: arrivals and lengths of a trace, or generated ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np

from loadtests import arrivals
from loadtests.trace_source import Kind, TraceSource
from loadtests.traces import TraceRequest, scale_lengths, scale_time
from loadtests.window_shape import bend, turn

Arrivals = Literal["trace", "poisson", "gamma", "tide"]
ARRIVALS: Final[tuple[Arrivals, ...]] = get_args(Arrivals)


@dataclass(frozen=True)
class OnlinePlan:
    """The online load.

    Attributes:
        duration_s: Requests are due before it.
        rate_per_s: Mean rate; the time of a trace is stretched or compressed for it.
        arrivals: `trace` has the gaps of the trace (without one: gaps of the same statistics); `poisson` random ones;
            `gamma` ones of variation `cv`; `tide` random ones whose rate goes from low to high and back once.
        kind: Which trace, or whose statistics.
        traces: A trace or a folder of traces; None for generated requests.
        cv: Standard deviation over mean of the gaps, of `gamma`.
        tide_ratio: How many times as high the rate gets, of `tide`.
        length_scale: Lengths are multiplied by this.
        max_prompt_tokens, max_output_tokens: Longer requests are cut; the scale comes first.
        seed: The same seed gives the same requests.
    """

    duration_s: float
    rate_per_s: float
    arrivals: Arrivals = "trace"
    kind: Kind = "conv"
    traces: Path | None = None
    cv: float = 3.0
    tide_ratio: float = 10.0
    length_scale: float = 1.0
    max_prompt_tokens: int = 100_000
    max_output_tokens: int = 100_000
    seed: int = 7

    def __post_init__(self) -> None:
        for name in ("duration_s", "rate_per_s", "cv", "length_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 (it is {getattr(self, name)})")
        if self.tide_ratio < 1:
            raise ValueError(f"tide_ratio must be at least 1 (it is {self.tide_ratio})")
        for name, allowed in (("arrivals", ARRIVALS), ("kind", get_args(Kind))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)} (it is {getattr(self, name)})")


def draw_schedule(plan: OnlinePlan, problems: list[str] | None = None) -> list[TraceRequest]:
    """The requests in the order in which they are due.

    Args:
        plan: What is wanted.
        problems: Gets what is wrong with lines of the trace, with their numbers; such lines are left out then.

    Raises:
        TraceError: there is no such trace, it is too short, or (without `problems`) a line of it is wrong.
    """
    source = TraceSource(plan.traces, problems)
    if plan.arrivals == "trace":
        count = max(2, round(plan.rate_per_s * plan.duration_s))
        window = scale_time(source.draw(plan.kind, count, plan.seed), plan.rate_per_s)
        window = turn(window, np.random.default_rng([plan.seed, 4]))
    else:
        cv = plan.cv if plan.arrivals == "gamma" else 1.0
        times_s = list(arrivals.until(plan.duration_s, arrivals.gamma(plan.rate_per_s, cv, plan.seed)))
        window = source.draw(plan.kind, len(times_s), plan.seed) if times_s else []
        window = [replace(request, arrival_s=at_s) for request, at_s in zip(window, times_s, strict=True)]
        if plan.arrivals == "tide":
            window = bend(window, plan.duration_s, plan.tide_ratio)
    return [
        replace(
            request,
            prompt_tokens=min(request.prompt_tokens, plan.max_prompt_tokens),
            output_tokens=min(request.output_tokens, plan.max_output_tokens),
        )
        for request in scale_lengths(window, plan.length_scale)
        if request.arrival_s < plan.duration_s
    ]
