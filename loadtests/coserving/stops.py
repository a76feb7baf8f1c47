"""Passes that were stopped between two layers: how soon after the signal, and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median

from conserve.engine.iteration_log import Iteration
from loadtests.coserving.results import RunResult
from loadtests.latency import percentiles
from loadtests.report import StopReport

SAFEPOINT_LAYERS = 2
"""A signal should be answered within so many layers' time."""


def describe_stops(repeats: Sequence[RunResult]) -> StopReport | None:
    """What the log of iterations says of the stops in the windows; None if there is none."""
    stopped = [iteration for result in repeats for iteration in list_stopped(result)]
    if not stopped:
        return None
    layers_ms = [_layer_ms(iteration) for iteration in stopped]
    known_ms = [value for value in layers_ms if value is not None]
    layer_ms = median(known_ms) if known_ms else None
    signals_ms, beyond_ms = [], []
    for iteration, own_ms in zip(stopped, layers_ms, strict=True):
        if iteration.announced_s <= 0:
            continue
        # The signal may have been there when the pass began.
        signal_ms = (iteration.stopped_s - iteration.announced_s) * 1e3
        signals_ms.append(signal_ms)
        if (each_ms := own_ms if own_ms is not None else layer_ms) is not None:
            beyond_ms.append(signal_ms - SAFEPOINT_LAYERS * each_ms)
    return StopReport(
        stops=len(stopped),
        continued=sum(iteration.first_layer > 0 for result in repeats for iteration in _list_measured(result)),
        layer=fmean(iteration.stop_layer for iteration in stopped),
        layer_ms=layer_ms,
        signal_ms=percentiles(signals_ms),
        beyond_two_layers_ms=percentiles(beyond_ms),
    )


def _list_measured(result: RunResult) -> Iterable[Iteration]:
    return (each for each in result.iterations if result.window_start_s <= each.end_s < result.window_end_s)


def list_stopped(result: RunResult) -> list[Iteration]:
    """The iterations in the window that were stopped."""
    return [each for each in _list_measured(result) if each.stop_layer >= 0]


def _layer_ms(iteration: Iteration) -> float | None:
    """Time of a layer of a stopped pass; None if it has not computed enough of them to tell."""
    layers = iteration.stop_layer - iteration.first_layer
    return (iteration.end_s - iteration.start_s) * 1e3 / layers if layers >= SAFEPOINT_LAYERS else None
