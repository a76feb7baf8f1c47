"""How long the parts of the benchmark take, and how long a run may be so that one pass keeps to its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loadtests.coserving.calibration import TuningTimes
from loadtests.coserving.results import OFFLINE_ONLY, OFFLINE_RUNS, ONLINE_ONLY

START_S: Final = 40.0
"""Of one engine."""
LEARN_S: Final = 40.0
CAPACITY_FILL_S: Final = 5.0
CAPACITY_WINDOW_S: Final = 15.0
SHORT_FILL_S: Final = 7.0
CEILING_WINDOW_S: Final = 12.0
FRONTIER_WINDOW_S: Final = 30.0
SHORT_LEAD_S: Final = 2.0
"""Online requests come for so long before they are measured in short runs."""
LOADED_DRAIN_S: Final = 10.0
SHORT_LOADED_DRAIN_S: Final = 3.0
"""Offline work goes on for so long after a window, beside the last online requests."""
DRAIN_S: Final = 5.0
"""What then ends and begins a run usually takes; `DRAIN_LIMIT_S` at most."""
SHORT_DRAIN_S: Final = 2.0
DRAIN_LIMIT_S: Final = 60.0
SHORT_DRAIN_LIMIT_S: Final = 15.0
WANTED_REQUESTS: Final = 100
SHORTEST_S: Final = 10.0
LONGEST_S: Final = 240.0
OFFLINE_ONLY_SHARE: Final = 0.5
"""Length of `offline-only`, which measures a rate alone, as a share of the others'."""


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one pass over a workload.

    Attributes:
        fill_s, lead_s: Of offline work, and of online requests, before the window.
        stock_settings, ceiling_sizes, frontier_points: How many are tried.
        runs: The runs of one repeat.
        repeats: Of each run.
    """

    fill_s: float
    lead_s: float
    stock_settings: int
    ceiling_sizes: int
    frontier_points: int
    runs: tuple[str, ...]
    repeats: int

    def calibration_s(self, tuning: TuningTimes, finalists: int) -> float:
        """Learning, capacity, tuning and ceiling sizes."""
        around_s = SHORT_FILL_S + SHORT_LOADED_DRAIN_S + SHORT_DRAIN_S
        return (
            LEARN_S
            + CAPACITY_FILL_S
            + CAPACITY_WINDOW_S
            + self.stock_settings * (tuning.first_s + around_s)
            + min(finalists, self.stock_settings) * (tuning.second_s + around_s)
            + self.ceiling_sizes * (CEILING_WINDOW_S + around_s)
        )

    def run_s(self, run: str, duration_s: float) -> float:
        """One run."""
        loaded_s = 0.0 if run in (ONLINE_ONLY, *OFFLINE_RUNS) else LOADED_DRAIN_S
        return self.window_start_s(run) + window_s(run, duration_s) + loaded_s + DRAIN_S

    def window_start_s(self, run: str) -> float:
        """When a run's window begins: without offline work there is nothing to fill."""
        return self.lead_s if run == ONLINE_ONLY else max(self.fill_s, self.lead_s)

    def runs_s(self, duration_s: float) -> float:
        """All repeats of all runs, and the frontier."""
        frontier_s = self.frontier_points * (self.fill_s + FRONTIER_WINDOW_S + SHORT_LOADED_DRAIN_S + DRAIN_S)
        return self.repeats * sum(self.run_s(run, duration_s) for run in self.runs) + frontier_s

    def longest_s(self, left_s: float) -> float:
        """The longest window with which one repeat of the six runs takes no more than `left_s`."""
        around_s = sum(self.run_s(run, 0.0) for run in self.runs)
        return (left_s - around_s) / sum(window_s(run, 1.0) for run in self.runs)


def window_s(run: str, duration_s: float) -> float:
    """Length of a run's window where that of the others is `duration_s`."""
    return duration_s * OFFLINE_ONLY_SHARE if run == OFFLINE_ONLY else duration_s


def choose_duration(wanted_s: float, rate_per_s: float, longest_s: float) -> float:
    """Length of the windows: as wanted, longer for enough online requests, and never longer than there is time for."""
    return max(SHORTEST_S, min(max(wanted_s, WANTED_REQUESTS / rate_per_s), longest_s))
