"""The simulator against the real engine, on the runs that the co-serving benchmark has kept.

    python -m loadtests.simulator_validation out/bench/raw/chat out/bench/raw/pressure

Costs of iterations are fitted to the engine's own log of the first repeat of each workload; all repeats are simulated
with the requests that they had. How fast the machine was during a run is taken from its log, too (`iterations`: so much
longer they took; a run without a log is taken for as fast as the others of its repeat). Repeats of a run are pooled, as
in the benchmark.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.coserving.kept import KeptResultError, read_kept
from loadtests.validation.recording import Recording, record
from loadtests.validation.replay import Figures, fit_costs, measure_speeds, pool_measured, pool_simulated

RATE_LIMIT: Final = 0.10
LATENCY_LIMIT: Final = 0.25
_LIMITS: Final = {
    "offline_tokens_per_s": RATE_LIMIT,
    "ttft_p99_ms": LATENCY_LIMIT,
    "tbt_p99_ms": LATENCY_LIMIT,
}


@dataclass(frozen=True)
class Row:
    """One run of one workload: measured and simulated.

    Attributes:
        slowness: How long iterations took while it was made, over those that costs are fitted to.
    """

    workload: str
    run: str
    measured: Figures
    simulated: Figures
    slowness: float = 1.0

    def list_errors(self) -> Iterator[tuple[str, float, float, float]]:
        """Name of a figure, measured, simulated, and how far off that is, as a share; those that there are."""
        for name in _LIMITS:
            measured = getattr(self.measured, name)
            if measured:
                simulated = getattr(self.simulated, name)
                yield name, measured, simulated, simulated / measured - 1

    @property
    def outside(self) -> list[str]:
        """Figures that are further off than they may be."""
        return [name for name, _, _, error in self.list_errors() if abs(error) > _LIMITS[name]]

    def is_within_spread(self, name: str) -> bool:
        """Whether runs differ by as much among themselves: what was measured and what was simulated overlap."""
        low, high = self.measured.spread.get(name, (math.inf, -math.inf))
        lowest, highest = self.simulated.spread.get(name, (math.inf, -math.inf))
        return low <= highest and lowest <= high


def validate(recordings: Sequence[Recording], *, one_speed: bool = False) -> list[Row]:
    """Simulates all runs of one workload.

    Args:
        recordings: The runs.
        one_speed: Whether iterations take as long in all runs as in the first repeat on average.
    """
    first = min(recording.repeat for recording in recordings)
    costs = fit_costs([recording for recording in recordings if recording.iterations and recording.repeat == first])
    slowness = [1.0 for _ in recordings] if one_speed else measure_speeds(recordings, costs)
    rows = []
    for run in dict.fromkeys(recording.run for recording in recordings):
        pairs = [pair for pair in zip(recordings, slowness, strict=True) if pair[0].run == run]
        own = [recording for recording, _ in pairs]
        simulated = pool_simulated(own, [costs.at_speed(factor) for _, factor in pairs])
        mean = sum(factor for _, factor in pairs) / len(pairs)
        rows.append(Row(own[0].workload, run, pool_measured(own), simulated, mean))
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """A table of all rows; what is outside of the limits is bold, or in italics where runs differ by as much."""
    lines = [
        "| workload | run | iterations | offline tok/s | measured spread | TTFT p99 ms | measured spread | TBT p99 ms "
        "| measured spread |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = dict.fromkeys(_LIMITS, "- | -")
        for name, measured, simulated, error in row.list_errors():
            cell = f"{measured:,.0f} / {simulated:,.0f} ({error:+.0%})"
            if name in row.outside:
                cell = f"*{cell}*" if row.is_within_spread(name) else f"**{cell}**"
            low, high = row.measured.spread.get(name, (measured, measured))
            cells[name] = f"{cell} | {low:,.0f} to {high:,.0f}"
        lines.append(f"| {row.workload} | {row.run} | {row.slowness - 1:+.0%} | {' | '.join(cells.values())} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table. Returns 1 if a figure is outside of the limits."""
    parser = argparse.ArgumentParser(prog="simulator_validation", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="out/bench/raw/WORKLOAD of a benchmark")
    parser.add_argument("--runs", help="only these, with commas between them")
    parser.add_argument("--one-speed", action="store_true", help="iterations take as long in all runs")
    parser.add_argument("--record", type=Path, help="also write what was simulated to this folder, for tests")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    names = options.runs.split(",") if options.runs else None
    rows: list[Row] = []
    for folder in options.folders:
        try:
            results = read_kept(folder)
        except KeptResultError as error:
            parser.error(str(error))
        recordings = [record(results, run, with_iterations=True) for run in results.runs]
        if not any(recording.iterations for recording in recordings):
            parser.error(f"{folder}: has no run with a log of iterations")
        rows += [row for row in validate(recordings, one_speed=options.one_speed) if names is None or row.run in names]
        for recording in recordings if options.record is not None else ():
            if names is None or recording.run in names:
                path = options.record / f"{recording.workload}-{recording.run}-{recording.repeat}.json"
                path.write_text(recording.model_dump_json(exclude_defaults=True) + "\n", encoding="utf-8")
    table = to_markdown(rows)
    print("Measured / simulated; beyond 10 % (rates) or 25 % (latencies): bold, in italics if within the spread.\n")
    print(table)
    if options.out is not None:
        options.out.write_text(table + "\n", encoding="utf-8")
    return 1 if any(row.outside for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
