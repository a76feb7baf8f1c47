"""Request traces, as the simulator reads them."""

from __future__ import annotations

from conserve.simulator.traces import (
    PREFIX_BLOCK_TOKENS,
    TraceError,
    TraceRequest,
    cut_window,
    read_trace,
    scale_lengths,
    scale_time,
)

__all__ = [
    "PREFIX_BLOCK_TOKENS",
    "TraceError",
    "TraceRequest",
    "cut_window",
    "read_trace",
    "scale_lengths",
    "scale_time",
]
